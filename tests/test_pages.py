"""What a run's page promises: it stands alone, it is honest, it is the same twice, and no text can break it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bardflow.pages import wording
from bardflow.pages.parts import Part, Table
from bardflow.pages.run import Alternative, Baseline, RunPage, Sample, Surprise, Verdict, markdown, render
from tests.page import ADDRESS, Outline, a_page, words

REPORT = Path("/store/objects/report/4f2a90c1/report.html")
LINK = "http://127.0.0.1:4201/objects/report/4f2a90c1/report.html"

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'|`&amp;{{ 7*7 }}"


def tables(text: str) -> Iterator[list[list[str]]]:
    """The Markdown tables of a text, as rows of cells; an escaped bar does not end a cell."""
    for block in text.split("\n\n"):
        if block.startswith("|"):
            yield [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]


def test_every_element_is_closed_and_every_name_is_used_once() -> None:
    outline = Outline(render(a_page()))
    names = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in outline.elements:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in names
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"].removeprefix("#") in names  # type: ignore[union-attr]


def test_the_page_needs_no_network() -> None:
    document = render(a_page())
    outline = Outline(document)
    assert not {tag for tag, _ in outline.elements} & {"link", "img", "iframe", "object", "embed", "base", "image"}
    assert not [a for _, a in outline.elements if {"src", "srcset", "action", "data", "poster"} & a.keys()]
    links = [(tag, a["href"]) for tag, a in outline.elements if "href" in a and not (a["href"] or "").startswith("#")]
    assert links == [("a", ADDRESS), ("a", ADDRESS)]
    assert not re.search(r"@import|url\((?!#)", document)
    assert document.count("<script>") == 1
    policy = next(a["content"] for tag, a in outline.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_equal_values_give_equal_bytes_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text(a_page().model_dump_json(), "utf-8")
    code = (
        "import pathlib, sys; from bardflow.pages.run import RunPage, render\n"
        "page = RunPage.model_validate_json(pathlib.Path(sys.argv[1]).read_text('utf-8'))\n"
        "sys.stdout.buffer.write(render(page).encode())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Taipei", "LC_ALL": "C"}
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "page.json")]
    other = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert other.stdout.decode() == render(a_page())


def test_a_readers_own_matplotlib_settings_do_not_change_the_page() -> None:
    plain = render(a_page())
    with matplotlib.rc_context({"svg.fonttype": "path", "lines.linestyle": ":", "font.size": 30, "text.color": "red"}):
        assert render(a_page()) == plain


@pytest.mark.slow
def test_pages_drawn_at_the_same_time_do_not_disturb_one_another() -> None:
    plain = render(a_page())
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(render, [a_page()] * 6)) == {plain}


def test_every_score_is_on_both_pages() -> None:
    page = a_page()
    shown = words(render(page))
    for value in (page.scores.bits_per_character, page.scores.nats_per_token, page.scores.bits_per_byte, 5.51):
        assert f"{value:.4f}" in shown and f"{value:.4f}" in markdown(page, REPORT, LINK)
    for baseline in page.baselines:
        assert f"{baseline.name} {baseline.bits_per_character:.4f}" in shown
        assert f"| {baseline.name} | {baseline.bits_per_character:.4f} |" in markdown(page, REPORT, LINK)


def test_the_page_shows_what_it_was_given() -> None:
    shown = words(render(a_page()))
    for text in (
        *("605,711", "1,790,111", "4,177", "543,878", "in 320 places, 0.52 %", "unwrap_lines 15,822 16,278 0"),
        *("1,234,567", "345,678 in embeddings", "2 min 41 s", "612 MiB", "38,120", "torch 2.13.0"),
        *("early_stop_after none", "compile false", "learning_rate changed 0.002", "1 changed for this run"),
        *("temperature 0.8, seed 7, row 0", "Training stopped early", "6.5333 nats per token at step 20, after 10.0 s"),
        *("aaaaaaaa", "learn_vocabulary@1, 2026-11-22 12:01 UTC", "lower is better", "not measured in this run"),
    ):
        assert text in shown
    full = [a["title"] for _, a in Outline(render(a_page())).elements if a.get("class") == "digest"]
    assert full == ["a" * 64, "b" * 64, "c" * 64]
    page = a_page()
    of_rows = page.corpus.model_copy(update={"rows": 1_234, "rows_without_value": 56, "cleaned": ()})
    shown = words(render(page.model_copy(update={"corpus": of_rows})))
    assert "rows 1,234 56 without a value, left out" in shown and "byte for byte" not in shown
    of_pages = page.corpus.model_copy(update={"format": "html", "cleaned": ()})
    shown = words(render(page.model_copy(update={"corpus": of_pages})))
    assert "format of the source html" in shown and "byte for byte" not in shown


def test_the_passage_shows_each_pieces_surprise_and_what_was_expected() -> None:
    spans = [a for tag, a in Outline(render(a_page())).elements if tag == "span" and "cost" in (a.get("title") or "")]
    assert [a["class"] for a in spans] == ["b0", "b6"]
    assert spans[0]["title"] == "“卻” cost 0.40 bits. Expected here: “卻” 75.0 %."
    assert spans[1]["title"] == "“說␣” cost 7.90 bits. Expected here: “⏎” 50.0 %, “␣” 25.0 %."
    assert 'id="passage"' not in render(a_page(surprises=()))


def test_the_champions_samples_stand_beside_this_models() -> None:
    shown = words(render(a_page()))
    assert "曹操大怒" in shown and "champion, temperature 0.8" in shown
    assert "曹操大怒" not in words(render(a_page(rival_samples=())))


def test_a_further_section_is_shown_with_its_table_chart_and_quotation_and_in_markdown() -> None:
    page, shown = a_page(), words(render(a_page()))
    for word in ("Memorised A sentence of the section. A chart", "samples 0.125 A note. 眾皆拜服曹操大笑"):
        assert word in shown
    assert '<blockquote lang="zh-Hant"' in render(page)
    assert "## Memorised\n\nA sentence of the section.\n\n| text | share |" in markdown(page, REPORT, LINK)
    assert "Memorised" not in words(render(a_page(parts=())))


def test_a_page_of_version_0_1_opens() -> None:
    written = a_page(parts=()).model_dump(mode="json") | {"memorised": {"sampled_share": 0.1}}
    assert RunPage.model_validate_json(json.dumps(written)) == a_page(parts=())


def test_the_proof_says_how_far_the_file_is_from_the_score() -> None:
    off = 100 * (8 * 43_470 / 61_833 / 5.6234 - 1)
    assert f"43,470 bytes of the validation set, 5.6242 bits for each character ({off:+.3f} % of the score)" in words(
        render(a_page())
    )
    without = a_page(scores=a_page().scores.model_copy(update={"compressed_bytes": None}))
    assert "range coder" not in render(without)


@pytest.mark.parametrize("own", [5.75, 5.7118])
def test_a_model_that_does_not_beat_xz_is_told_so_in_plain_words(own: float) -> None:
    page = a_page(scores=a_page().scores.model_copy(update={"bits_per_character": own}))
    sentence = f"This model does not beat bz2 and xz -9. It needs {own:.4f} bits for each character"
    assert sentence in words(render(page))
    assert sentence in markdown(page, REPORT, LINK)
    assert "beats every general-purpose compressor" not in words(render(page))


def test_a_model_between_two_compressors_is_told_which_one_wins() -> None:
    page = a_page(scores=a_page().scores.model_copy(update={"bits_per_character": 5.7}))
    assert "This model does not beat bz2. It needs 5.7000" in words(render(page))


def test_a_model_that_beats_the_compressors_is_told_by_how_much() -> None:
    shown = words(render(a_page()))
    assert "does not beat" not in shown
    assert "beats every general-purpose compressor measured (bz2 and xz -9): the best of them, bz2" in shown
    assert "needs 5.6980 bits for each character, 0.0746 more" in shown


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        ((-0.4, -0.1), "0.2866 more (with 95 % confidence 0.1000 to 0.4000 more)."),
        ((-0.6, 0.1), "0.2866 more (on a text of this length, that may be chance)."),
        (None, "0.2866 more."),
    ],
)
def test_how_sure_it_is_that_a_model_beats_a_baseline_is_told(interval: tuple[float, float] | None, told: str) -> None:
    ngram = Baseline(name="7-gram", kind="statistical", bits_per_character=5.91, interval=interval)
    assert f"7-gram, needs 5.9100 bits for each character, {told}" in words(render(a_page(baselines=(ngram,))))


def test_a_page_without_compressors_says_that_none_was_measured() -> None:
    assert "No general-purpose compressor was measured" in words(render(a_page(baselines=())))


def test_published_figures_are_never_counted_as_measured_rivals() -> None:
    published = (Baseline(name="gzip of a blog", kind="published", bits_per_character=1.0),)
    assert "does not beat" not in words(render(a_page(baselines=published)))


def test_the_bars_are_in_order_and_to_scale() -> None:
    rows = [a for _, a in Outline(render(a_page())).elements if (a.get("style") or "").startswith("width: ")]
    widths = [float((a["style"] or "").removeprefix("width: ").removesuffix("%")) for a in rows]
    assert widths == [round(100 * bits / 12.0283, 2) for bits in (5.0123, 5.51, 5.6234, 5.698, 5.7118, 5.91, 12.0283)]


def test_the_verdict_is_on_the_page_and_a_first_champion_has_no_rival() -> None:
    assert "The champion stays. It lost by 0.1134" in words(render(a_page()))
    first = words(render(a_page(verdict=Verdict(moved=True, reason="It is the first."))))
    assert "New champion. It is the first." in first
    assert "9b1c2d3e" not in first


def hostile_page(text: str) -> RunPage:
    page = a_page()
    return a_page(
        title=text,
        recipe=text,
        corpus=page.corpus.model_copy(
            update={
                **dict.fromkeys(("name", "title", "language", "licence", "sha256"), text),
                "cleaned": (page.corpus.cleaned[0].model_copy(update={"step": text}),),
            }
        ),
        settings={text: text},
        overrides=(text,),
        vocabulary=page.vocabulary.model_copy(update={"kind": text}),
        model=page.model.model_copy(update={"architecture": text}),
        baselines=tuple(b.model_copy(update={"name": text, "note": text}) for b in page.baselines),
        verdict=Verdict(moved=False, reason=text, rival=text, rival_bits_per_character=5.51),
        curve=(),
        samples=(Sample(prompt=text, text=text, temperature=1, seed=0),),
        rival_samples=(Sample(prompt=text, text=text, temperature=1, seed=0),),
        surprises=(Surprise(text=text, bits=1, likeliest=(Alternative(text=text, share=0.5),)),),
        parts=(
            Part(
                title=text,
                findings=(text,),
                tables=(Table(title=text, columns=(text, text), rows=((text, text),), note=text),),
                quotes=(text,),
                language=text,
            ),
        ),
        cost=page.cost.model_copy(update={"device": text, "precision": text, "software": {text: text}}),
        lineage=tuple(
            s.model_copy(update=dict.fromkeys(("kind", "digest", "made_by", "detail"), text)) for s in page.lineage
        ),
    )


@cache
def shape_of_a_plain_page() -> list[tuple[str, list[str]]]:
    return Outline(render(hostile_page("plain"))).shape()


foreign = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: not text.startswith(("http://", "https://"))
)


@settings(max_examples=40)
@given(
    foreign | st.sampled_from([HOSTILE, "<!--", "]]>", "</pre>", "</style><b>", "\x00\r\n\x1b[0m", "{% raw %}", "\\|"])
)
def test_no_text_changes_the_shape_of_the_page(text: str) -> None:
    hostile = Outline(render(hostile_page(text)))
    assert hostile.shape() == shape_of_a_plain_page()
    assert wording.visible(text) in hostile.text("pre")


@settings(max_examples=40)
@given(foreign | st.sampled_from([HOSTILE, "a|b", "a\\|b", "\n| x | y |\n", "[a](javascript:b)"]))
def test_no_text_changes_the_shape_of_a_markdown_table(text: str) -> None:
    for table in tables(markdown(hostile_page(text), REPORT, LINK)):
        assert len({len(row) for row in table}) == 1
    assert not re.search(r"<(?!\\)", markdown(hostile_page(text), REPORT, LINK))


def test_markdown_has_two_tables_and_the_reports_path() -> None:
    text = markdown(a_page(), REPORT, LINK)
    measures, predictors = tables(markdown(a_page(parts=()), REPORT, LINK))
    assert [len(measures[0]), len(predictors[0])] == [2, 3]
    assert set(measures[1]) <= {" --- ", " ---: "}
    # One row each for the header, the rule, five baselines, the champion and this model.
    assert len(predictors) == 9
    assert f"[Full report]({LINK}), the file `{REPORT}`" in text


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "/srv/corpora/a.txt", " https://x"])
def test_only_web_addresses_become_links(address: str) -> None:
    page = a_page(corpus=a_page().corpus.model_copy(update={"address": address}), lineage=(), curve=())
    outline = Outline(render(page))
    assert "a" not in {tag for tag, _ in outline.elements}
    assert address in outline.text()


def test_a_sample_keeps_its_line_breaks_and_shows_its_control_characters() -> None:
    sample = Sample(prompt="", text="\n\tA\x00B\n\nC ", temperature=1, seed=0)
    assert Outline(render(a_page(samples=(sample,), rival_samples=()))).text("pre") == "\n\tA␀B\n\nC "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_step": 3}, r"best_step is 3, but validation losses are given at \[0, 5, 10, 15, 20\]"),
        ({"curve": a_page().curve[::-1]}, "the curve goes back, from step 20"),
        ({"overrides": ("lerning_rate",)}, "overrides name .'lerning_rate'., which settings lack"),
        ({"scores": a_page().scores.model_copy(update={"nats_per_token": float("nan")})}, "finite number"),
        ({"created": datetime(2026, 11, 22)}, "timezone"),
    ],
)
def test_a_page_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        a_page(**changes)


def test_a_rival_without_a_score_is_refused() -> None:
    with pytest.raises(ValidationError, match="give both, or neither"):
        Verdict(moved=False, reason="lost", rival="a champion")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (wording.span(59.94), "59.9 s"),
        (wording.span(59.97), "60.0 s"),
        (wording.span(161.2), "2 min 41 s"),
        (wording.span(5_400), "1 h 30 min"),
        (wording.memory(1023), "1023 B"),
        (wording.memory(612 * 2**20), "612 MiB"),
        (wording.memory(3 * 2**29), "1.5 GiB"),
        (wording.gap(-0.25), "−0.2500"),
        (wording.gap(0.25), "+0.2500"),
        (wording.percent(320, 62_209), "0.51 %"),
        (wording.percent(0, 0), "0 %"),
        (wording.setting(True), "true"),
        (wording.setting(None), "none"),
        (wording.setting(3e-4), "0.0003"),
    ],
)
def test_numbers_read_as_people_write_them(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize(
    ("planned", "of", "said"),
    [
        (634_000_000, "leg", "605 MiB, \N{MINUS SIGN}1.2 % of the measured"),
        (706 * 2**20, "process", "706 MiB, +15.4 % of the measured (measured over the whole process)"),
    ],
)
def test_the_planned_peak_stands_beside_the_measured_with_the_error(planned: int, of: Any, said: str) -> None:
    page = a_page()
    page = page.model_copy(update={"cost": page.cost.model_copy(update={"planned_peak_bytes": planned, "peak_of": of})})
    assert "612 MiB" in render(page) and said in render(page)
    assert f"| planned peak memory | {said} |" in markdown(page, REPORT, LINK)


def test_a_page_from_before_there_were_plans_has_no_planned_peak() -> None:
    page = a_page()
    assert page.cost.planned_peak_bytes is None
    assert "planned" not in render(page) and "planned" not in markdown(page, REPORT, LINK)
