"""Export of a model as a folder that `transformers` can load, with a model card that has its scores."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from bardflow.errors import BardError, installing
from bardflow.identity import restored
from bardflow.model.networks import GPTSpec
from bardflow.model.scoring import quiet
from bardflow.model.training import load_model
from bardflow.model.vocabulary import TOKENIZER_FILE, encode, load
from bardflow.pages.run import Scores
from bardflow.storage.documents import read_text
from bardflow.storage.handles import Corpus, Evaluation, Model
from bardflow.storage.lineage import handle_of
from bardflow.tasks.card import model_card
from bardflow.tasks.evaluation import scores_of, write_json
from bardflow.tasks.importing import PROVENANCE, provenance
from bardflow.tasks.run import store

CARD = "README.md"
# The largest accepted difference of a logit in f32, and the number of windows of the validation set to compare.
TOLERANCE = 1e-3
WINDOWS = 8
PIECE_CHARACTERS = 2**13


class ExportError(BardError):
    """The folder cannot be written, or `transformers` computes something else from it."""


class Checked(NamedTuple):
    """The result of checking an export: the largest difference of a logit, and the number of equal tokens."""

    logits: float
    tokens: int


def export(model: Model, folder: Path) -> Scores | None:
    """Write the model's files and its card to a new folder atomically, and return the scores on the card.

    Raises:
        ExportError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is there already; give a folder that is new or empty")
    text, scores = corpus_of(model), last_scores(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as draft:
        whole = Path(draft) / "export"
        whole.mkdir()
        for name in store().manifest(model).files:
            shutil.copyfile(store().folder(model) / name, whole / name)
        if text is not None:
            (whole / CARD).write_text(card_of(model, text, scores), encoding="utf-8")
            write_json(whole / PROVENANCE, provenance(model, text, scores, whole).model_dump(mode="json"))
        if folder.exists():
            folder.rmdir()
        whole.rename(folder)
    return scores


def card_of(model: Model, text: Corpus, scores: Scores | None) -> str:
    """Return the card of a model that was trained here."""
    facts = store().facts(model)
    vocabulary = {"kind": facts["vocabulary_kind"], "size": facts["vocabulary_size"]}
    gpt = restored(GPTSpec, facts["gpt"])
    return model_card(
        store().facts(text), gpt, facts["step"], facts["parameters"], vocabulary, scores, facts.get("base")
    )


def corpus_of(model: Model) -> Corpus | None:
    """Return the corpus that a model was trained on; None for an imported model."""
    found = store().origin(model).inputs.get("corpus")
    return None if found is None else Corpus(digest=handle_of(found).digest)


def last_scores(model: Model) -> Scores | None:
    """Return the scores of the model's last evaluation on its training corpus; None if there is none."""
    text, found = corpus_of(model), []
    if text is None:
        return None
    for handle in store().handles():
        if isinstance(handle, Evaluation):
            made = store().origin(handle)
            of = {name: handle_of(made.inputs[name]) for name in ("model", "corpus") if name in made.inputs}
            if of == {"model": model, "corpus": text}:
                found.append((made.at, handle.digest))
    return scores_of(Evaluation(digest=max(found)[1])) if found else None


def check(folder: Path, model: Model) -> Checked:
    """Load the folder with `transformers`, and compare all tokens of the validation set and logits of some windows.

    Raises:
        ExportError: transformers is not installed, the model was imported, or a token or a logit differs.
    """
    trained_on = corpus_of(model)
    if trained_on is None:
        raise ExportError("--check compares on the validation set of the model's corpus, and an imported one has none")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ExportError(f"--check needs the transformers library: {installing('hub')}") from error
    with quiet():
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ours, text = load_model(folder), "".join(read_text(store().folder(trained_on), "validation"))
    # A tokenizer of another program may give other tokens where `encode` cuts a long text, so it is compared on pieces.
    length = len(text) if store().facts(model)["vocabulary_kind"] != "file" else PIECE_CHARACTERS
    pieces = [text[i : i + length] for i in range(0, len(text), length)]
    ids = np.concatenate(list(encode(load(folder / TOKENIZER_FILE), pieces))).astype(np.int64)
    read = np.concatenate(tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"])
    if not np.array_equal(ids, read):
        same = int((ids[: len(read)] == read[: len(ids)]).argmin())
        raise ExportError(f"transformers' tokenizer gives other tokens from token {same:,} on; report this as a bug")
    context = ours.context
    count = max(1, min(WINDOWS, len(ids) // context))
    windows_BT = torch.from_numpy(ids[: count * context]).view(count, -1)
    with quiet(), torch.inference_mode():
        apart = float((ours.eval()(windows_BT) - theirs.eval()(windows_BT).logits).abs().max())
    if not apart <= TOLERANCE:
        raise ExportError(f"transformers computes other logits, by up to {apart:.2g}; report this as a bug")
    return Checked(apart, len(ids))


def push(folder: Path, repository: str) -> str:
    """Upload the folder to the Hugging Face Hub with the account that is logged in, and return its address.

    Raises:
        ExportError: the Hub refused the upload; the message has the reason.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="bardflow export")
    except (HfHubHTTPError, LocalTokenNotFoundError, ValueError, OSError) as error:
        raise ExportError(f"{folder} is written, but was not pushed to {repository}: {error}") from error
    return str(address)
