"""A hyperparameter search that can be resumed: an Optuna study in a journal file in the home."""

import hashlib
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState
from prefect import task
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from bardflow.errors import BardError
from bardflow.home import home
from bardflow.pages.experiment import ExperimentPage
from bardflow.pages.parts import Cell, Chart, Line, Part, Table
from bardflow.storage.disk import read_or_none, write_whole
from bardflow.storage.handles import Checkpoint, Corpus, Evaluation, Model, Report, TokenShards
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.evaluation import scores_of
from bardflow.tasks.experiments import keep_experiment
from bardflow.tasks.recipes import FIELDS, Overrides, RecipeError, overrides_from
from bardflow.tasks.reporting import made_at
from bardflow.tasks.run import store
from bardflow.tasks.saying import say
from bardflow.toml import closest

# The first trials are never pruned, because later trials are compared with them.
NEVER_STOPPED = 4
# A trial whose process died is tried at most this often, because the trial may be the cause.
MOST_ATTEMPTS = 3
ATTEMPT, INTERRUPTED = "attempt", "interrupted"
# The possible endings of a trial with a score.
TO_THE_END = "to the end"
PATIENCE = "its loss no longer fell"
STOPPED = "stopped early"
optuna.logging.set_verbosity(optuna.logging.WARNING)


class SearchError(BardError):
    """No trial of the search has a score."""


class Range(BaseModel):
    """Numbers from `low` to `high`: integers if both are; with `log`, drawn uniformly on a logarithmic scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: int | FiniteFloat
    high: int | FiniteFloat
    log: bool = Field(default=False)

    @model_validator(mode="after")
    def _runs_upward(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"a range runs from a lower to a higher number (above 0 with log), but {self.low} to {self.high} was "
                "given"
            )
        return self


Space = dict[str, Range | list[Any]]


@dataclass(frozen=True)
class Tried:
    """A finished trial: its fields, its bits per character, the number of scored legs, and how it ended."""

    number: int
    fields: dict[str, Any]
    bits: float | None
    steps: int
    ending: str

    @property
    def said(self) -> str:
        """The fields as text, such as `learning_rate=0.002 layers=3`."""
        parts = (f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in sorted(self.fields.items()))
        return " ".join(parts)


class Search:
    """A study, which draws the fields of each trial, stores its score after each leg, and prunes bad trials.

    The same inputs (corpus text, recipe, overrides, space, seed) give the same study in any process. Finished trials
    are kept. A trial whose process died is repeated.

    Raises:
        RecipeError: a field does not exist, or does not accept a value or bound.
    """

    def __init__(self, text: Corpus, recipe: str, overrides: Overrides, space: Space, seed: int) -> None:
        for name, values in space.items():
            if name not in FIELDS:
                raise RecipeError(f"a recipe has no field {name!r}{closest(name, FIELDS)}; fields: {', '.join(FIELDS)}")
            for value in (values.low, values.high) if isinstance(values, Range) else values:
                overrides_from({name: value})
            if not isinstance(values, Range) and not values:
                raise RecipeError(f"the list of values for {name} is empty; give at least one")
        if not space:
            raise RecipeError("no field to search over was given; give some, such as learning_rate")
        inputs = {
            "text": text.digest,
            "recipe": recipe,
            "overrides": overrides.changes(),
            "space": {n: v.model_dump() if isinstance(v, Range) else v for n, v in sorted(space.items())},
            "seed": seed,
        }
        self.name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        self.space, self.seed = space, seed
        self._drawing, self._running = threading.Lock(), 0
        folder = home() / "searches"
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = folder / f"{self.name}.log"
        intact = store().copies.read(self.journal)
        if intact is not None and not (read_or_none(self.journal) or b"").startswith(intact):
            say(f"{self.journal} was damaged and is restored from its copy")
            write_whole(self.journal, intact, store().drafts)
        journal = str(self.journal)
        self.study = optuna.create_study(
            # The default lock uses a symbolic link, which some file systems lack.
            storage=JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal))),
            study_name=self.name,
            load_if_exists=True,
            direction="minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=NEVER_STOPPED),
        )
        for dead in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(dead.number, state=TrialState.FAIL)
            attempt = dead.user_attrs.get(ATTEMPT, 1) + (INTERRUPTED not in dead.user_attrs)
            if attempt > MOST_ATTEMPTS:
                say(f"trial {dead.number} was interrupted {MOST_ATTEMPTS} times and is left out")
                continue
            say(f"trial {dead.number} was interrupted and is repeated")
            self.study.enqueue_trial(dead.params, user_attrs={ATTEMPT: attempt})

    def trials(self, wanted: int) -> Iterator[Trial]:
        """Yield trials until `wanted` trials have finished, including those of earlier runs.

        Each of several threads can iterate; each trial is yielded once.
        """
        while (trial := self._next(wanted)) is not None:
            yield trial
            with self._drawing:
                self._running -= 1

    def _next(self, wanted: int) -> Trial | None:
        with self._drawing:
            if len(self.over()) + self._running >= wanted:
                return None
            # Each trial has its own seed, so that the sampler in a new process does not repeat its draws.
            self.study.sampler = optuna.samplers.TPESampler(
                seed=self.seed + len(self.study.trials), n_startup_trials=NEVER_STOPPED, multivariate=False
            )
            trial = self.study.ask()
            # Drawn before another thread changes the sampler.
            self.fields(trial)
            self._running += 1
            return trial

    def fields(self, trial: Trial) -> dict[str, Any]:
        """Draw the fields of a trial."""
        drawn: dict[str, Any] = {}
        for name, values in self.space.items():
            if not isinstance(values, Range):
                drawn[name] = trial.suggest_categorical(name, values)
            elif isinstance(values.low, int) and isinstance(values.high, int):
                drawn[name] = trial.suggest_int(name, values.low, values.high, log=values.log)
            else:
                drawn[name] = trial.suggest_float(name, values.low, values.high, log=values.log)
        return drawn

    def hopeless(self, trial: Trial, bits: float, steps: int) -> bool:
        """Store a trial's score after a leg, and return whether it is worse than half of the trials at that leg."""
        trial.report(bits, steps)
        return trial.should_prune()

    def interrupted(self, trial: Trial) -> None:
        """Record that the search was interrupted during this trial, so that it does not count as an attempt."""
        trial.set_user_attr(INTERRUPTED, True)

    def end(self, trial: Trial, bits: float | None, steps: int, ending: str) -> None:
        """Record how a trial ended. Without `bits` it could not be trained, but it counts as a trial."""
        trial.set_user_attr("steps", steps)
        trial.set_user_attr("ending", ending)
        if bits is None:
            self.study.tell(trial, state=TrialState.FAIL)
        elif ending == STOPPED:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, bits)
        with self._drawing:
            store().copies.write(self.journal, self.journal.read_bytes())

    def over(self) -> list[Tried]:
        """Return the finished trials in order."""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        # A failed trial without an ending was interrupted. It is repeated unless this was its last attempt.
        return [_tried(trial) for trial in ended if "ending" in trial.user_attrs or _given_up(trial)]


