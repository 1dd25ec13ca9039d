"""Fetching the files of a corpus into a draft. It imports neither Prefect nor torch."""

import os

from bardflow.home import home, project_folder
from bardflow.sources.fetch import Fetched, fetch
from bardflow.sources.spec import CorpusSpec
from bardflow.storage.layout import RAW
from bardflow.storage.store import Draft
from bardflow.tasks.saying import Progress


def fetch_into(draft: Draft, corpus: CorpusSpec) -> Fetched:
    """Fetch the raw files of a corpus into the folder RAW of a draft, from the mirror CORPORA_MIRROR if it has them.

    Raises:
        sources.fetch.FetchError, ChecksumError, CorpusError: as `sources.fetch.fetch`.
    """
    with Progress(f"fetching {corpus.name}", "B") as progress:
        return fetch(
            corpus,
            draft.folder / RAW,
            downloads=home() / "downloads",
            mirror=os.environ.get("CORPORA_MIRROR") or None,
            progress=progress,
            project=project_folder(),
        )
