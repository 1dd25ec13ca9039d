"""The regular expression of a corpus's headings, with a bound on the time that it takes.

Python's `re` tries all ways to match: `(a|aa)+$` needs years for a line of 100 letters. The library `regex` means the
same by an expression, and stops after a given time. RE2 is always fast, but means another thing by `\\w`, `\\s`, `\\b`
and `$`, so that a corpus would be cut at other places, and it has no look-ahead.
"""

import math
import re
import time
import warnings

import regex

LONGEST_HEADING = 500
# `regex` copies what `+` and `{n}` repeat when it compiles an expression; copies of copies fill the memory.
_COPIES = re.compile(r"\)\+|\{(\d*)")
_MOST_COPIES = 1_000
# Seconds of the processor for one line, and for each line on average. A usual expression takes 3 us for a line.
_LINE_SECONDS = 1.0
_MEAN_SECONDS = 0.0005


class SlowHeading(Exception):
    """An expression takes too much time."""


class Heading:
    """A compiled expression. Lines that take too long in all raise SlowHeading."""

    def __init__(self, pattern: str) -> None:
        """Raises ValueError if this is no regular expression of Python's `re`, or one that repeats too much."""
        if len(pattern) > LONGEST_HEADING:
            raise ValueError(f"is longer than {LONGEST_HEADING} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Python, about what `[[` may mean one day
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"is not a regular expression: {error}") from error
            copies = math.prod(
                max(1, int(copy[1] or 1)) if copy[1] is not None else 2 for copy in _COPIES.finditer(pattern)
            )
            if copies > _MOST_COPIES:
                raise ValueError(f"repeats groups {copies:,} times in all; at most {_MOST_COPIES:,} are allowed")
            try:
                self._pattern = regex.compile(pattern, regex.VERSION0)
            except (regex.error, RecursionError) as error:
                raise ValueError(f"is a regular expression that cannot be used here: {error}") from error
        self._left = _LINE_SECONDS

    def is_in(self, line: str) -> bool:
        """Whether the expression matches somewhere in a line.

        Raises SlowHeading after 1 second of the processor, in this line or through many slow ones.
        """
        began = time.process_time()
        try:
            found = self._pattern.search(line, timeout=self._left) is not None
        except TimeoutError as error:
            raise SlowHeading from error
        used = time.process_time() - began
        self._left = min(_LINE_SECONDS, self._left - used + _MEAN_SECONDS)
        if self._left <= 0:
            raise SlowHeading
        return found