def _given_up(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(ATTEMPT, 1) >= MOST_ATTEMPTS and INTERRUPTED not in trial.user_attrs


def _tried(trial: FrozenTrial) -> Tried:
    cut_off = f"the process ended before the trial did, {MOST_ATTEMPTS} times: killed, or short of memory"
    return Tried(
        number=trial.number,
        fields=dict(trial.params),
        bits=trial.value,
        steps=trial.user_attrs.get("steps", 0),
        ending=trial.user_attrs.get("ending", cut_off),
    )


def bits_so_far(corpus: Corpus, leg: Checkpoint, shards: TokenShards) -> float:
    """Return a leg's validation loss in bits per character, which is comparable across vocabularies."""
    per_token: float = store().facts(leg)["validation_nats_per_token"]
    tokens: int = store().facts(shards)["tokens"]["validation"]
    characters: int = store().facts(corpus)["survey"]["validation_characters"]
    return per_token * tokens / characters / math.log(2)


@task(version="2", cache_policy=CACHE_BY_INPUTS)
def publish_search(
    corpus: Corpus,
    tried: list[str],
    reached: list[float],
    endings: list[str],
    model: Model,
    evaluation: Evaluation,
    failed: list[str],
    searched: str,
) -> Report:
    """Publish the report of a search: all trials, and the best one's score on the whole validation set.

    The first three lists have one item for each trial with a score. `failed` lists the other trials and their errors.
    """
    title = store().facts(corpus)["title"]
    order = sorted(range(len(tried)), key=lambda i: reached[i])
    best, scores = order[0], scores_of(evaluation)
    stopped = endings.count(STOPPED)
    answer = (
        f"{title}: the best of {len(tried)} trials is {tried[best]}, with {scores.bits_per_character:.4f} bits per "
        f"character. {stopped} were stopped early."
        + (f" {len(failed)} more could not be trained; their errors are listed." if failed else ""),
    )
    rows: list[tuple[Cell, ...]] = [(tried[i], f"{reached[i]:.4f}", endings[i]) for i in order]
    numbers = tuple(float(i + 1) for i in range(len(reached)))
    so_far = tuple(min(reached[: i + 1]) for i in range(len(reached)))
    chart = Chart(
        title="Every trial, and the best so far",
        x_label="trial",
        y_label="bits per character",
        lines=(
            Line(name="trial", x=numbers, y=tuple(reached), style="points"),
            Line(name="best so far", x=numbers, y=so_far, style="line"),
        ),
    )
    table = Table(
        title="Trials, the best first",
        columns=("fields", "bits per character", "ended"),
        rows=tuple(rows),
        best=0,
        note="Of the lowest leg, on the part of the validation text that legs are scored on. Chosen by that text, the "
        "best trial's figure flatters it a little.",
    )
    page = ExperimentPage(
        experiment="search",
        title=f"Hyperparameter search: {title}",
        question=f"Which values reach the fewest bits per character? Searched: {searched}.",
        created=made_at(evaluation),
        answer=answer,
        parts=(Part(title="Trials", findings=tuple(failed), charts=(chart,), tables=(table,)),),
        lineage=(f"the best: {model}",),
    )
    return keep_experiment(page)
