"""Look at every corpus's source and say what changed."""

from prefect import flow
from prefect.artifacts import create_table_artifact

from bard.errors import BardError
from bard.home import project_folder
from sources.spec import corpus_names, load_corpus
from tasks.answers import Asking
from tasks.champion import note_text
from tasks.corpus import clean_corpus, fetch_source
from tasks.saying import say


@flow(name="refresh-corpora", description="Fetch corpora, and say what changed.")
def refresh_corpora(corpora: list[str] | None = None) -> dict[str, str]:
    """Fetch and clean corpora; one that fails does not keep the others from being looked at.

    Args:
        corpora: names of files in `corpora/`; all of them when left out.

    Raises:
        BardError: a corpus could not be brought here; the message has each one's reason.
    """
    folder = project_folder() / "corpora"
    ask = Asking()
    news: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in corpora or corpus_names(folder):
        try:
            spec = load_corpus(name, folder)
            text = ask(clean_corpus, ask(fetch_source, spec), spec)
            news[name] = note_text(name, text, by="refresh-corpora")
        except BardError as error:
            failed[name] = str(error)
        say(f"{name}: {news.get(name) or failed[name]}")
    rows = [{"corpus": name, "news": said} for name, said in sorted((news | failed).items())]
    create_table_artifact(key="corpora", table=rows, description="What the last look at each corpus's source found")
    if failed:
        raise BardError("\n".join(f"{name}: {said}" for name, said in failed.items()))
    return news
