"""The pages in a real browser: they fit, they say nothing in the console, they can be hovered, stepped and re-themed.

Needs Chromium (Debian: `apt install chromium`); without it these tests are skipped, visibly.
"""

import itertools
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import ValidationError

from bardflow.commands.web import reports_app, writing_app
from bardflow.commands.web_guard import guarded
from bardflow.flows.train_gpt import train_gpt
from bardflow.pages import experiment, index, parts, writing
from bardflow.pages.run import render
from bardflow.storage.handles import Model
from bardflow.tasks.recipes import Overrides
from bardflow.tasks.run import refs
from tests.conftest import serving
from tests.page import a_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WIDTHS = (390, 1024, 1920)
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine's path"),
    # Playwright leaves its event loop's transport to the interpreter's end.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def an_experiment() -> experiment.ExperimentPage:
    lines = tuple(
        parts.Line(name=name, x=(1.0, 2.7, 1.4e6), y=(2.1, 2.2, 2.0), labels=("a", "b", "c"), style=style)
        for name, style in (("measured", "points"), ("a fit", "line"), ("both", "both"))
    )
    chart = parts.Chart(
        title="三國演義",
        x_label="parameters",
        y_label="bits per character",
        lines=lines,
        log_x=True,
        marked=(2.7, "knee"),
    )
    table = parts.Table(
        title="All of it",
        columns=("vocabulary", *(f"a rather long heading {i}" for i in range(12))),
        rows=tuple((f"row {i}", *(i * 10**j for j in range(12))) for i in range(5)),
        best=2,
        note="A note.",
    )
    return experiment.ExperimentPage(
        experiment="compare-vocabularies",
        title="Vocabularies compared",
        question="Which one?",
        created=NOW,
        answer=("This one.", "And that one not."),
        parts=(parts.Part(title="三國演義", findings=("Found.",), charts=(chart,), tables=(table,)),),
        settings={"steps": 3},
        lineage=("char: Model 12345678",),
    )


def a_comparison() -> experiment.ExperimentPage:
    folder = "/home/somebody/models/" + "a-pretrained-model-with-a-long-name" * 3
    scores = parts.Table(
        title="Scores",
        columns=("model", "bits per character", "against the best"),
        rows=(("own/champion", "2.1000", "the best"), (folder, "2.2000", "+0.1000 (+0.0900 to +0.1100)")),
        best=0,
    )
    passages = parts.Table(
        title=f"Where own/champion is better than {folder}",
        columns=("passage", "bits per character", "of the other"),
        rows=(("曹操敗走" * 20, "1.00", "9.00"), ("SEBASTIAN: Ha, ha, ha!\nSo, you're paid.\n" * 2, "1.00", "9.00")),
    )
    samples = parts.Part(title=f"Samples of {folder}", quotes=("One line,\nand another.", "x" * 500), language="en")
    return experiment.ExperimentPage(
        experiment="compare-models",
        title="Models compared on 三國演義",
        question="Which one?",
        created=NOW,
        answer=(f"{folder} needs 0.1000 (0.0900 to 0.1100) bits per character more.",),
        parts=(
            parts.Part(title="Scores", tables=(scores,)),
            parts.Part(title="Where they differ most", tables=(passages,)),
            samples,
        ),
        lineage=(f"{folder}: {folder}",),
    )


def an_index() -> index.IndexPage:
    standing = index.Standing(
        recipe="small", changed=("learning_rate 0.002", "steps 9"), model="c" * 64, bits_per_character=2.1931,
        sliding_bits_per_character=2.15, nats_per_token=1.52, vocabulary="char, 65", parameters=1_234_567,
        train_seconds=61, when=NOW, verdict="it is the first", link="objects/report/x/report.html", current=True,
        champion=True,
    )  # fmt: skip
    reigns = tuple(
        index.Reign(
            number=i, when=NOW.replace(day=20 + i), by="train-gpt", why="it needs less", model="c" * 64,
            recipe="small", bits_per_character=2.3 - i / 20, link="objects/report/x/report.html",
        )
        for i in (1, 2, 3)
    )  # fmt: skip
    board = index.Board(
        corpus="three-kingdoms", title="三國演義", language="zh-Hant", licence="public domain", characters=605_711,
        news="unchanged", reigns=reigns,
        standings=(standing, standing.model_copy(update={"champion": False, "current": False})),
    )  # fmt: skip
    empty = board.model_copy(update={"corpus": "new", "reigns": (), "standings": (), "characters": None})
    return index.IndexPage(
        created=NOW,
        boards=(board, empty),
        experiments=(index.ExperimentLink(name="experiments/x", title="X", answer=("So.",), when=NOW, link="x.html"),),
        schedule=(index.Scheduled(deployment="train-gpt/default", description="Train.", when=("0 3 * * * UTC",)),),
    )


