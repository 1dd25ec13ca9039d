"""The manifest of an artifact, which its digest is computed from, and its origin."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from bardflow.errors import BardError

LAYOUT = 1
MANIFEST = "manifest.json"
ORIGIN = "origin.json"


class StoreError(BardError):
    """An artifact is not in the store, or is damaged."""


class ObjectMissing(StoreError):
    """The artifact of a handle is missing or damaged."""


class FileFacts(BaseModel):
    """A file of an artifact: its size in bytes and its sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The content of an artifact. Its sha256, as canonical JSON, is the artifact's digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    layout: int
    facts: dict[str, Any]
    files: dict[str, FileFacts]


class Origin(BaseModel):
    """How an artifact was made; not part of the digest, so that equal content has equal digests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    inputs: dict[str, str]
    spec: dict[str, Any]
    run: str | None
    commit: str | None
    packages: dict[str, str]
    at: str
    measured: dict[str, Any]


def canonical_json(value: Any) -> bytes:
    """Encode a value as canonical JSON: sorted keys, indented by two spaces, UTF-8, with a final line end.

    Raises:
        StoreError: a number is NaN or infinite, or a text has undecodable bytes.
    """
    try:
        return (json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 40) : error.end + 40]
        raise StoreError(f"only UTF-8 text can be stored, but {around!r} has other bytes") from error
    except ValueError as error:
        raise StoreError(f"only finite numbers can be stored, not {str(value)[:300]}") from error


def file_facts(path: Path) -> FileFacts:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFacts(bytes=path.stat().st_size, sha256=digest)
