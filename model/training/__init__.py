"""Training: batches, optimizers, the training loop, and checkpoints as folders."""

from bardflow.model.training.batches import Tokens, TooFewTokens
from bardflow.model.training.checkpoints import load_model, load_snapshot, save_model, save_snapshot
from bardflow.model.training.loop import Snapshot, Step, Training, TrainingSpec, begin, best_leg, hopeless, restore
from bardflow.model.training.optimizers import OPTIMIZERS, STACKED, STACKED_ON_A_CARD

__all__ = [
    "OPTIMIZERS",
    "STACKED",
    "STACKED_ON_A_CARD",
    "Snapshot",
    "Step",
    "Tokens",
    "TooFewTokens",
    "Training",
    "TrainingSpec",
    "begin",
    "best_leg",
    "hopeless",
    "load_model",
    "load_snapshot",
    "restore",
    "save_model",
    "save_snapshot",
]
