"""The shortest training, which tests of flows share."""

from bardflow.flows.train_gpt import train_gpt
from bardflow.outcome import Outcome
from bardflow.tasks.recipes import Overrides

QUICK = {
    "steps": 4,
    "leg_steps": 2,
    "layers": 1,
    "width": 16,
    "context": 16,
    "batch": 4,
    "samples": 1,
    "sample_characters": 20,
}


def quickly(**changes: object) -> Overrides:
    """The changes to a recipe that make a training as short as that, and others; None keeps what the recipe has.

    A training that begins from a model has its shape.
    """
    shape = {"layers": None, "width": None} if "base_model" in changes else {}
    given = {name: value for name, value in (QUICK | shape | changes).items() if value is not None}
    return Overrides.model_validate(given)


def run(corpus: str = "own", **changes: object) -> Outcome:
    """Train quickly on a corpus of the present project."""
    return train_gpt(corpus, "tiny", quickly(**changes))
