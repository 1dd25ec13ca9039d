"""Laws of duplicates: equal and similar documents are found, and after dropping none is left in or across the sets."""

import inspect
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bardflow.commands.cli import app
from bardflow.sources.adding import PROPOSED, Added, look, source_at
from bardflow.sources.corpora import load_corpus, write_corpus
from bardflow.sources.documents import Part, Piece
from bardflow.sources.duplicates import THRESHOLD, Duplicates, find_duplicates, treated, without
from bardflow.sources.spec import CorpusError, CorpusSpec, DocumentsSpec
from tests.conftest import CHECKOUT

Labelled = list[tuple[Part, Piece]]


def labelled(train: Sequence[str], validation: Sequence[str], size: int = 10**6) -> Labelled:
    """The documents of two sets in pieces of at most `size` characters."""
    sets: list[tuple[Part, str]] = [("train", text) for text in train] + [("validation", text) for text in validation]
    return [
        (part, Piece(number, text[at : at + size]))
        for number, (part, text) in enumerate(sets)
        for at in range(0, len(text), size)
    ]


def counts(train: Sequence[str], validation: Sequence[str]) -> Duplicates:
    return find_duplicates(labelled(train, validation)).counts


def texts(parts: Labelled) -> dict[tuple[Part, int], str]:
    joined: dict[tuple[Part, int], str] = {}
    for part, (document, text) in parts:
        joined[part, document] = joined.get((part, document), "") + text
    return joined


def words(seed: int, count: int = 120) -> list[str]:
    drawn = random.Random(seed)
    return ["".join(drawn.choices("abcdefgh", k=6)) for _ in range(count)]


def prose(seed: int, changed: int = 0) -> str:
    """120 words of a seed; `changed` of them, far from each other, are others."""
    text = words(seed)
    for number in range(changed):
        text[number * 11 + 3] = f"other{number}"
    return " ".join(text) + ".\n"


def chinese(seed: int, changed: int = 0) -> str:
    drawn = random.Random(seed)
    text = [chr(drawn.randrange(0x4E00, 0x9FA5)) for _ in range(200)]
    for number in range(changed):
        text[number * 17 + 3] = "〇"
    return "".join(text) + "。"


def test_equal_documents_are_exact_duplicates_wherever_they_are() -> None:
    a, b, c = prose(1), prose(2), prose(3)
    found = counts([a, b, a, c], [c, prose(4), c])
    assert (found.documents, found.training.exact, found.validation.exact, found.across.exact) == (7, 1, 1, 1)
    assert (found.training.near, found.validation.near, found.across.near) == (0, 0, 0)
    assert found.characters == len(a) + len(c) + len(c)


def test_blanks_at_the_ends_make_no_difference_and_those_within_make_a_near_duplicate() -> None:
    found = counts([prose(1), "\n " + prose(1).strip()], [prose(2)])
    assert (found.training.exact, found.training.near) == (1, 0)
    assert counts([prose(1), prose(1).replace(" ", "\n", 3).upper()], [prose(2)]).training.near == 1


@pytest.mark.parametrize("write", [prose, chinese], ids=["words", "characters without spaces"])
def test_similar_documents_are_near_duplicates_and_others_are_not(write: type[str]) -> None:
    found = counts([write(seed) for seed in range(50)], [write(seed, 1) for seed in range(50)])
    assert (found.across.near, found.total) == (50, 50)
    # 10 changed words in 120 leave a similarity of 0.40.
    assert counts([write(seed) for seed in range(50)], [write(seed, 10) for seed in range(50)]).total == 0


def test_short_documents_are_compared_too() -> None:
    found = counts(["To be, or not to be", "Exit", "!!!", "...", "!!!"], ["exit", "to be or not to be"])
    assert (found.across.near, found.training.exact, found.total) == (2, 1, 3)


