"""Import of a model from a folder under a name, and the file of an export that says where a model came from."""

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bardflow.errors import BardError
from bardflow.model.vocabulary import TOKENIZER_FILE
from bardflow.pages.run import Scores
from bardflow.storage.handles import Corpus, Model
from bardflow.storage.lineage import lineage
from bardflow.storage.manifests import Origin
from bardflow.storage.refs import Entry
from bardflow.tasks.base_model import BaseSpec, located, write_model
from bardflow.tasks.locks import using_store
from bardflow.tasks.run import commit, refs, store, versions

PROVENANCE = "bardflow.json"
# The task in the origin of an imported model.
IMPORT = "import"
# Names of imported models are `models/<name>`.
FOLDER = "models"
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class ImportRefused(BardError):
    """A folder cannot be imported: it is not a model, was changed, or the name is taken."""


class Step(BaseModel):
    """An artifact that the model was made from."""

    model_config = ConfigDict(frozen=True)

    kind: str
    digest: str
    task: str
    at: str


class Provenance(BaseModel):
    """Where an exported model came from: its facts, its corpus, its scores, and what it was made from.

    `files` are the sha256 of the exported files, by name.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    facts: dict[str, Any]
    corpus: dict[str, Any]
    scores: Scores | None
    lineage: tuple[Step, ...]
    files: dict[str, str]

    def line(self) -> str:
        """Describe the model in one line."""
        bits = "" if self.scores is None else f", {self.scores.bits_per_character:.4f} bits per character"
        made = next((step.at[:10] for step in self.lineage if step.digest == self.model), "")
        return f"model {self.model[:8]} of {self.corpus['title']}{bits}, made {made}"


def provenance(model: Model, text: Corpus, scores: Scores | None, folder: Path) -> Provenance:
    """Return the provenance of a model that was trained here, exported to `folder`."""
    corpus = store().facts(text)
    return Provenance(
        model=model.digest,
        facts=store().facts(model),
        corpus={name: corpus[name] for name in ("name", "title", "language", "licence", "text")},
        scores=scores,
        lineage=tuple(
            Step(kind=type(a.handle).__name__, digest=a.handle.digest, task=a.origin.task, at=a.origin.at)
            for a in lineage(store(), model)
        ),
        files={path.name: sha256(path) for path in sorted(folder.iterdir())},
    )


def import_model(address: str, name: str, *, by: str) -> tuple[Model, Entry]:
    """Store a model from a folder or the Hub, give it the name `models/<name>`, and return it with the name's entry.

    Raises:
        ImportRefused: the name is not legal, or a file is not as it was exported.
        tasks.base_model.NoSuchBase, model.training.NotAModel: there is no model, or it cannot be read.
    """
    if not NAME.fullmatch(name):
        raise ImportRefused(f"{name!r} is not a name; use a-z, 0-9 and -, and begin with a letter or a digit")
    with using_store():
        folder = located(BaseSpec(model=address))
        if isinstance(folder, Model):
            raise ImportRefused(f"{address} is in the store already ({folder}); give a folder or hub:OWNER/NAME")
        known = read_provenance(folder)
        model = _stored(folder, known, address)
        why = f"imported from {address}: {'a model of another program' if known is None else known.line()}"
        notes = {} if known is None else {"model": known.model, "corpus": known.corpus}
        entry, _ = refs().point(f"{FOLDER}/{name}", model, by=by, why=lambda before: why, notes=notes)
    return model, entry


def import_again(address: str) -> Model:
    """Store a model again that was imported from this address, without a name.

    Raises:
        ImportRefused, tasks.base_model.NoSuchBase, model.training.NotAModel: as `import_model`.
    """
    folder = located(BaseSpec(model=address))
    return folder if isinstance(folder, Model) else _stored(folder, read_provenance(folder), address)


def _stored(folder: Path, known: Provenance | None, address: str) -> Model:
    with store().draft() as draft:
        facts = write_model(draft, folder)
        if known is not None:
            facts |= {key: known.facts[key] for key in ("step", "vocabulary_kind") if key in known.facts}
            (draft.folder / PROVENANCE).write_bytes((folder / PROVENANCE).read_bytes())
        return store().keep(draft, Model, facts, _origin(address))


def read_provenance(folder: Path) -> Provenance | None:
    """Read the provenance of an exported model and check its files; None if the folder has none.

    Raises:
        ImportRefused: the file is damaged, or a file of the model is not as it was exported.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    try:
        known = Provenance.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ImportRefused(f"{path} is damaged: {error.errors()[0]['msg']}. Get the folder again") from error
    for name in ("config.json", "model.safetensors", TOKENIZER_FILE):
        file = folder / name
        if not file.is_file():
            raise ImportRefused(f"{folder} has no {name}, which was exported with the model; get the folder again")
        if sha256(file) != known.files.get(name):
            raise ImportRefused(
                f"{file} is not as it was exported (sha256 {sha256(file)[:16]}…, expected "
                f"{str(known.files.get(name))[:16]}…): it was damaged or changed. Get the folder again, or delete "
                f"{PROVENANCE} to import the model as one of unknown origin"
            )
    return known


def sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _origin(address: str) -> Origin:
    return Origin(
        task=IMPORT,
        inputs={},
        spec={},
        run=None,
        commit=commit(),
        packages=versions(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        measured={"address": address},
    )
