"""Small artifacts that tests store."""

from pathlib import Path

from bardflow.storage.disk import file_names
from bardflow.storage.handles import Handle, Vocabulary, text_of
from bardflow.storage.manifests import (
    Origin,
)
from bardflow.storage.store import Store

FILES = {"tokenizer.json": b'{"a": 1}\n', "nested/deep/vocabulary.txt": "合久必分\n".encode(), "empty": b""}


def origin(task: str = "make@1", **inputs: Handle) -> Origin:
    return Origin(
        task=task,
        inputs={name: text_of(handle) for name, handle in inputs.items()},
        spec={},
        run=None,
        commit=None,
        packages={},
        at="2026-01-01T00:00:00+00:00",
        measured={},
    )


def keep(
    store: Store, files: dict[str, bytes] = FILES, came: Origin | None = None, facts: dict[str, object] | None = None
) -> Vocabulary:
    with store.draft() as draft:
        for name, content in files.items():
            (draft.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (draft.folder / name).write_bytes(content)
        return store.keep(draft, Vocabulary, facts or {}, came or origin())


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in file_names(folder)}


def writable(path: Path) -> Path:
    path.chmod(0o644)
    return path
