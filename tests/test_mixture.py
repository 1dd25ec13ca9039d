"""Laws of mixtures: what stands in each set, in the report and in the lineage, and what is refused."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bardflow.commands.cli import app
from bardflow.flows.compare_vocabularies import compare_vocabularies
from bardflow.flows.evaluate_gpt import evaluate_gpt
from bardflow.flows.refresh_corpora import refresh_corpora
from bardflow.sources.corpora import load_corpus
from bardflow.sources.documents import Part, Piece
from bardflow.sources.mixing import ReadSet, mix
from bardflow.sources.spec import CorpusError, MixtureSpec
from bardflow.storage.documents import read_text
from bardflow.storage.garbage import collect_garbage
from bardflow.storage.handles import Corpus, Evaluation, Model, Report
from bardflow.storage.lineage import lineage
from bardflow.tasks.evaluation import CHARGES
from bardflow.tasks.index import board, write_index
from bardflow.tasks.reporting import page_of
from bardflow.tasks.run import refs, store
from tests.conftest import CHECKOUT
from tests.quick import quickly, run

Documents = list[tuple[int, str]]


def text_of(train: Documents, validation: Documents) -> ReadSet:
    sets = {"train": train, "validation": validation}
    return lambda part: (Piece(number, text) for number, text in sets[part])


def spec(*weights: float, **more: Any) -> MixtureSpec:
    parts = [{"corpus": f"part-{number}", "weight": weight} for number, weight in enumerate(weights)]
    return MixtureSpec.model_validate({"name": "both", "title": "Both", "mixture": parts} | more)


def joined(pieces: Iterable[tuple[Part, Piece]], part: Part) -> str:
    return "".join(piece.text for of, piece in pieces if of == part)


def numbered(pieces: Iterable[tuple[Part, Piece]]) -> Documents:
    return [(piece.document, piece.text) for _, piece in pieces]


def test_a_weight_is_how_often_the_training_text_stands_there_and_validation_texts_stand_once() -> None:
    verse = text_of([(0, "aaaa\n"), (1, "bbbb\n")], [(1, "cc\n"), (2, "dd\n")])
    prose = text_of([(0, "xxxxyyyy\n"), (0, "z")], [(0, "w")])
    mixed = mix(spec(2.5, 0.5), [verse, prose])
    assert joined(mixed.read(), "train") == "aaaa\nbbbb\n" * 2 + "aaaa\n" + "xxxxy"
    assert joined(mixed.read(), "validation") == "cc\ndd\nw"
    assert [number for number, _ in numbered(mixed.read())] == list(range(9))
    one, other = mixed.parts
    assert (one.train_characters, one.validation_characters, one.documents) == (25, 6, 7)
    assert (other.train_characters, other.validation_characters, other.documents) == (5, 1, 2)
    assert (one.train_share, other.train_share) == pytest.approx((25 / 30, 5 / 30))


@settings(max_examples=80)
@given(
    texts=st.lists(
        st.tuples(
            st.lists(st.text("ab三\n", min_size=1, max_size=9), min_size=1, max_size=5),
            st.lists(st.text("cd", min_size=1, max_size=5), min_size=1, max_size=3),
            st.decimals(min_value="0.2", max_value=4, places=1),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_counts_of_a_mixture_are_those_of_its_text(texts: list[tuple[list[str], list[str], Any]]) -> None:
    def numbers(documents: list[str], first: int) -> Documents:
        return list(enumerate(documents, first))

    read = [text_of(numbers(train, 0), numbers(validation, len(train))) for train, validation, _ in texts]
    mixture = spec(*(float(weight) for *_, weight in texts))
    if any(int(weight * len("".join(train))) == 0 for train, _, weight in texts):
        with pytest.raises(CorpusError, match="less than one of its"):
            mix(mixture, read)
        return
    mixed = mix(mixture, read)
    train, validation = joined(mixed.read(), "train"), joined(mixed.read(), "validation")
    expected = ["".join(t) * 5 for t, _, _ in texts]
    lengths = [int(weight * len("".join(t))) for t, _, weight in texts]
    assert train == "".join(text[:length] for text, length in zip(expected, lengths, strict=True))
    assert validation == "".join("".join(v) for _, v, _ in texts)
    assert [part.train_characters for part in mixed.parts] == lengths
    assert sum(part.train_share for part in mixed.parts) == pytest.approx(1)
    seen = [number for number, _ in numbered(mixed.read())]
    assert sorted(set(seen)) == list(range(sum(part.documents for part in mixed.parts))) and seen == sorted(seen)


def test_duplicates_of_all_parts_are_found_before_weights_apply() -> None:
    a, b, c, d = (f"document {n} has words that no other one has: {n} {n * 7} {n * 11}\n" for n in range(1, 5))
    one, other = text_of([(0, a), (1, b)], [(2, c)]), text_of([(0, b), (1, c), (2, d)], [(3, a)])
    kept = mix(spec(2, 1, duplicates="keep"), [one, other])
    assert kept.duplicates is not None and not kept.duplicates.dropped
    assert (kept.duplicates.across.exact, kept.duplicates.training.exact, kept.duplicates.documents) == (2, 1, 7)
    assert joined(kept.read(), "train") == (a + b) * 2 + b + c + d
    dropped = mix(spec(2, 1, duplicates="drop"), [one, other])
    assert dropped.duplicates == kept.duplicates.model_copy(update={"dropped": True})
    assert joined(dropped.read(), "train") == b * 2 + d and joined(dropped.read(), "validation") == c + a
    assert [number for number, _ in numbered(dropped.read())] == list(range(5))
    assert mix(spec(2, 1), [one, other]).duplicates is None
    with pytest.raises(CorpusError, match="nothing to train on"):
        mix(spec(1, duplicates="drop"), [text_of([(0, a)], [(1, a)])])


MIXED = """title = "Both"
[[mixture]]
corpus = "own"
weight = 2

