"""What a training run hands back: names, figures and places, small enough for Prefect's own database."""

from pydantic import BaseModel, ConfigDict

from storage.handles import Checkpoint, Model, Report
from tasks.answers import Asking, refs
from tasks.recipes import Recipe
from tasks.reporting import html_of, page_of
from tasks.saying import say


class Outcome(BaseModel):
    """The end of a run. Losses are over the whole validation part."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    recipe: str
    trained: bool
    why: str
    nats_per_token: float
    bits_per_character: float
    baselines: dict[str, float]
    sample: str
    champion_moved: bool
    verdict: str
    champion: str
    model: str
    report: str


def outcome(corpus: str, recipe: Recipe, model: Model, report: Report, ask: Asking, legs: list[Checkpoint]) -> Outcome:
    """Sum up a run, and say it."""
    page = page_of(report)
    trained = ask.ran("train_leg")
    rebuilt = [f"{asked.handle} ({asked.rebuilt})" for asked in ask.asked if asked.rebuilt]
    if rebuilt:
        why = f"made again: {', '.join(rebuilt)}"
    elif trained:
        why = f"{sum(a.ran for a in ask.asked if a.task == 'train_leg')} of {len(legs)} legs had not been run before"
    else:
        why = (
            f"corpus unchanged, recipe unchanged: the vocabulary, the shards and all {len(legs)} legs "
            "were answered from the cache"
        )
    seat = refs().head(f"{corpus}/champion")
    summary = Outcome(
        corpus=corpus,
        recipe=recipe.name,
        trained=trained,
        why=why,
        nats_per_token=page.scores.nats_per_token,
        bits_per_character=page.scores.bits_per_character,
        baselines={baseline.name: baseline.bits_per_character for baseline in page.baselines},
        sample=page.samples[0].text if page.samples else "",
        champion_moved=page.verdict.moved,
        verdict=page.verdict.reason,
        champion=seat.digest if seat else "",
        model=model.digest,
        report=str(html_of(report)),
    )
    say(f"{'trained' if trained else 'nothing trained'}: {why}")
    say(f"{summary.nats_per_token:.4f} nats per token, {summary.bits_per_character:.4f} bits per character")
    say(f"champion {'moved' if summary.champion_moved else 'not moved'}: {summary.verdict}")
    return summary
