"""Small files that others may have written, read with limits on their size and depth."""

import json
from pathlib import Path
from typing import Any


def read_bytes(path: Path, most: int) -> bytes:
    """Read a file of at most `most` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or is no regular file (a pipe would be waited for).
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path.name} is not a regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path.name} has more than {most:,} bytes")
    return data


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError if it is none, is nested too deeply, or has a number that is too long."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("values are nested too deeply") from error


def read_json(path: Path, most: int = 1 << 24) -> Any:
    """Read a JSON file of at most `most` bytes, 16 MiB by default.

    Raises:
        OSError, ValueError: as `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, most))
