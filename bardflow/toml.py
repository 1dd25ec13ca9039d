"""Reading TOML files that users write, and suggestions for misspelled words."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bardflow.errors import BardError
from bardflow.files import read_bytes

# A recipe has 2 kB. Parsing takes time that grows with the square of the parts of a dotted key, so lines are bounded.
LARGEST_TOML = 100_000
LONGEST_LINE = 10_000


def read_toml(path: Path, error: type[BardError]) -> dict[str, Any]:
    """Read a TOML file of at most 100,000 bytes, with lines of at most 10,000 characters.

    Raises:
        error: the file cannot be read, is larger, is not UTF-8 or not TOML; the message names the file and the place.
    """
    try:
        text = read_bytes(path, LARGEST_TOML).decode()
        if any(len(line) > LONGEST_LINE for line in text.splitlines()):
            raise ValueError(f"a line has more than {LONGEST_LINE:,} characters")
        return tomllib.loads(text.replace("\r\n", "\n"))
    except RecursionError as wrong:
        raise error(f"{path} is not valid TOML: values are nested too deeply.") from wrong
    except UnicodeDecodeError as wrong:
        raise error(f"{path} is not UTF-8 (byte {wrong.start:,}); TOML files must be.") from wrong
    except ValueError as wrong:
        raise error(f"{path} is not valid TOML: {wrong}.") from wrong
    except OSError as wrong:
        raise error(f"{path} cannot be read: {wrong.strerror}.") from wrong


def closest(word: str, among: Iterable[str]) -> str:
    """Return ` (did you mean 'word'?)` with the most similar known word, or an empty string."""
    near = difflib.get_close_matches(word, list(among), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
