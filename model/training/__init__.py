"""Training: batches, optimizers, the training loop, and checkpoints as folders."""

from bardflow.model.training.batches import Tokens, TooFewTokens
from bardflow.model.training.checkpoints import NotAModel, load_model, load_snapshot, save_model, save_snapshot, spec_of
from bardflow.model.training.loop import Snapshot, Step, Training, begin, best_leg, hopeless, restore
from bardflow.model.training.optimizers import OPTIMIZERS, STACKED, STACKED_ON_A_CARD
from bardflow.model.training.pretrained import BaseDoesNotFit, begin_from, begun_spec, load_pretrained, spec_at
from bardflow.model.training.spec import TrainingSpec
from bardflow.model.training.team import Team, TooManyWorkers, joined, require_rows

__all__ = [
    "OPTIMIZERS",
    "STACKED",
    "STACKED_ON_A_CARD",
    "BaseDoesNotFit",
    "NotAModel",
    "Snapshot",
    "Step",
    "Team",
    "Tokens",
    "TooFewTokens",
    "TooManyWorkers",
    "Training",
    "TrainingSpec",
    "begin",
    "begin_from",
    "begun_spec",
    "best_leg",
    "hopeless",
    "joined",
    "load_model",
    "load_pretrained",
    "load_snapshot",
    "require_rows",
    "restore",
    "save_model",
    "save_snapshot",
    "spec_at",
    "spec_of",
]
