"""Fetch and clean corpora, and log what changed in their texts."""

from prefect import flow
from prefect.artifacts import create_table_artifact

from bardflow.flows.each_corpus import each_corpus, require_all
from bardflow.flows.parameters import Corpora
from bardflow.flows.text import prepared_text
from bardflow.sources.spec import AnyCorpus
from bardflow.tasks.champion import note_text
from bardflow.tasks.run import Run
from bardflow.tasks.saying import say


@flow(name="refresh-corpora", description="Fetch corpora, and say what changed.")
def refresh_corpora(corpora: Corpora | None = None) -> dict[str, str]:
    """Fetch and clean corpora, and return what changed in each text; if one fails, the others still run.

    Args:
        corpora: The corpora to fetch: names of files in `corpora/` without `.toml`. If left out, all of them.

    Raises:
        BardError: a corpus could not be fetched; the message has each error.
    """
    with Run() as run:

        def look(spec: AnyCorpus) -> str:
            text = prepared_text(run, spec)
            said = note_text(spec.name, text, by="refresh-corpora")
            say(f"{spec.name}: {said}")
            return said

        news, failed = each_corpus(corpora, look)
    rows = [{"corpus": name, "news": said} for name, said in sorted((news | failed).items())]
    create_table_artifact(key="corpora", table=rows, description="What the last look at each corpus's source found")
    require_all(failed)
    return news
