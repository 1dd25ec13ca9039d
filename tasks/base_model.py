"""The model that a training begins from: an artifact, or a Hugging Face model, which is imported."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from bardflow.errors import BardError
from bardflow.home import project_folder
from bardflow.identity import identity, restored
from bardflow.model.networks import GPTSpec, count_parameters
from bardflow.model.training import begin_from, begun_spec, load_pretrained, save_model, save_snapshot, spec_at
from bardflow.model.vocabulary import TOKENIZER_FILE, load, save, vocabulary_from_file, vocabulary_size
from bardflow.storage.handles import Checkpoint, Model, Vocabulary
from bardflow.storage.lineage import handle_of
from bardflow.storage.refs import resolve
from bardflow.storage.store import Draft
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.run import origin, refs, store
from bardflow.tasks.saying import say

HUB = re.compile(r"hub:(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
FORMS = "a name such as three-kingdoms/champion, a folder (./…, ~/… or /…), or hub:OWNER/NAME"
# The files of a model on the Hub; weights in other formats and code are not fetched.
FETCHED = ["*.safetensors", "*.safetensors.index.json", "config.json", TOKENIZER_FILE, "README.md"]
CARD = "README.md"
# With these settings, `transformers.AutoTokenizer` loads tokenizer.json unchanged.
TOKENIZER_SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}


class NoSuchBase(BardError):
    """The model to begin from does not exist, or is not a model."""


class BaseSpec(BaseModel):
    """The model that a training begins from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(
        default=None, min_length=1, max_length=1000, description=f"the model to begin from: {FORMS}; null: none"
    )


@task(version="1", cache_policy=NO_CACHE)
def fetch_base(base: BaseSpec) -> Model:
    """Return the model to begin from; one from outside the store is imported. Never cached, because it may change.

    Raises:
        NoSuchBase: there is no such model.
        model.training.NotAModel: it cannot be read.
    """
    found = located(base)
    return found if isinstance(found, Model) else imported(found, str(base.model))


def located(base: BaseSpec) -> Model | Path:
    """Return the artifact of a name, or the folder of a model from outside the store; one of the Hub is fetched.

    Raises:
        NoSuchBase: there is no such model.
    """
    if base.model is None:
        raise NoSuchBase(f"no model was named; give {FORMS}")
    if base.model.startswith("hub:"):
        return from_hub(base.model)
    if base.model.startswith((".", "/", "~")):
        folder = project_folder() / Path(base.model).expanduser()
        missing = next((name for name in ("config.json", TOKENIZER_FILE) if not (folder / name).is_file()), None)
        if not folder.is_dir():
            raise NoSuchBase(f"{base.model} is not a folder; give {FORMS}")
        if missing == TOKENIZER_FILE:
            raise NoSuchBase(
                f"{base.model} has no {TOKENIZER_FILE}; load its tokenizer with transformers and write it with "
                "`save_pretrained`"
            )
        if missing:
            raise NoSuchBase(f"{base.model} is not a model folder: it has no {missing}")
        return folder
    handle = resolve(store(), refs(), base.model)
    if not isinstance(handle, Model):
        raise NoSuchBase(f"{base.model} is a {type(handle).__name__}, not a model; give {FORMS}")
    return handle


def shape_of(base: BaseSpec, gpt: GPTSpec) -> tuple[GPTSpec, int]:
    """Return the network of a training that begins from this model and its vocabulary's size, before it is imported.

    Raises:
        NoSuchBase: there is no such model.
        model.training.NotAModel: no network here has its parts, or the context is larger than the model's.
    """
    found = located(base)
    if isinstance(found, Model):
        return network_of(found, gpt), store().facts(found)["vocabulary_size"]
    own = spec_at(found)
    return begun_spec(own, context=gpt.context, dropout=gpt.dropout), tokens_at(found)


