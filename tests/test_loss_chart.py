"""Laws of the drawing of a run's losses."""

import re
from itertools import pairwise

import pytest

from bardflow.pages.loss_chart import MOST_POINTS, Series, Times, loss_chart, thinned
from bardflow.pages.run import (
    CurvePoint,
    render,
)
from tests.page import a_page, words


def test_the_charts_take_every_colour_from_the_page_and_name_themselves() -> None:
    document = render(a_page(parts=()))
    charts = re.findall(r"<svg.*?</svg>", document, re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        assert not re.search(r"#[0-9a-fA-F]{6}|rgb\(|font-family", chart)
        assert "var(--train)" in chart and "var(--validation)" in chart
        assert 'role="img"' in chart and "<title" in chart and "lowest validation loss at step 20" in chart
        for label in ("training step", "training time (s)", "nats per token", "bits per character"):
            assert f">{label}</text>" in chart


def test_a_long_training_stays_a_small_page_and_says_that_points_are_means() -> None:
    curve = tuple(
        CurvePoint(
            step=step,
            seconds=step * 3.0,
            train_nats=5 + (step * 7919 % 97) / 97,
            validation_nats=5.5 if step % 500 == 0 else None,
            learning_rate=0.001,
        )
        for step in range(20_000)
    )
    document = render(a_page(curve=curve, best_step=0))
    assert len(document.encode()) < 200_000
    assert "Each training point is the mean of 50 measured ones." in words(document)
    assert "training time (h)" in document


def test_thinning_keeps_the_mean_and_never_more_points_than_it_says() -> None:
    series = Series(list(range(1000)), [float(step % 2) for step in range(1000)])
    thin, block = thinned(series)
    assert block == 3 and len(thin.steps) == len(thin.nats) <= MOST_POINTS
    assert thin.steps[0] == 1 and thin.nats[0] == pytest.approx(1 / 3)
    assert thinned(Series([1, 2], [3.0, 4.0])) == (Series([1, 2], [3.0, 4.0]), 1)


def test_a_slow_start_does_not_pile_the_time_labels_up() -> None:
    # 50 of 60 seconds pass before the first step, as when a model is compiled.
    times = Times([0, 100], [50.0, 60.0])
    chart = loss_chart(Series([], []), Series([0, 100], [4.0, 3.0]), times, 100, 1.44, name="slow", width=400)
    places = [float(x) for x in re.findall(r'x="([\d.]+)" y="[\d.]+" transform="[^"]+">\d+</text>', chart)]
    assert len(places) > 4
    rows: dict[str, list[float]] = {}
    for x, y in re.findall(r'text-anchor: middle" x="([\d.]+)" y="([\d.]+)" transform="[^"]+">[\d,]+</text>', chart):
        rows.setdefault(y, []).append(float(x))
    assert len(rows) == 2
    for row in rows.values():
        assert all(right - left > 25 for left, right in pairwise(row))


def test_a_run_of_one_point_or_none_still_has_a_page() -> None:
    one = (CurvePoint(step=0, seconds=0, validation_nats=8.3, learning_rate=0),)
    assert "8.3000 nats per token at step 0" in words(render(a_page(curve=one, best_step=0)))
    bare = words(render(a_page(curve=(), samples=(), lineage=(), baselines=())))
    assert "No validation loss was recorded" in bare and "No samples were drawn" in bare
