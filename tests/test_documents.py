"""Laws of documents and of the split into a training and a validation set."""

import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bardflow.sources.documents import PIECE_CHARACTERS, Part, Piece, read, split
from bardflow.sources.spec import CorpusError, PathSource, SplitSpec
from tests.test_sources import by_document, corpus, reading

# ---- documents ----


def test_a_whole_corpus_is_one_document_and_files_follow_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = {"b.txt": b"second\n", "a/z.txt": b"first\r\n", "c.txt": b"\xef\xbb\xbfthird"}
    assert by_document(reading(tmp_path, files)) == ["first\r\nsecond\n\ufeffthird"]


def test_files_are_documents_and_an_empty_one_is_none(tmp_path: Path) -> None:
    files = {"a": b"\nfirst", "b": b"", "c": b" \n\n", "d": b"\nsecond\n"}
    assert by_document(reading(tmp_path, files, cut="file")) == ["\nfirst \n\n", "\nsecond\n"]


def test_a_heading_begins_a_document_and_a_preface_is_one_of_its_own(tmp_path: Path) -> None:
    chapters = b"# One\ntext # not a heading\n\n# Two\n# Three\nend"
    cut = {"cut": "heading", "heading": "^# "}
    texts = ["# One\ntext # not a heading\n\n", "# Two\n", "# Three\nend"]
    assert by_document(reading(tmp_path / "1", {"a": b"\n\n" + chapters}, **cut)) == ["\n\n" + texts[0], *texts[1:]]
    assert by_document(reading(tmp_path / "2", {"a": b"Preface\n" + chapters}, **cut)) == ["Preface\n", *texts]
    both = reading(tmp_path / "3", {"a": chapters, "b": chapters}, **cut)
    assert by_document(both) == texts * 2


def test_a_heading_that_matches_no_line_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"'\^Chapter' matches no line"):
        list(reading(tmp_path, {"a": b"text\n"}, cut="heading", heading="^Chapter"))


@pytest.mark.parametrize("files", [{"a.txt": b""}, {"a.txt": b" \n\t\n"}, {"a": b"", "b": b"\n"}])
def test_a_text_without_a_visible_character_is_an_error(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(CorpusError, match=r"has no text: .*bytes"):
        list(reading(tmp_path, files))


def test_a_text_that_cleaning_empties_names_the_steps(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"cleaning \(gutenberg\) removed all 37 characters"):
        list(reading(tmp_path, {"a": b"*** END OF THE PROJECT GUTENBERG ***\n"}, cleaning=("gutenberg",)))


def test_a_folder_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="has no files"):
        list(read(corpus(PathSource(path="x")), tmp_path))


def test_each_file_is_cleaned_on_its_own_and_the_counts_add_up(tmp_path: Path) -> None:
    pieces = reading(tmp_path, {"a": b"\xef\xbb\xbfone\n", "b": b"\xef\xbb\xbftwo\n"}, cleaning=("strip-bom",))
    with pytest.raises(RuntimeError, match="after all pieces"):
        _ = pieces.cleaned
    for _ in range(2):
        assert by_document(pieces) == ["one\ntwo\n"]
        assert [count.characters_removed for count in pieces.cleaned] == [2]


blocks = st.tuples(
    st.sampled_from(["word", " ", "\n", "\n\n", "字", "  x", "\r\n", "a" * 9_000, "b\n" * 500]), st.integers(1, 30)
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(blocks, max_size=8), cut=st.sampled_from(["whole", "heading"]))
def test_pieces_are_small_and_joined_they_are_the_text(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, int]], cut: str
) -> None:
    text = "word\n" + "".join(part * count for part, count in parts)
    pieces = reading(
        tmp_path_factory.mktemp("pieces"), {"a": text.encode()}, cut=cut, heading="^word" if cut == "heading" else None
    )
    assert "".join(piece.text for piece in pieces) == text
    assert all(0 < len(piece.text) <= PIECE_CHARACTERS for piece in pieces)
    assert list(pieces) == list(pieces)


def test_pieces_do_not_depend_on_whether_the_text_came_in_lines_or_in_blocks(tmp_path: Path) -> None:
    text = "".join(f"line {n}\n" * (n % 3) + "\n" for n in range(60_000)) + "x" * 200_000 + "\nend"
    by_blocks = list(reading(tmp_path, {"a": text.encode()}))
    assert list(reading(tmp_path, {"a": text.encode()}, cleaning=("strip-bom",))) == by_blocks
    assert len(by_blocks) > len(text) // PIECE_CHARACTERS


def test_a_cut_comes_between_a_line_end_and_a_visible_character(tmp_path: Path) -> None:
    text = "".join(f"a line {n}\n{chr(10) * (n % 2)}{'  indented' * (n % 3)}" for n in range(50_000))
    pieces = list(reading(tmp_path, {"a": text.encode()}))
    assert len(pieces) > 5
    for before, after in pairwise(pieces):
        assert before.text[-1] == "\n"
        assert not before.text[-2].isspace()
        assert not after.text[0].isspace()


