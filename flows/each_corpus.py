"""Running the same work for several corpora; if one fails, the others still run."""

from collections.abc import Callable
from typing import TypeVar

from bardflow.errors import BardError
from bardflow.home import project_folder
from bardflow.sources.corpora import corpus_names, load_corpus
from bardflow.sources.spec import AnyCorpus
from bardflow.tasks.saying import say

T = TypeVar("T")


def each_corpus(corpora: list[str] | None, work: Callable[[AnyCorpus], T]) -> tuple[dict[str, T], dict[str, str]]:
    """Run `work` for each corpus (None: all of them), and return the results and the error messages by name."""
    folder = project_folder() / "corpora"
    done: dict[str, T] = {}
    failed: dict[str, str] = {}
    for name in dict.fromkeys(corpus_names(folder) if corpora is None else corpora):
        try:
            done[name] = work(load_corpus(name, folder))
        except BardError as error:
            failed[name] = str(error)
            say(f"{name}: {error}")
    return done, failed


def require_all(failed: dict[str, str]) -> None:
    """Fail the run if some corpora failed.

    Raises:
        BardError: some corpora failed; the message has each error.
    """
    if failed:
        raise BardError("\n".join(f"{name}: {said}" for name, said in failed.items()))