def test_a_document_of_both_sets_is_dropped_from_the_training_set_and_the_first_of_a_set_stays() -> None:
    a, b, c, d = (prose(seed) for seed in range(4))
    parts = labelled([a, b, a, c, prose(1, 1)], [c, d, prose(3, 1)])
    kept, found = treated(lambda: parts, "drop")
    assert texts(list(kept)) == {("train", 0): a, ("train", 1): b, ("validation", 2): c, ("validation", 3): d}
    assert found is not None and found.dropped
    assert (found.training.exact, found.training.near, found.across.exact, found.validation.near) == (1, 1, 1, 1)


def similarity(one: str, other: str) -> float:
    """The exact similarity of two texts of words without punctuation."""
    grams = [{tuple(text.split()[at : at + 5]) for at in range(len(text.split()) - 4)} for text in (one, other)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


@settings(max_examples=60)
@given(
    drawn=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=2, max_size=30),
    border=st.integers(1, 29),
    size=st.integers(1, 900),
)
def test_after_drop_no_duplicate_is_left_within_or_across_the_sets(
    drawn: list[tuple[int, int]], border: int, size: int
) -> None:
    documents = [prose(seed, changed).replace(".", "") for seed, changed in drawn]
    border = min(border, len(documents) - 1)
    parts = labelled(documents[:border], documents[border:], size)
    found = find_duplicates(parts)
    try:
        left = list(without(parts, found.repeated))
    except CorpusError:
        assert all(("train", number) in found.repeated for number in range(border))
        return
    assert find_duplicates(left).counts.total == 0
    remaining = list(texts(left).values())
    assert len(remaining) == len(documents) - found.counts.total
    assert sum(map(len, remaining)) == sum(map(len, documents)) - found.counts.characters
    assert set(remaining) <= set(documents) and len(set(remaining)) == len(remaining)
    for number, one in enumerate(remaining):
        for other in remaining[:number]:
            # The estimate has a standard error of 0.035.
            assert similarity(one, other) < THRESHOLD + 4 * 0.035
    validation = {number for (part, number), _ in texts(parts).items() if part == "validation"}
    assert found.counts.validation.total == sum(("validation", number) in found.repeated for number in validation)


@settings(max_examples=60)
@given(drawn=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=9), size=st.integers(1, 99))
def test_what_is_found_does_not_depend_on_where_pieces_end(drawn: list[tuple[int, int]], size: int) -> None:
    documents = [write(seed, changed) for seed, changed in drawn for write in (prose, chinese)]
    assert find_duplicates(labelled(documents[:-1], documents[-1:], size)) == find_duplicates(
        labelled(documents[:-1], documents[-1:])
    )


def test_what_is_found_is_the_same_in_every_process() -> None:
    # Only the functions: this file's own imports take seconds.
    probe = (
        "import random\nfrom collections.abc import Sequence\n"
        "from bardflow.sources.documents import Part, Piece\n"
        "from bardflow.sources.duplicates import find_duplicates\n"
        "Labelled = list[tuple[Part, Piece]]\n"
        + "\n".join(map(inspect.getsource, (words, prose, labelled)))
        + "found = find_duplicates(labelled([prose(s, s % 7) for s in range(40)], [prose(s, 2) for s in range(40)]))\n"
        "print(found.counts.model_dump_json(), sorted(found.repeated))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", probe],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and '"near":' in outputs.pop()


@pytest.mark.slow
def test_a_very_long_document_is_compared_in_bounded_memory() -> None:
    def parts() -> Iterator[tuple[Part, Piece]]:
        for number in range(3):
            for _ in range(200):
                yield ("train" if number < 2 else "validation"), Piece(number, "x" * 65_536)

    import tracemalloc

    tracemalloc.start()
    found = find_duplicates(parts())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.counts.across.exact, found.counts.training.exact) == (2, 0)
    assert peak < 40 * 65_536


def test_dropping_from_a_single_document_is_an_error_that_says_to_cut_it() -> None:
    parts: Labelled = [("train", Piece(0, "one document")), ("validation", Piece(0, "one document"))]
    with pytest.raises(CorpusError, match="Cut the text into documents"):
        treated(lambda: parts, "drop")
    kept, found = treated(lambda: parts, "keep")
    assert list(kept) == parts and found is not None and found.across.exact == 1
    assert treated(lambda: parts, None) == (parts, None)