def test_a_text_that_is_one_character_too_long_and_ends_with_a_space_is_cut_somewhere(tmp_path: Path) -> None:
    text = "x" * PIECE_CHARACTERS + " "
    pieces = [piece.text for piece in reading(tmp_path, {"a": text.encode()})]
    assert "".join(pieces) == text and len(pieces) == 2


def test_without_line_ends_a_cut_comes_before_the_space_between_two_words(tmp_path: Path) -> None:
    pieces = list(reading(tmp_path, {"a": b"some words and " * 20_000}))
    assert [piece.text[0] for piece in pieces[1:]] == [" "] * (len(pieces) - 1)
    assert [len(piece.text) for piece in reading(tmp_path / "b", {"a": b"x" * 150_000})] == [65_536, 65_536, 18_928]


@pytest.mark.slow
@pytest.mark.parametrize("cleaning", [(), ("gutenberg", "unwrap", "nfc")])
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, cleaning: tuple[str, ...]) -> None:
    line = b"A line that is wrapped at about seventy columns, as in a printed book,\n"
    peaks = []
    for size in (30_000, 90_000):
        pieces = reading(tmp_path / str(size), {"a": (line * 3 + b"\n") * (size // 4)}, cleaning=cleaning)
        tracemalloc.start()
        assert sum(len(piece.text) for piece in pieces) > size * 50
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# ---- split ----


def parts_of(pieces: list[Piece], spec: SplitSpec) -> dict[Part, str]:
    joined: dict[Part, str] = {"train": "", "validation": ""}
    characters = sum(len(piece.text) for piece in pieces)
    for part, piece in split(pieces, spec, characters, pieces[-1].document + 1):
        assert piece.text
        joined[part] += piece.text
    return joined


@given(
    texts=st.lists(st.text("ab\n", min_size=1, max_size=20), min_size=2, max_size=10),
    validation=st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9]),
)
def test_a_split_by_position_cuts_at_the_exact_character(texts: list[str], validation: float) -> None:
    whole = "".join(texts)
    border = round((1 - validation) * 100) * len(whole) // 100
    pieces = [Piece(n, text) for n, text in enumerate(texts)]
    if border == 0:
        with pytest.raises(CorpusError, match="empty"):
            parts_of(pieces, SplitSpec(validation=validation))
    else:
        joined = parts_of(pieces, SplitSpec(validation=validation))
        assert (joined["train"], joined["validation"]) == (whole[:border], whole[border:])


def test_a_split_by_document_keeps_documents_whole() -> None:
    pieces = [Piece(n // 2, f"<{n}>") for n in range(20)]
    joined = parts_of(pieces, SplitSpec(by="document", validation=0.1))
    assert joined["validation"] == "<18><19>"
    assert joined["train"].startswith("<0>")
    # In binary (1 - 0.9) * 10 is less than 1.
    assert parts_of(pieces, SplitSpec(by="document", validation=0.9))["train"] == "<0><1>"


@pytest.mark.parametrize("by", ["position", "document"])
@given(lengths=st.lists(st.integers(1, 65_536), min_size=40, max_size=60), most=st.integers(65_536, 300_000))
@settings(max_examples=20)
def test_of_a_long_validation_set_stretches_from_all_over_it_are_kept(by: str, lengths: list[int], most: int) -> None:
    pieces = [Piece(n, chr(0x4E00 + n) * length) for n, length in enumerate(lengths)]
    spec = SplitSpec(by=by, validation=0.5)
    whole = parts_of(pieces, spec)
    halved = split(pieces, spec.model_copy(update={"validation_characters": most}), sum(lengths), len(lengths))
    rows, again = list(halved), list(halved)
    kept = [piece for part, piece in rows if part == "validation"]
    text, total = "".join(piece.text for piece in kept), len(whole["validation"])
    assert rows == again and "".join(piece.text for part, piece in rows if part == "train") == whole["train"]
    if total <= most:
        assert text == whole["validation"] and halved.kept is None
        return
    count = max(1, most // 65_536)
    assert halved.kept == (len(text), total, count)
    # Each stretch has the pieces that begin in it, of which the last one can reach beyond its end.
    assert most - count * 65_536 < len(text) < most + count * 65_536
    begins = [whole["validation"].index(piece.text[0]) for piece in kept]
    assert {begin * count // total for begin in begins} >= set(range(1, count - 1))
    assert all(whole["validation"].startswith(piece.text, at) for piece, at in zip(kept, begins, strict=True))


def test_a_split_that_leaves_a_part_empty_is_an_error() -> None:
    with pytest.raises(CorpusError, match=r"training set of 1 document empty.*by = \"position\""):
        parts_of([Piece(0, "text")], SplitSpec(by="document"))
    with pytest.raises(CorpusError, match="training set of 1 character empty"):
        parts_of([Piece(0, "t")], SplitSpec())


def test_a_text_that_changed_since_it_was_counted_is_not_split_in_silence() -> None:
    with pytest.raises(CorpusError, match="have changed since"):
        list(split([Piece(0, "text")], SplitSpec(validation=0.5), 10, 1))