[[mixture]]
corpus = "generated"
weight = 0.5
"""


@pytest.fixture
def both(project: Path) -> Path:
    """A project with the corpora `own`, `generated`, and `both`, which is mixed of them."""
    generated = 'title = "Generated"\nlanguage = "art"\nlicence = "CC0-1.0"\n[source]\nsynthetic = 9000\n'
    (project / "corpora" / "generated.toml").write_text(generated)
    (project / "corpora" / "both.toml").write_text(MIXED)
    return project


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ('[[mixture]]\ncorpus = "both"', ["mixture.0.corpus", "this mixture itself"]),
        (
            '[[mixture]]\ncorpus = "own"\n[[mixture]]\ncorpus = "owm"',
            ["mixture.1.corpus", "'own'", "generated, own"],
        ),
        ('[[mixture]]\ncorpus = "more"', ["'more' is a mixture", "Name the corpora that it is mixed of"]),
        ("mixture = []", ["mixture", "at least 1 item"]),
        ('[[mixture]]\ncorpus = "own"\nweight = 0', ["mixture.0.weight", "greater than 0 (given: 0)"]),
        ('[[mixture]]\ncorpus = "own"\nweight = -1.5', ["mixture.0.weight", "greater than 0 (given: -1.5)"]),
        ('[[mixture]]\ncorpus = "own"\nweight = inf', ["mixture.0.weight", "less than or equal to 100"]),
        ('[[mixture]]\ncorpus = "own"\nweigth = 2', ["mixture.0.weigth", "did you mean 'weight'", "corpus, weight"]),
        ('[[mixture]]\ncorpus = "own"\n[[mixture]]\ncorpus = "own"', ["names 'own' twice", "sum of the weights"]),
        ('[[mixture]]\ncorpus = "own"\n[source]\npath = "a"', ["a source or a mixture"]),
        ('cleaning = ["nfc"]\n[[mixture]]\ncorpus = "own"', ["cleaning", "title, language, licence, mixture"]),
        ('[[mixture]]\ncorpus = "broken"', ["broken.toml", "source: is missing"]),
    ],
)
def test_a_mistake_in_a_mixture_is_answered_with_file_field_and_what_is_legal(
    both: Path, file: str, told: list[str]
) -> None:
    (both / "corpora" / "more.toml").write_text(MIXED)
    (both / "corpora" / "broken.toml").write_text('title = "Broken"\n')
    (both / "corpora" / "both.toml").write_text(f'title = "Both"\n{file}\n')
    with pytest.raises(CorpusError) as error:
        load_corpus("both", both / "corpora")
    for words in told:
        assert words in str(error.value)


def test_the_list_of_corpora_shows_what_a_mixture_is_made_of(both: Path) -> None:
    said = CliRunner().invoke(app, ["corpus", "list"])
    assert "Both (mixture of own × 2, generated × 0.5)" in said.output
    listed = json.loads(CliRunner().invoke(app, ["corpus", "list", "--json"]).output)
    assert listed[0]["name"] == "both" and listed[0]["mixture"][1] == {"corpus": "generated", "weight": 0.5}


def text(corpus: str) -> tuple[Corpus, dict[str, Any]]:
    head = refs().head(f"{corpus}/text")
    assert head is not None
    return Corpus(digest=head.digest), store().facts(head.handle)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "answers")
class TestFlows:
    def test_a_mixture_is_trained_on_and_its_parts_stand_in_facts_report_and_lineage(self, both: Path) -> None:
        outcome = run("both")
        refresh_corpora(["own", "generated"])
        mixed, facts = text("both")
        own, generated = text("own"), text("generated")
        folders = [store().folder(handle) for handle in (mixed, own[0], generated[0])]
        whole, one, other = ("".join(read_text(folder, "train")) for folder in folders)
        assert whole == one * 2 + other[: len(other) // 2]
        whole, one, other = ("".join(read_text(folder, "validation")) for folder in folders)
        assert whole == one + other
        assert [part["digest"] for part in facts["mixture"]] == [own[0].digest, generated[0].digest]
        assert facts["language"] == "mul" and facts["licence"] == "CC0-1.0"

        report = Report(digest=Path(outcome.report).parent.name)
        [part] = [part for part in page_of(report).parts if part.title == "Mixture"]
        rows = {row[0]: row for row in part.tables[0].rows}
        assert rows["own"][1] == 2 and rows["own"][3] == 2 * own[1]["survey"]["train_characters"]
        page = page_of(report)
        assert page.corpus.address is None
        # Weighted by their characters, the parts' bits are the whole score.
        bits = sum(float(str(row[6])) * int(str(row[5])) for row in rows.values())
        assert bits / page.corpus.validation_characters == pytest.approx(page.scores.bits_per_character, abs=1e-4)
        evaluation = Evaluation(digest=refs().history("both/tiny")[-1].notes["evaluation"])
        charged = np.load(store().folder(evaluation) / CHARGES)[: own[1]["survey"]["validation_characters"]]
        assert float(str(rows["own"][6])) == pytest.approx(charged.mean() / math.log(2), abs=1e-4)
        html = Path(outcome.report).read_text(encoding="utf-8")
        assert "This corpus is a mixture" in html and "byte for byte" not in html

        ancestors = lineage(store(), Model(digest=outcome.model))
        assert [type(a.handle).__name__ for a in ancestors][:5].count("Source") == 2
        explained = CliRunner().invoke(app, ["explain", "both/champion"]).output
        assert "own.txt" in explained and "synthetic:9000" in explained and "mix_corpora@2" in explained

    def test_only_what_changed_of_a_mixture_is_made_again(self, both: Path) -> None:
        assert run("both").trained
        second = run("both")
        assert not second.trained and "corpus unchanged" in second.why
        before, _ = text("both")
        (both / "corpora" / "both.toml").write_text(MIXED.replace("0.5", "0.6"))
        third = run("both")
        assert third.trained and "the mixture is new or changed" in third.why
        assert text("both")[0] != before
        (both / "texts" / "own.txt").write_text("Another text. " * 1000)
        assert "the corpus is new or changed" in run("both").why

    def test_the_other_flows_and_commands_work_on_a_mixture(self, both: Path) -> None:
        planned = json.loads(CliRunner().invoke(app, ["plan", "both", "--recipe", "tiny", "--json"]).output)
        outcome = run("both")
        known = json.loads(CliRunner().invoke(app, ["plan", "both", "--recipe", "tiny", "--json"]).output)
        assert planned["vocabulary_size"] == known["vocabulary_size"]
        assert refresh_corpora()["both"].startswith("unchanged")
        assert evaluate_gpt(["both"])["both"] == pytest.approx(outcome.bits_per_character)
        compared = compare_vocabularies(["both"], ["char", "bytes"], "tiny", quickly(), "characters", characters=2000)
        assert compared
        assert board("both").title == "Both" and write_index().is_file()

    def test_garbage_collection_keeps_what_a_mixture_was_made_of(self, both: Path) -> None:
        run("both")
        _, facts = text("both")
        collect_garbage(store(), refs(), dry_run=False)
        for part in facts["mixture"]:
            assert store().damage(Corpus(digest=part["digest"])) is None
        assert not run("both").trained

    def test_the_example_in_the_docs_is_trained_on(self, both: Path) -> None:
        page = (CHECKOUT / "docs" / "corpora.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        [example] = [block for block in blocks if "mixture" in block]
        for name in ("tiny-shakespeare", "three-kingdoms"):
            twin = (both / "corpora" / "generated.toml").read_text().replace("9000", f"{5000 + len(name)}")
            (both / "corpora" / f"{name}.toml").write_text(twin)
        (both / "corpora" / "plays-and-novels.toml").write_text(example)
        assert run("plays-and-novels").trained
        parts = {part["corpus"]: part for part in text("plays-and-novels")[1]["mixture"]}
        assert parts["tiny-shakespeare"]["train_characters"] == 2 * int(0.9 * 5016)
        assert parts["three-kingdoms"]["train_characters"] == int(0.9 * 5014) // 2