def test_a_training_set_of_duplicates_only_is_an_error() -> None:
    kept, _ = treated(lambda: labelled([prose(1), prose(1)], [prose(1)]), "drop")
    with pytest.raises(CorpusError, match="nothing to train on"):
        list(kept)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('duplicates = "drop"\n', "cut by heading, file or row"),
        ('duplicates = "merge"\n[documents]\ncut = "file"\n', "'keep' or 'drop' (given: 'merge')"),
    ],
)
def test_a_wrong_field_is_answered_with_what_is_legal(lines: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text(f'title = "It"\n{lines}[source]\npath = "it.txt"\n')
    with pytest.raises(CorpusError) as error:
        load_corpus("it", tmp_path)
    assert told in str(error.value)


def added(folder: Path, *documents: str, **more: str) -> Added:
    (folder / "texts").mkdir(exist_ok=True)
    for number, text in enumerate(documents):
        (folder / "texts" / f"{number:02}.txt").write_text(text, encoding="utf-8")
    spec = CorpusSpec(name="it", title="It", source=source_at(str(folder / "texts"), folder))
    propose = [field for field in PROPOSED if field not in more]
    return look(
        spec, project=folder, downloads=folder / "downloads", mirror=None, propose=propose, **more
    )  # fmt: skip


def test_duplicates_are_counted_and_dropped_by_a_new_corpus_that_has_some(tmp_path: Path) -> None:
    unlike = [prose(seed) for seed in range(20)]
    found = added(tmp_path, *unlike)
    assert found.spec.duplicates == "keep" and found.duplicates is not None and found.duplicates.total == 0
    whole = found.survey.characters
    found = added(tmp_path, *unlike[:19], prose(19), prose(3, 1), prose(4))
    assert found.spec.duplicates == "drop" and found.duplicates is not None
    assert (found.duplicates.exact, found.duplicates.total) == (1, 2)
    assert found.duplicates.across.total == 2 and found.survey.documents == 20
    assert found.survey.characters == pytest.approx(whole, abs=10)
    assert load_corpus("it", write_corpus(found.spec, tmp_path / "corpora").parent) == found.spec
    kept = added(tmp_path, duplicates="keep")
    assert kept.spec.duplicates == "keep" and kept.survey.documents == 22
    assert kept.duplicates is not None and kept.duplicates.total == 2


def test_one_document_has_no_duplicates_to_propose(tmp_path: Path) -> None:
    found = added(tmp_path, prose(1) + prose(2))
    assert found.spec.duplicates is None and found.duplicates is None
    assert found.spec.documents == DocumentsSpec()


def test_the_command_shows_the_counts_with_an_example_and_keeps_them_on_request(project: Path) -> None:
    (project / "texts" / "notes").mkdir()
    for number, text in enumerate([*(prose(seed) for seed in range(20)), prose(3, 1), prose(4)]):
        (project / "texts" / "notes" / f"{number:02}.txt").write_text(text)
    said = CliRunner().invoke(app, ["corpus", "add", "notes", "--from", str(project / "texts" / "notes")])
    counted = "1 exact and 1 near, of which 2 in both sets (dropped; to keep them: --duplicates keep)"
    assert f"duplicates   {counted}" in said.output
    assert f"near: {prose(3, 1)[:80]!r}" in said.output and repr(prose(3)[:80]) in said.output
    assert 'duplicates = "drop"' in (project / "corpora" / "notes.toml").read_text()
    add = ["corpus", "add", "kept", "--from", str(project / "texts" / "notes"), "--duplicates", "keep", "--json"]
    kept = json.loads(CliRunner().invoke(app, add).output)
    assert kept["corpus"]["duplicates"] == "keep" and kept["duplicates"]["across"] == {"exact": 1, "near": 1}
    wrong = CliRunner().invoke(app, [*add[:2], "more", *add[3:6], "merge"])
    assert isinstance(wrong.exception, CorpusError) and "'keep' or 'drop'" in str(wrong.exception)
    assert not (project / "corpora" / "more.toml").exists()
