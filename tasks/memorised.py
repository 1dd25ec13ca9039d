"""Memorised text: the share of a model's samples that occurs word for word in the training set."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bardflow.model.scoring import VERBATIM_CHARACTERS, verbatim
from bardflow.pages.parts import Part, Table
from bardflow.pages.wording import share
from bardflow.storage.documents import read_end, read_text
from bardflow.storage.handles import Corpus, Evaluation, Model
from bardflow.tasks.run import store

MEMORISED = "memorised.json"
# Of a longer training set, only the end is searched.
SEARCHED_CHARACTERS = 2**23


class Memorised(BaseModel):
    """Shares of characters in verbatim stretches of at least `characters` each, and the longest stretches.

    `validation_*` are for text of the same length from the start of the validation set. `searched_characters` is the
    length of the searched end of the training set, or None if all of it was searched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    characters: int
    sampled_share: float
    sampled_longest: str
    validation_share: float
    validation_longest: str
    searched_characters: int | None = None


def find_memorised(samples: Iterable[str], text: Path, train_characters: int) -> Memorised:
    """Search the training set of the corpus in folder `text` for the samples, and for text of the validation set."""
    samples = list(samples)
    train = "".join(read_end(text, "train", SEARCHED_CHARACTERS))[-SEARCHED_CHARACTERS:]
    length, genuine = sum(map(len, samples)), ""
    for piece in read_text(text, "validation"):
        genuine = (genuine + piece)[:length]
        if len(genuine) == length:
            break
    found = [verbatim(sample, train) for sample in samples]
    reference = verbatim(genuine, train)
    return Memorised(
        characters=VERBATIM_CHARACTERS,
        sampled_share=sum(f.share * len(sample) for f, sample in zip(found, samples, strict=True)) / length,
        sampled_longest=max((f.longest for f in found), key=len),
        validation_share=reference.share,
        validation_longest=reference.longest,
        searched_characters=len(train) if len(train) < train_characters else None,
    )


def memorised_section(_model: Model, evaluation: Evaluation, corpus: Corpus) -> Part | None:
    """Return the report's section about memorised text, or None if there are no samples."""
    path = store().folder(evaluation) / MEMORISED
    if not path.is_file():
        return None
    found = Memorised.model_validate_json(path.read_bytes())
    searched = (
        f", of which the last {found.searched_characters:,} characters were searched"
        if found.searched_characters is not None
        else ""
    )
    table = Table(
        title="Memorised",
        columns=("text", "in verbatim stretches", "longest verbatim stretch"),
        rows=(
            ("samples", share(found.sampled_share), f"{len(found.sampled_longest)} characters"),
            ("validation set", share(found.validation_share), f"{len(found.validation_longest)} characters"),
        ),
        note=f"A verbatim stretch has at least {found.characters} characters and occurs word for word in the training "
        f"set{searched}. The start of the validation set, as long as the samples, shows how much is common anyway."
        + (" The longest stretch of the samples:" if found.sampled_longest else ""),
    )
    quotes = tuple(text for text in (found.sampled_longest,) if text)
    return Part(title="Memorised", tables=(table,), quotes=quotes, language=store().facts(corpus)["language"])
