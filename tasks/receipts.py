"""Receipts: a run that changed nothing notes what it used and said, and the same run is answered from that at once.

The answer imports neither Prefect nor torch. It is given if code, corpus file, recipe and overrides are the same, the
source has the same bytes, all artifacts are intact, and no name of the corpus was moved. Otherwise the flow runs.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from bardflow.errors import BardError
from bardflow.home import held, home, project_folder, remote_address, up_lock
from bardflow.outcome import Outcome
from bardflow.sources.corpora import load_corpus, load_parts
from bardflow.sources.spec import CorpusSpec
from bardflow.storage.disk import DRAFTS, read_or_none, sealed, unsealed, write_whole
from bardflow.storage.handles import Handle, Source, text_of
from bardflow.storage.layout import RECEIPTS
from bardflow.storage.lineage import handle_of
from bardflow.storage.refs import Refs
from bardflow.storage.store import Store
from bardflow.tasks.fetching import fetch_into
from bardflow.tasks.locks import training_lock, using_store
from bardflow.tasks.saying import say

CODE = (".py", ".toml", ".html", ".css")
# What changes how a run computes: a run with one of these leaves no receipt and is not answered from one.
ELSEWHERE = ("BARDFLOW_MEMORY_LIMIT", "BARDFLOW_WORKERS", "BARDFLOW_CLUSTER")


class Receipt(BaseModel):
    """What a run used and said. `files` is the digest of the code and the files that it read.

    `sources` are digests of fetched sources in order; a line None is what fetching says. `names` has the number of the
    last entry of each name of the corpus. The report of the outcome is a path in the home.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: str
    sources: list[str]
    artifacts: list[str]
    names: dict[str, int]
    lines: list[str | None]
    outcome: Outcome


def write_receipt(
    corpus: str,
    recipe: str,
    overrides: Mapping[str, Any],
    handles: Mapping[str, list[Handle]],
    lines: list[str],
    before: dict[str, int],
    outcome: Outcome,
) -> None:
    """Write the receipt of a run that computed nothing, unless it moved a name.

    `handles` are its artifacts by the task that gave them, and `before` the entries of names when it began.
    """
    names = entries(corpus)
    if names != before or _is_elsewhere():
        return
    fetched = handles.get("fetch_source", [])
    said: list[str | None] = list(lines)
    for number, line in enumerate(lines):
        if number and line.startswith("fetch_source "):
            said[number - 1] = None
    receipt = Receipt(
        files=_files(corpus, recipe),
        sources=[handle.digest for handle in fetched],
        artifacts=[text_of(handle) for each in handles.values() for handle in each],
        names=names,
        lines=said,
        outcome=outcome.model_copy(update={"report": str(Path(outcome.report).relative_to(home()))}),
    )
    write_whole(_place(corpus, recipe, overrides), sealed(receipt.model_dump_json().encode()), home() / DRAFTS)


def answer(corpus: str, recipe: str, overrides: Mapping[str, Any]) -> Outcome | None:
    """Return the outcome of a run of which there is a receipt, and log what the run would; None if it has to run.

    It has to run as well if `bard up` runs, so that Prefect shows the run.
    """
    content = read_or_none(_place(corpus, recipe, overrides))
    if content is None or _is_elsewhere() or held(up_lock()):
        return None
    try:
        receipt = Receipt.model_validate_json(unsealed(content) or b"")
        if receipt.files != _files(corpus, recipe):
            return None
        with training_lock(corpus), using_store():
            store = Store(home())
            fetched = _fetched(store, corpus, receipt.sources)
            if fetched is None or entries(corpus) != receipt.names:
                return None
            if any(store.damage(handle_of(text)) for text in receipt.artifacts):
                return None
    except (ValueError, BardError, OSError):
        return None  # the flow says what is wrong
    said = iter(fetched)
    for line in receipt.lines:
        say(next(said) if line is None else line)
    return receipt.outcome.model_copy(update={"report": str(home() / receipt.outcome.report)})


def _fetched(store: Store, corpus: str, sources: list[str]) -> list[str] | None:
    """Fetch the sources of a corpus; return what that says of each, or None if one is another than before."""
    said = []
    for spec, digest in zip(_specs(corpus), sources, strict=True):
        with store.draft() as draft:
            found = fetch_into(draft, spec)
            if store.identify(draft, Source, {})[0].digest != digest:
                return None
        said.append(f"{spec.name}: {found.why}")
    return said


def _specs(corpus: str) -> list[CorpusSpec]:
    """The corpora whose sources a run fetches: the corpus, or the parts of a mixture."""
    folder = project_folder() / "corpora"
    spec = load_corpus(corpus, folder)
    return [spec] if isinstance(spec, CorpusSpec) else load_parts(spec, folder)


def entries(corpus: str) -> dict[str, int]:
    """Return the number of the last entry of each name of a corpus."""
    refs = Refs(home())
    heads = {name: refs.head(name) for name in refs.names() if name.startswith(f"{corpus}/")}
    return {name: head.number for name, head in heads.items() if head is not None}


def _place(corpus: str, recipe: str, overrides: Mapping[str, Any]) -> Path:
    asked = json.dumps([corpus, recipe, dict(overrides)], sort_keys=True)
    return home() / RECEIPTS / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"


def _files(corpus: str, recipe: str) -> str:
    """The digest of all files that decide what a run does: the code, the corpus files and the recipe."""
    package = Path(str(resources.files("bardflow")))
    folder, both = project_folder(), (project_folder() / "recipes", package / "recipes")
    paths = [folder / "corpora" / f"{name}.toml" for name in [corpus, *(spec.name for spec in _specs(corpus))]]
    paths += [recipes / f"{recipe}.toml" for recipes in both]
    for place, folders, names in os.walk(package, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        paths += [Path(place) / name for name in sorted(names) if name.endswith(CODE)]
    digest = hashlib.sha256()
    for path in paths:
        content = read_or_none(path)
        digest.update(f"{path} {None if content is None else len(content)}\n".encode() + (content or b""))
    return digest.hexdigest()


def _is_elsewhere() -> bool:
    return remote_address()[0] is not None or any(os.environ.get(name) for name in ELSEWHERE)
