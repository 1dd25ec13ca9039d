"""Reading and cleaning the files of a corpus on a cluster, with the same text in the same order as in one process."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bardflow.engine.cluster import Cluster
from bardflow.engine.folders import Folder, cache_folder
from bardflow.errors import BardError
from bardflow.sources.documents import cleaned_units
from bardflow.sources.rows import RowCounts
from bardflow.sources.spec import CorpusSpec
from bardflow.sources.tally import Tally

# The bytes of files that a task reads, of which 2 for each process are on their way. A larger file is read in this
# process, block by block, so that no text is in memory as a whole.
TASK_BYTES = 2**23


class Read(NamedTuple):
    """What a task gives: the cleaned text of each file, chapter or row, and the counts."""

    texts: list[str]
    tallies: list[Tally]
    rows: RowCounts


@dataclass(frozen=True)
class UnitsOn:
    """`sources.documents.cleaned_units`, computed on a cluster. `source` has the files in its folder `within`.

    If a process or its node dies, Ray computes its tasks again elsewhere.
    """

    cluster: Cluster
    source: Folder
    within: str

    def __call__(
        self, spec: CorpusSpec, folder: Path, files: Sequence[Path], tallies: Sequence[Tally], rows: RowCounts
    ) -> Iterator[Iterator[str]]:
        """Yield the units in order.

        Raises:
            CorpusError: as `cleaned_units`; the units before are yielded.
        """
        import ray

        work: Any = ray.remote(num_cpus=self.cluster.cpus, max_retries=10)(read_files)
        running: deque[tuple[list[Path], Any]] = deque()

        def first() -> Iterator[Iterator[str]]:
            paths, task = running.popleft()
            found: Read | None = None if task is None else ray.get(task)
            if found is None:
                # A task that refuses a file is done again here, so that all before it, and the error, are the same.
                yield from cleaned_units(spec, folder, paths, tallies, rows)
                return
            for ours, theirs in zip(tallies, found.tallies, strict=True):
                ours.add(theirs)
            rows.rows += found.rows.rows
            rows.without_value += found.rows.without_value
            yield from (iter([text]) for text in found.texts)

        for paths, large in tasks(files):
            names = [path.relative_to(folder).as_posix() for path in paths]
            running.append((paths, None if large else work.remote(self.source, self.within, spec, names)))
            if len(running) > 2 * self.cluster.processes:
                yield from first()
        while running:
            yield from first()


def tasks(files: Sequence[Path]) -> Iterator[tuple[list[Path], bool]]:
    """Yield lists of files with up to TASK_BYTES in all, in order; a larger file is alone, and marked so."""
    paths: list[Path] = []
    size = 0
    for path in files:
        here = path.stat().st_size
        if paths and size + here > TASK_BYTES:
            yield paths, False
            paths, size = [], 0
        if here > TASK_BYTES:
            yield [path], True
        else:
            paths.append(path)
            size += here
    if paths:
        yield paths, False


def read_files(source: Folder, within: str, spec: CorpusSpec, names: list[str]) -> Read | None:
    """Read and clean files in a process of the cluster; None if one of them is refused."""
    folder = source.here(cache_folder()) / within
    tallies, rows = [Tally() for _ in spec.cleaning], RowCounts()
    try:
        units = cleaned_units(spec, folder, [folder / name for name in names], tallies, rows)
        return Read(["".join(unit) for unit in units], tallies, rows)
    except BardError:
        return None
