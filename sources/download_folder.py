"""The folder of one address in `downloads/`: its complete file with a record, and a partial file with validators."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """The record of a complete file, written last: its address, size, sha256 and validators."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    bytes: int
    sha256: str
    etag: str | None
    last_modified: str | None
    fetched_at: str


class Validators(BaseModel):
    """The server's validators of the file (RFC 9110, section 8.8)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    etag: str | None = None
    last_modified: str | None = None

    @property
    def strong(self) -> str | None:
        """The value for If-Range: a strong ETag, else the date. A weak ETag does not guarantee equal bytes."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified if self.etag is None else None


class DownloadFolder:
    """The folder of one address in `downloads`: the complete file, its record, and a partial file."""

    def __init__(self, downloads: Path, url: str) -> None:
        self.path = downloads / hashlib.sha256(url.encode()).hexdigest()[:32]
        self.part = self.path / "part"
        self.record_path = self.path / "record.json"
        self.validators_path = self.path / "part.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder; the kernel releases the lock when the process ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / "lock"):
            yield

    def body(self, sha256: str) -> Path:
        """The path of the complete file with this sha256."""
        return self.path / f"body-{sha256}"

    def record(self) -> Record | None:
        """The record of the complete file, or None if there is none or its hash differs."""
        try:
            record = Record.model_validate_json(self.record_path.read_bytes())
            return record if sha256_of(self.body(record.sha256)) == record.sha256 else None
        except (FileNotFoundError, ValidationError):
            return None

    def part_bytes(self) -> int:
        """The size of the partial file; 0 if there is none."""
        return self.part.stat().st_size if self.part.exists() else 0

    def validators(self) -> Validators:
        """The validators of the partial file."""
        try:
            return Validators.model_validate_json(self.validators_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return Validators()

    def drop_part(self) -> None:
        """Delete the partial file."""
        self.validators_path.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def keep(self, url: str, sha256: str) -> Record:
        """Make the partial file the complete file: fsync, rename, then the record."""
        validators = self.validators()
        record = Record(
            url=url,
            bytes=self.part_bytes(),
            sha256=sha256,
            etag=validators.etag,
            last_modified=validators.last_modified,
            fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())
        self.part.replace(self.body(sha256))
        write_atomically(self.record_path, record.model_dump_json())
        self.validators_path.unlink(missing_ok=True)
        for old in self.path.glob("body-*"):
            if old != self.body(sha256):
                old.unlink()
        return record


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a small file atomically."""
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
