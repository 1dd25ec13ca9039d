"""Progress of long work where there is no terminal."""

import pytest

from bardflow.tasks import saying
from bardflow.tasks.saying import Progress, watched


def test_without_a_terminal_progress_is_a_log_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(saying, "say", said.append)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    monkeypatch.setattr(saying, "SECONDS_BETWEEN_LINES", float("inf"))
    with Progress("Downloading", "B") as progress:
        progress(10, 2_000)
    assert not said, "work that ends at once says nothing"
    monkeypatch.setattr(saying, "SECONDS_BETWEEN_LINES", -1)
    with Progress("Downloading", "B") as progress:
        progress(10, 2_000)
        progress(1_500)
    with Progress("Training", "step", 30) as progress:
        progress.advance(20, lambda: "loss 2.5")
    assert list(watched("abc", doing="Reading", unit="file")) == ["a", "b", "c"]
    assert said == [
        "Downloading: 10 of 2,000 bytes",
        "Downloading: 1,500 of 2,000 bytes",
        "Training: 20 of 30 steps, loss 2.5",
        *(f"Reading: {done} files" for done in (1, 2, 3)),
    ]
