"""The same work for several corpora, of which one that fails does not keep the others from their turn."""

from collections.abc import Callable
from typing import TypeVar

from bardflow.errors import BardError
from bardflow.home import project_folder
from bardflow.sources.spec import CorpusSpec, corpus_names, load_corpus
from bardflow.tasks.saying import say

T = TypeVar("T")


def each_corpus(corpora: list[str] | None, work: Callable[[CorpusSpec], T]) -> tuple[dict[str, T], dict[str, str]]:
    """What came of each corpus, and the reasons of those that failed, by name; `None` is all corpora there are."""
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
    """End a run in which some corpora failed.

    Raises:
        BardError: some did; the message has each one's reason.
    """
    if failed:
        raise BardError("\n".join(f"{name}: {said}" for name, said in failed.items()))
