"""Words: the pieces of text that a token never crosses, and where a long text can be cut."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

# The longest run of letters, marks or spaces in one BPE word; the limit bounds memory on text without spaces.
# Characters per token of the last tenth, learned on the first nine tenths:
#   longest run                4      8     16     32     64
#   Shakespeare, 2,048 bpe  2.417  2.564  2.617  2.617  2.617
#   Three Kingdoms, 16,384
#     bpe                   1.319  1.365  1.375  1.375  1.375
#     bpe-char              1.327  1.376  1.385  1.385  1.385
# The smallest limit without a loss was chosen.
_LONGEST = 16

# GPT-2's words (Radford et al. 2019), with three changes. Runs are limited (digits to three). Marks stay with their
# letters. White space up to and including its last line break is one word, so text after a line break never changes how
# the break is split: a text cut after a newline that a non-space follows has the same tokens as its pieces. Letters,
# digits and signs never share a word, so no merge can spell a byte token such as <0x41>.
_WORDS = (
    r"'(?:[sdmt]|ll|ve|re)"
    rf"| ?[\p{{L}}\p{{M}}]{{1,{_LONGEST}}}"
    r"| ?\p{N}{1,3}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]{{1,{_LONGEST}}}"
    rf"|\s{{0,{_LONGEST}}}[\r\n]{{1,{_LONGEST}}}"
    rf"|\s{{1,{_LONGEST}}}(?!\S)"
    rf"|\s{{1,{_LONGEST}}}"
)
# A word depends on at most this many characters: white space and line breaks, and one character after them.
LOOK_AHEAD = 2 * _LONGEST + 1

# A page of text has at most this many characters.
_PAGE = 1 << 14


def words() -> PreTokenizer:
    """Return the pre-tokenizer that splits text into words."""
    return Split(Regex(_WORDS), behavior="isolated")


def byte_words() -> PreTokenizer:
    """Return the pre-tokenizer that splits text into words, and writes each byte as one of GPT-2's characters."""
    return PreTokenizerSequence([words(), ByteLevel(add_prefix_space=False, use_regex=False)])


def pages(words: PreTokenizer | None, piece: str) -> Iterator[tuple[int, str]]:
    """Split a piece into (offset, page). With words of ours, encoding the pages is the same as encoding the piece."""
    start = 0
    while len(piece) - start > _PAGE:
        page = piece[start : start + _PAGE]
        page = page[: _cut(words, page)]
        yield start, page
        start += len(page)
    yield start, piece[start:]


def _cut(words: PreTokenizer | None, window: str) -> int:
    """Return how many characters of a window of a longer text can be encoded separately; at least one."""
    newline = window.rfind("\n", 0, -1)
    while newline >= 0:
        if not window[newline + 1].isspace():
            return newline + 1
        newline = window.rfind("\n", 0, newline)
    if words is None:
        return len(window)
    # Without such a newline: the start of the last word that depends only on the window. Words of other tokenizers can
    # be longer than the window; such a word is cut at its end.
    starts: list[int] = [start for _, (start, _) in words.pre_tokenize_str(window)]
    return max((start for start in starts if 0 < start <= len(window) - LOOK_AHEAD), default=len(window))
