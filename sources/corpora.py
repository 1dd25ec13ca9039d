"""Corpus files: reading one with an error for each mistake, and writing one."""

from collections.abc import Mapping
from pathlib import Path

import tomli_w
from pydantic import BaseModel, ValidationError

from bardflow.sources.addresses import masked
from bardflow.sources.spec import (
    CORPUS_NAME,
    SOURCES,
    AnyCorpus,
    CorpusError,
    CorpusSpec,
    DocumentsSpec,
    MixturePart,
    MixtureSpec,
    PublishedFigure,
    RowsSpec,
    SplitSpec,
    listed,
)
from bardflow.toml import closest, read_toml


def corpus_names(folder: Path) -> list[str]:
    """The names of the corpora in `folder`, sorted."""
    return sorted(path.stem for path in folder.glob("*.toml") if CORPUS_NAME.fullmatch(path.stem))


def load_corpus(name: str, folder: Path) -> AnyCorpus:
    """Read `folder/<name>.toml`, and the files of its parts if it is a mixture.

    Raises CorpusError for an unknown name (with the legal ones) and for any mistake in the file (with file and field).
    """
    known = corpus_names(folder)
    if name not in known:
        raise CorpusError(
            f"There is no corpus {name!r}{closest(name, known)}. "
            + (f"The corpora in {folder} are: {listed(known)}. " if known else f"{folder} describes no corpus yet. ")
            + f"To add one, write {folder / 'NAME.toml'} or run `bard corpus add NAME --from ADDRESS-OR-PATH`."
        )
    path = folder / f"{name}.toml"
    table = read_toml(path, CorpusError)
    if "name" in table:
        raise CorpusError(f"{path}: name is taken from the file's own name ({name!r}); remove the field.")
    if "mixture" in table and "source" in table:
        raise CorpusError(f"{path}: a corpus has a source or a mixture of other corpora; remove one of them.")
    try:
        if "mixture" not in table:
            return CorpusSpec(name=name, **table)
        mixture = MixtureSpec(name=name, **table)
    except ValidationError as error:
        raise CorpusError(explained(path, error)) from error
    load_parts(mixture, folder)
    return mixture


def load_parts(mixture: MixtureSpec, folder: Path) -> list[CorpusSpec]:
    """Read the corpus files of a mixture's parts.

    Raises CorpusError for a part that is unknown, is a mixture, or has a mistake in its file.
    """
    path, parts = folder / f"{mixture.name}.toml", []
    legal = [name for name in corpus_names(folder) if not _is_mixture(name, folder)]
    for number, part in enumerate(mixture.mixture):
        if part.corpus not in legal:
            field = f"{path}: mixture.{number}.corpus: "
            if part.corpus == mixture.name:
                raise CorpusError(f"{field}{part.corpus!r} is this mixture itself. Name other corpora.")
            if part.corpus in corpus_names(folder):
                raise CorpusError(
                    f"{field}{part.corpus!r} is a mixture, and a mixture is made of corpora that have a source. "
                    "Name the corpora that it is mixed of."
                )
            raise CorpusError(
                f"{field}there is no corpus {part.corpus!r}{closest(part.corpus, legal)}. A mixture can be made of: "
                f"{listed(legal)}."
            )
        spec = load_corpus(part.corpus, folder)
        assert isinstance(spec, CorpusSpec)
        parts.append(spec)
    return parts


def _is_mixture(name: str, folder: Path) -> bool:
    try:
        return "mixture" in read_toml(folder / f"{name}.toml", CorpusError)
    except CorpusError:
        return False  # its mistake is reported where it is used


def require_new(name: str, folder: Path) -> None:
    """Raise CorpusError if `folder` already has a corpus of this name."""
    path = folder / f"{name}.toml"
    if path.exists():
        raise CorpusError(f"{path} exists already; choose another name, or edit that file.")


def write_corpus(spec: CorpusSpec, folder: Path) -> Path:
    """Write `folder/<name>.toml`, which `load_corpus` reads back as an equal spec.

    Raises CorpusError if the file already exists; nothing is overwritten.
    """
    path = folder / f"{spec.name}.toml"
    table = spec.model_dump(exclude={"name"}, exclude_none=True, exclude_defaults=True, mode="json")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            tomli_w.dump(table, file)
    except FileExistsError as error:
        raise CorpusError(f"{path} exists already; choose another name, or edit that file.") from error
    return path


def explained(path: Path, error: ValidationError) -> str:
    """One line for each mistake: the field, the error, the given value and the legal values."""
    lines = []
    for mistake in error.errors(include_url=False):
        # In the source table, pydantic adds the kind to the location: source.url.sha256 is the field source.sha256.
        location = [str(part) for part in mistake["loc"]]
        kind = location.pop(1) if location[0:1] == ["source"] and len(location) > 2 else None
        field = ".".join(location) or "the file"
        message = mistake["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if mistake["type"] == "extra_forbidden":
            legal = _fields_of(location[:-1], kind, MixtureSpec if error.title == MixtureSpec.__name__ else CorpusSpec)
            message = f"is not a field{closest(location[-1], legal)}; the fields here are {listed(legal)}"
        elif mistake["type"] == "missing":
            message = "is missing"
        elif not isinstance(mistake["input"], Mapping):
            message += f" (given: {_shown(mistake['input'])})"
        lines.append(f"{field}: {message}")
    return f"{path} does not describe a corpus.\n" + "\n".join(f"  {line}" for line in lines)


def _shown(given: object) -> str:
    """A given value in an error message: without passwords, and cut."""
    text = masked(repr(given))
    return text if len(text) <= 200 else f"{text[:200]}…"


def _fields_of(location: list[str], kind: str | None, spec: type[BaseModel]) -> list[str]:
    if kind is not None:
        return list(SOURCES[kind].model_fields)
    tables: dict[str, type[BaseModel]] = {
        "rows": RowsSpec,
        "documents": DocumentsSpec,
        "split": SplitSpec,
        "published": PublishedFigure,
        "mixture": MixturePart,
    }
    if not location:
        return [field for field in spec.model_fields if field != "name"]  # the file name is the corpus's name
    return list(tables[location[0]].model_fields)
