"""The text of a corpus, used by all flows: fetched and cleaned, and mixed if the corpus is a mixture."""

from bardflow.home import project_folder
from bardflow.sources.corpora import load_parts
from bardflow.sources.spec import AnyCorpus, CorpusSpec
from bardflow.storage.handles import Corpus
from bardflow.tasks.corpus import clean_corpus, fetch_source, mix_corpora
from bardflow.tasks.run import Run


def prepared_text(run: Run, corpus: AnyCorpus) -> Corpus:
    """Fetch and clean the text of a corpus; for a mixture, do this for each part and mix the texts."""
    if isinstance(corpus, CorpusSpec):
        return run(clean_corpus, run(fetch_source, corpus), corpus)
    parts = [prepared_text(run, part) for part in load_parts(corpus, project_folder() / "corpora")]
    return run(mix_corpora, parts, corpus)