# Milliseconds that a browser may take on a machine that is busy with other things.
PATIENCE = 600_000

PAGES = {
    "run": lambda: render(a_page()),
    "experiment": lambda: experiment.render(an_experiment()),
    "comparison": lambda: experiment.render(a_comparison()),
    "index": lambda: index.render(an_index()),
    "writing": lambda: writing.render(
        writing.WritingPage(name="own/champion", model="c" * 64, parameters=9, context=64, prompt="\n")
    ),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS, timeout=PATIENCE)
        yield opened
        opened.close()


@pytest.fixture(params=PAGES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.html"
    path.write_text(PAGES[request.param](), encoding="utf-8")
    return path


def new_page(browser: Any, **options: Any) -> Any:
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    return page


def opened(browser: Any, address: str, width: int = 1024, scheme: str = "light") -> tuple[Any, list[str]]:
    page = new_page(browser, viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url != address else None)
    page.goto(address)
    return page, said


def test_a_page_fits_every_width_asks_for_nothing_and_says_nothing_in_the_console(browser: Any, file: Path) -> None:
    assert file.stat().st_size < 2_000_000
    for width, scheme in zip(WIDTHS, itertools.cycle(["light", "dark"]), strict=False):
        page, said = opened(browser, file.as_uri(), width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Nothing that is seen sticks out of the page, but what can be scrolled in its own frame.
        out = page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, svg, defs")
            && e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML)"""
        )
        assert out == []
        assert said == []
        page.close()


def test_a_sample_keeps_its_line_breaks(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "comparison.html"
    path.write_text(PAGES["comparison"](), encoding="utf-8")
    page, _ = opened(browser, path.as_uri())
    assert page.locator("blockquote").first.evaluate("e => e.innerText") == "One line,\nand another."
    page.close()


def test_the_theme_can_be_chosen_and_text_stands_out_in_both(browser: Any, file: Path) -> None:
    page, said = opened(browser, file.as_uri())

    def contrast() -> float:
        ratio: float = page.evaluate(CONTRAST)
        return ratio

    background = "getComputedStyle(document.documentElement).backgroundColor"
    light, first = page.evaluate(background), contrast()
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(background) != light
    assert min(first, contrast()) >= 4.5, "WCAG AA"
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(background) == light and said == []
    page.close()


# The least contrast of any text against what lies behind it, by WCAG 2's formula; colours as the browser computes them.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  let least = 21;
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.disabled || e.closest("svg, script")) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""


def test_a_passage_shows_what_was_expected_under_the_pointer_and_to_the_arrow_keys(
    browser: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run.html"
    path.write_text(render(a_page()), encoding="utf-8")
    page, said = opened(browser, path.as_uri())
    page.hover("#passage span:nth-child(2)")
    assert "“說␣” cost 7.90 bits. Expected here: “⏎” 50.0 %" in page.text_content("#expected")
    page.focus("#passage")
    page.keyboard.press("ArrowLeft")
    assert "“卻” cost 0.40 bits" in page.text_content("#expected")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert "7.90 bits" in page.text_content("#expected")
    assert said == []
    page.close()


def test_every_table_and_drawing_has_a_name_and_every_field_a_label(browser: Any, file: Path) -> None:
    page, _ = opened(browser, file.as_uri())
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("svg, input, textarea, button, [role=region], [role=application]")]
        .filter((e) => e.getClientRects().length && !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby")
        || e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    page.close()


def test_points_that_lie_together_keep_their_names_apart(browser: Any, tmp_path: Path) -> None:
    places = {
        "char": (0.992, 7.2053), "bytes": (0.336, 9.1756), "bpe-512": (0.641, 7.8463), "bpe-2048": (1.028, 7.0784),
        "bpe-8192": (1.295, 7.3451), "bpe-char-8192": (1.291, 7.3201), "bpe-16384": (1.3, 7.33), "again": (0.337, 9.18),
    }  # fmt: skip
    lines = tuple(
        parts.Line(name=name, x=(x,), y=(y,), labels=(name,), style="points") for name, (x, y) in places.items()
    )
    chart = parts.Chart(title="Names", x_label="length", y_label="bits", lines=lines, log_x=True)
    page = an_experiment()
    shown = (page.parts[0].model_copy(update={"charts": (chart,)}),)
    (tmp_path / "names.html").write_text(experiment.render(page.model_copy(update={"parts": shown})), encoding="utf-8")
    for width in WIDTHS:
        opened = new_page(browser, viewport={"width": width, "height": 900})
        opened.goto((tmp_path / "names.html").as_uri())
        drawn = opened.evaluate(
            """() => [...document.querySelectorAll("svg text")].filter((e) => e.getClientRects().length)
            .map((e) => [e.textContent.trim(), e.getBoundingClientRect()])
            .map(([text, box]) => [text, box.x, box.y, box.right, box.bottom])"""
        )
        named = [one for one in drawn if one[0] in places]
        assert sorted(one[0] for one in named) == sorted(places)
        assert all(right < width for _, _, _, right, _ in named)
        for one, other in itertools.combinations(named, 2):
            apart = one[3] <= other[1] or other[3] <= one[1] or one[4] - 2 <= other[2] or other[4] - 2 <= one[2]
            assert apart, (width, one, other)
        opened.close()


def test_text_is_written_into_the_page_as_it_is_drawn(browser: Any, tmp_path: Path) -> None:
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, StreamingResponse
    from starlette.routing import Route

    def pieces() -> Iterator[str]:
        yield '{"text": "H", "likeliest": [["H", 0.9], ["h", 0.05]]}\n'
        yield '{"text": "\\n", "likeliest": [["x", 0.99], ["\\n", 0.01]]}\n{"text": "<b>", "likeliest": [["y", 0.5]]}\n'

    app = Starlette(
        routes=[
            Route("/", lambda _: HTMLResponse(PAGES["writing"]())),
            Route("/write", lambda _: StreamingResponse(pieces()), methods=["POST"]),
        ]
    )
    with serving(app) as address:
        page, _ = opened(browser, f"{address}/")
        page.get_by_role("button", name="Write").click()
        page.locator("#passage span").nth(2).wait_for()
        assert page.text_content("#passage") == "H\n<b>"
        page.hover("#passage span:nth-child(1)")
        assert "“H” 90.0 %, “h” 5.0 %" in page.text_content("#expected")
        assert page.evaluate("[...document.querySelectorAll('#passage span')].map((e) => e.className.slice(0, 2))") == [
            "b0", "b6", "b2",
        ]  # fmt: skip
        page.get_by_role("button", name="Go on from here").click()
        assert page.locator("#prompt").input_value().endswith("H\n<b>")
        page.close()


# Each would set `window.ran` where it is not escaped.
SCRIPTS = (
    "</title></style></script><script>window.ran = 1</script><!--",
    "\"'><img src=x onerror='window.ran = 1'><svg onload=window.ran=1> --> ]]>",
    "javascript:window.ran=1",
    "{{ 7 * 7 }}${window.ran=1}`<a href=javascript:window.ran=1>x</a><iframe srcdoc='<script>parent.ran=1</script>'>",
)


def poisoned(page: Any, text: str) -> Any:
    """The page with this text in each place that takes any text, but for addresses that we make ourselves."""
    document = page.model_dump()

    def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        if isinstance(value, str) and (not path or path[-1] != "link"):
            yield path
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from places(inner, (*path, key))
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                yield from places(inner, (*path, number))

    def changed(value: Any, path: tuple[Any, ...]) -> Any:
        if not path:
            return text
        key, *rest = path
        if isinstance(value, dict):
            return {**value, key: changed(value[key], tuple(rest))}
        return [changed(inner, tuple(rest)) if number == key else inner for number, inner in enumerate(value)]

    taken = 0
    for path in list(places(document)):
        other = changed(document, path)
        try:
            type(page).model_validate(other)
        except ValidationError:
            continue
        document, taken = other, taken + 1
    assert taken >= 3
    return type(page).model_validate(document)


POISONED = {
    "run": lambda text: render(poisoned(a_page(), text)),
    "experiment": lambda text: experiment.render(poisoned(an_experiment(), text)),
    "comparison": lambda text: experiment.render(poisoned(a_comparison(), text)),
    "index": lambda text: index.render(poisoned(an_index(), text)),
    "writing": lambda text: writing.render(
        poisoned(writing.WritingPage(name="own/champion", model="c", parameters=9, context=64, prompt="p"), text)
    ),
}


def require_no_script_but_ours(page: Any) -> None:
    """Nothing ran, and the page has one script, and nothing that could run: no handler, frame, or address of code."""
    # What waits for an answer of the browser, such as the error of an image, has come after two frames.
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.scripts.length") == 1
    assert (
        page.evaluate("document.querySelectorAll('iframe, object, embed, img, base, link, form[action]').length") == 0
    )
    found = page.evaluate(
        """() => [...document.querySelectorAll("*")].flatMap((e) => [...e.attributes].filter((a) =>
        a.name.startsWith("on") || /href|src|action/.test(a.name) && /^\\s*(javascript|data):/i.test(a.value))
        .map((a) => e.tagName + " " + a.name))"""
    )
    assert found == []


# So long names leave no room for the axes of a chart.
@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
@pytest.mark.parametrize("name", POISONED)
def test_no_text_of_a_page_runs(browser: Any, name: str, tmp_path: Path) -> None:
    for text in (" ".join(SCRIPTS), "javascript:window.ran=1"):
        path = tmp_path / "page.html"
        path.write_text(POISONED[name](text), encoding="utf-8")
        page, said = opened(browser, path.as_uri())
        require_no_script_but_ours(page)
        assert said == []  # neither a request nor a violation of the policy
        page.close()


def test_the_policy_stops_a_script_that_came_into_a_page(browser: Any, tmp_path: Path) -> None:
    """The second line of defence, for a text that was not escaped; also for a file from disk."""
    path = tmp_path / "page.html"
    inside = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'><base href='http://evil.example/'>"
    path.write_text(
        render(a_page()).replace("<main>", f"<main>{inside}<a id=evil href='javascript:window.ran=1'>x</a>")
    )
    page, said = opened(browser, path.as_uri())
    page.evaluate("document.getElementById('evil').click()")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("window.ran") is None
    assert not page.evaluate("document.baseURI.includes('evil')")
    assert any("Content Security Policy" in line for line in said)
    page.close()


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_a_corpus_full_of_scripts_runs_none_in_its_report_the_index_and_the_page_to_write(
    browser: Any, project: Path
) -> None:
    for number, script in enumerate(SCRIPTS):
        name = script.replace("/", "∕") + f"{number}.txt"
        text = "".join(f"{script} {n}\n{'the old bard sings ' * (n % 3 + 1)}\n" for n in range(120))
        (project / "texts" / name).write_text(text, encoding="utf-8")
    (project / "texts" / "own.txt").unlink()
    table = {
        "title": SCRIPTS[0],
        "licence": SCRIPTS[1],
        "source": {"path": "texts"},
        "documents": {"cut": "heading", "heading": "^</title>|^javascript:"},
        "published": [{"name": SCRIPTS[3], "bits_per_character": 2.0, "note": SCRIPTS[2]}],
    }
    (project / "corpora" / "own.toml").write_bytes(tomli_w.dumps(table).encode())
    settings = {
        "steps": 4,
        "leg_steps": 2,
        "width": 16,
        "context": 16,
        "batch": 4,
        "samples": 1,
        "sample_characters": 80,
    }
    outcome = train_gpt("own", "tiny", Overrides.model_validate(settings | {"prompt": SCRIPTS[0]}))
    page, said = opened(browser, Path(outcome.report).as_uri())
    require_no_script_but_ours(page)
    assert said == [] and SCRIPTS[0] in page.inner_text("h1")
    page.close()
    head = refs().head("own/champion")
    assert head is not None
    with serving(guarded(reports_app(), "127.0.0.1")) as address:
        page, _ = opened(browser, f"{address}/")
        require_no_script_but_ours(page)
        page.click("a[href*=report]")
        page.wait_for_url("**/report.html")
        require_no_script_but_ours(page)
        page.close()
    with serving(guarded(writing_app(SCRIPTS[3], Model(digest=head.digest)), "127.0.0.1")) as address:
        page, _ = opened(browser, f"{address}/")
        page.fill("#prompt", SCRIPTS[1])
        page.fill("#characters", "200")
        page.click("#go")
        page.wait_for_selector("#more:enabled")
        require_no_script_but_ours(page)
        page.close()
