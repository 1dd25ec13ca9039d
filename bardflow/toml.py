"""Reading TOML files that users write, and suggestions for misspelled words."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bardflow.errors import BardError


def read_toml(path: Path, error: type[BardError]) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        error: the file cannot be read, is not UTF-8 or not TOML; the message names the file and the place.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as wrong:
        raise error(f"{path} is not valid TOML: {wrong}.") from wrong
    except UnicodeDecodeError as wrong:
        raise error(f"{path} is not UTF-8 (byte {wrong.start:,}); TOML files must be.") from wrong
    except OSError as wrong:
        raise error(f"{path} cannot be read: {wrong.strerror}.") from wrong


def closest(word: str, among: Iterable[str]) -> str:
    """Return ` (did you mean 'word'?)` with the most similar known word, or an empty string."""
    near = difflib.get_close_matches(word, list(among), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
