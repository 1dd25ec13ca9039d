"""Scores of a model on a text, and comparisons with baselines and with other models."""

from bardflow.model.scoring import baselines, coding, memorisation
from bardflow.model.scoring.bf16 import Rounded, charges_in_bf16
from bardflow.model.scoring.causal import CausalModel, NotScorable, generate, open_causal, quiet, tokenized
from bardflow.model.scoring.coding import compress, decompress
from bardflow.model.scoring.comparison import CONFIDENCE, Charges, Comparison, compare
from bardflow.model.scoring.held_out import (
    Guess,
    by_character,
    characters_started,
    charges,
    charges_both_ways,
    guesses,
    score,
    total,
)
from bardflow.model.scoring.memorisation import VERBATIM_CHARACTERS, verbatim

__all__ = [
    "CONFIDENCE",
    "VERBATIM_CHARACTERS",
    "CausalModel",
    "Charges",
    "Comparison",
    "Guess",
    "NotScorable",
    "Rounded",
    "baselines",
    "by_character",
    "characters_started",
    "charges",
    "charges_both_ways",
    "charges_in_bf16",
    "coding",
    "compare",
    "compress",
    "decompress",
    "generate",
    "guesses",
    "memorisation",
    "open_causal",
    "quiet",
    "score",
    "tokenized",
    "total",
    "verbatim",
]
