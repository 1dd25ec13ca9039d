"""The report's section about a mixture: what each corpus gives to it, and the score on each corpus."""

import math

from bardflow.pages.parts import Cell, Part, Table
from bardflow.pages.wording import score, share
from bardflow.sources.mixing import MixedPart
from bardflow.storage.handles import Corpus, Evaluation, Model
from bardflow.tasks.evaluation import charges_of
from bardflow.tasks.run import store


def mixture_section(_model: Model, evaluation: Evaluation, corpus: Corpus) -> Part | None:
    """Return the report's section about a mixture, or None if the corpus has a source of its own."""
    facts = store().facts(corpus)
    if "mixture" not in facts:
        return None
    fields = MixedPart.model_fields
    parts = [MixedPart(**{name: fact[name] for name in fields}) for fact in facts["mixture"]]
    rows = tuple((*row(part), bits) for part, bits in zip(parts, bits_per_part(evaluation, parts), strict=True))
    table = Table(
        title="Mixture",
        columns=("corpus", "weight", "documents", "training set", "share", "validation set", "bits per character"),
        rows=rows,
        note="The weight is how many times the training text of a corpus stands in the training set. Sizes of sets are "
        "in characters, and repeated documents count as often as they stand in the mixture. The bits per "
        "character are over the corpus's own part of the validation set, in the disjoint windows of the whole score.",
    )
    return Part(title="Mixture", tables=(table,))


def row(part: MixedPart) -> tuple[Cell, ...]:
    """Return the cells of a corpus in the table."""
    return (
        part.corpus,
        part.weight,
        part.documents,
        part.train_characters,
        share(part.train_share),
        part.validation_characters,
    )


def bits_per_part(evaluation: Evaluation, parts: list[MixedPart]) -> list[str]:
    """Return the bits per character on each corpus's part of the validation set, in order; empty if there is none."""
    charged, bits, start = charges_of(evaluation), [], 0
    for part in parts:
        of_part = charged[start : start + part.validation_characters]
        bits.append(score(float(of_part.mean(dtype="float64")) / math.log(2)) if len(of_part) else "")
        start += part.validation_characters
    return bits
