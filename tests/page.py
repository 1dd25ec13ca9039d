"""A run's page to test with, and what a reader reads of a page."""

from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

from bardflow.pages.parts import Chart, Line, Part, Table
from bardflow.pages.run import (
    Alternative,
    Baseline,
    CleanedStep,
    CorpusFacts,
    Cost,
    CurvePoint,
    LineageStep,
    ModelFacts,
    RunPage,
    Sample,
    Scores,
    Surprise,
    Verdict,
    VocabularyFacts,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ADDRESS = "https://example.org/three-kingdoms/23950-0.txt"
VOID = {"meta", "br", "img", "link", "input", "hr", "source"}


def a_page(**changes: Any) -> RunPage:
    """A small page about a Chinese corpus: this model at 5.6234 bits per character, xz at 5.7118, bz2 at 5.698."""
    page = RunPage(
        title="三國演義, bpe",
        created=NOON,
        corpus=CorpusFacts(
            name="three-kingdoms",
            title="三國志演義",
            language="zh-Hant",
            licence="Public domain",
            address=ADDRESS,
            sha256="23742ec2" * 8,
            characters=605_711,
            bytes_utf8=1_790_111,
            distinct=4_177,
            documents=120,
            train_characters=543_878,
            validation_characters=61_833,
            unseen_distinct=108,
            unseen_occurrences=320,
            cleaned=(
                CleanedStep(step="unwrap_lines", lines_removed=15_822, characters_removed=16_278, characters_added=0),
            ),
        ),
        recipe="bpe",
        settings={"learning_rate": 0.002, "early_stop_after": None, "compile": False, "steps": 20},
        overrides=("learning_rate",),
        vocabulary=VocabularyFacts(kind="bpe", size=8_192, characters_per_token=1.36),
        model=ModelFacts(
            architecture="modern",
            parameters=1_234_567,
            embedding_parameters=345_678,
            layers=4,
            heads=4,
            width=128,
            context=256,
        ),
        scores=Scores(
            nats_per_token=5.3011,
            bits_per_character=5.6234,
            bits_per_byte=1.9193,
            sliding_bits_per_character=5.5127,
            compressed_bytes=43_470,
            tokens=45_465,
            characters=61_833,
            bytes_utf8=181_170,
        ),
        baselines=(
            Baseline(name="uniform", kind="statistical", bits_per_character=12.0283, note="4,177 characters"),
            Baseline(name="character 3-gram", kind="statistical", bits_per_character=5.91, note="Kneser-Ney"),
            Baseline(name="bz2", kind="compressor", bits_per_character=5.698),
            Baseline(name="xz -9", kind="compressor", bits_per_character=5.7118),
            Baseline(name="a paper", kind="published", bits_per_character=5.0123),
        ),
        verdict=Verdict(
            moved=False,
            reason="It lost by 0.1134 on the same text.",
            rival="three-kingdoms/champion 9b1c2d3e",
            rival_bits_per_character=5.51,
        ),
        curve=tuple(
            CurvePoint(
                step=step,
                seconds=step / 2,
                train_nats=None if step == 0 else 8 - step / 10,
                validation_nats=8.2 - step / 12 if step % 5 == 0 else None,
                learning_rate=0.001,
            )
            for step in range(21)
        ),
        best_step=20,
        stopped_early=True,
        samples=(Sample(prompt="卻說", text="曹操大笑。\n\n眾皆拜服。", temperature=0.8, seed=7),),
        rival_samples=(Sample(prompt="卻說", text="曹操大怒。", temperature=0.8, seed=7),),
        parts=(
            Part(
                title="Memorised",
                findings=("A sentence of the section.",),
                charts=(Chart(title="A chart", x_label="x", y_label="y", lines=(Line(name="a", x=(1,), y=(2,)),)),),
                tables=(
                    Table(title="Memorised", columns=("text", "share"), rows=(("samples", 0.125),), note="A note."),
                ),
                quotes=("眾皆拜服曹操大笑",),
                language="zh-Hant",
            ),
        ),
        surprises=(
            Surprise(text="卻", bits=0.4, likeliest=(Alternative(text="卻", share=0.75),)),
            Surprise(
                text="說 ", bits=7.9, likeliest=(Alternative(text="\n", share=0.5), Alternative(text=" ", share=0.25))
            ),
        ),
        cost=Cost(
            train_seconds=161.2,
            tokens_per_second=38_120,
            peak_bytes=612 * 2**20,
            device="cpu",
            precision="float32",
            threads=2,
            software={"torch": "2.13.0"},
        ),
        lineage=tuple(
            LineageStep(kind=kind, digest=letter * 64, made_by=made_by, when=NOON + timedelta(minutes=1), detail=detail)
            for kind, letter, made_by, detail in (
                ("Source", "a", "fetch@1", ADDRESS),
                ("Vocabulary", "b", "learn_vocabulary@1", "bpe, 8,192 tokens"),
                ("Model", "c", "export@1", ""),
            )
        ),
    )
    return RunPage.model_validate(page.model_copy(update=changes).model_dump())


class Outline(HTMLParser):
    """A document's elements in order, and its text, refusing an end tag that does not close the element last opened."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(document)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for tag in dict.fromkeys(self._open if self._open[-1:] != ["script"] else ["script"]):
            self.texts.setdefault(tag, []).append(data)

    def text(self, tag: str = "body", between: str = "") -> str:
        return between.join(self.texts.get(tag, []))

    def shape(self) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attributes)) for tag, attributes in self.elements]


def words(document: str) -> str:
    """What a reader reads, with runs of white space as one space."""
    return " ".join(Outline(document).text(between=" ").split())
