"""The report's section about duplicates in a corpus."""

from bardflow.pages.parts import Part, Table
from bardflow.sources.duplicates import PERMUTATIONS, SHINGLE_TOKENS, THRESHOLD, Duplicates
from bardflow.storage.handles import Corpus, Evaluation, Model
from bardflow.tasks.run import store


def duplicates_section(_model: Model, _evaluation: Evaluation, corpus: Corpus) -> Part | None:
    """Return the report's section about duplicates, or None if the corpus does not count them."""
    facts = store().facts(corpus)
    if "duplicates" not in facts:
        return None
    found = Duplicates.model_validate(facts["duplicates"])
    table = Table(
        title="Duplicates",
        columns=("documents that repeat another one", "exact", "near"),
        rows=(
            ("in the training set", found.training.exact, found.training.near),
            ("in the validation set", found.validation.exact, found.validation.near),
            ("in the training set, of the validation set", found.across.exact, found.across.near),
        ),
        note=f"Near duplicates share at least {100 * THRESHOLD:.0f} % of their {SHINGLE_TOKENS}-grams, "
        f"estimated by MinHash with {PERMUTATIONS} hashes."
        + (" An example, the start of both documents:" if found.example else ""),
    )
    quotes = (found.example.first, found.example.second) if found.example else ()
    return Part(title="Duplicates", findings=(said(found),), tables=(table,), quotes=quotes, language=facts["language"])


def said(found: Duplicates) -> str:
    """Say how many documents are duplicates, and what was done with them."""
    compared = f"{found.documents:,} documents were compared"
    if not found.total:
        return f"{compared}, and none repeats another one."
    counted = f"{found.total:,} of them, with {found.characters:,} characters, repeat another one"
    if found.dropped:
        return f"{compared}. {counted}. They were dropped, so no document of the training set is in the validation set."
    leak = f" {found.across.total:,} are in both sets, so the score is too good." if found.across.total else ""
    return f"{compared}. {counted}. They were kept.{leak}"