def from_hub(address: str) -> Path:
    """Fetch a model from the Hugging Face Hub into the Hub's own cache, and return its folder.

    Raises:
        NoSuchBase: the address has another form, or the model cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    named = HUB.fullmatch(address)
    if named is None:
        raise NoSuchBase(f"{address!r} is not the address of a model; write hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    say(f"fetching {address}")
    try:
        folder = snapshot_download(named["name"], revision=named["revision"], allow_patterns=FETCHED)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise NoSuchBase(f"{address} cannot be fetched: {str(error).splitlines()[0]}") from error
    return Path(folder)


def imported(folder: Path, address: str) -> Model:
    """Store a model in the format of `transformers` as an artifact, in f32.

    Raises:
        model.training.NotAModel: it cannot be read.
    """
    with store().draft() as draft:
        facts = write_model(draft, folder)
        return store().keep(draft, Model, facts, origin(address=address))


def write_model(draft: Draft, folder: Path) -> dict[str, Any]:
    """Write the files of an imported model and return its facts."""
    gpt = load_pretrained(folder, tokens=tokens_at(folder))
    save_model(gpt, draft.folder)
    vocabulary_from_file(folder / TOKENIZER_FILE).save(str(draft.folder / TOKENIZER_FILE))
    (draft.folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_SETTINGS, indent=2) + "\n")
    if (folder / CARD).is_file():
        shutil.copyfile(folder / CARD, draft.folder / CARD)
    parameters, embedding = count_parameters(gpt)
    return {
        "gpt": identity(spec_at(draft.folder)),
        "step": 0,
        "parameters": parameters,
        "embedding_parameters": embedding,
        "vocabulary_size": gpt.tokens.weight.shape[0],
        "vocabulary_kind": "file",
    }


def tokens_at(folder: Path) -> int:
    """Return the number of token ids of a model folder's vocabulary.

    Raises:
        model.vocabulary.VocabularyError: as `vocabulary_from_file`.
    """
    return vocabulary_size(vocabulary_from_file(folder / TOKENIZER_FILE))


@task(version="1", cache_policy=CACHE_BY_INPUTS)
def vocabulary_of(base: Model) -> Vocabulary:
    """Return the vocabulary of a model; for one that was trained here, it is the artifact it was trained with."""
    tokenizer = load(store().folder(base) / TOKENIZER_FILE)
    with store().draft() as draft:
        save(tokenizer, draft.folder)
        facts = {"kind": store().facts(base)["vocabulary_kind"], "size": vocabulary_size(tokenizer)}
        return store().keep(draft, Vocabulary, facts, origin())


@task(version="1", cache_policy=CACHE_BY_INPUTS)
def begin_from_base(base: Model, context: int, dropout: float) -> Checkpoint:
    """Return the checkpoint of step 0 with the weights of a model."""
    with store().draft() as draft:
        save_snapshot(begin_from(store().folder(base), context=context, dropout=dropout), draft.folder)
        return store().keep(draft, Checkpoint, {"step": 0}, origin())


def base_of(checkpoint: Checkpoint) -> Model | None:
    """Return the model that the training of a checkpoint began from; None if it began from random weights."""
    inputs = store().origin(checkpoint).inputs
    while "checkpoint" in inputs:
        inputs = store().origin(handle_of(inputs["checkpoint"])).inputs
    if "base" not in inputs:
        return None
    base = handle_of(inputs["base"])
    assert isinstance(base, Model)
    return base


def base_in_words(base: Model) -> str:
    """Describe a model to begin from: its address, or the text that it was trained on.

    Of a folder only the name is given: the path may name the user, and models would differ with it.
    """
    made = store().origin(base)
    if (address := made.measured.get("address")) is not None:
        folder = project_folder() / Path(address).expanduser()
        return f"{address if HUB.fullmatch(address) else folder.resolve().name} ({base.short})"
    return f"a model of {store().facts(handle_of(made.inputs['corpus']))['title']} ({base.short})"


def network_of(base: Model, gpt: GPTSpec) -> GPTSpec:
    """Return the network of a training that begins from a model; the recipe's `gpt` gives context and dropout.

    Raises:
        model.training.BaseDoesNotFit: the context is larger than the model's.
    """
    own = restored(GPTSpec, store().facts(base)["gpt"])
    return begun_spec(own, context=gpt.context, dropout=gpt.dropout)
