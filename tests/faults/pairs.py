"""Two of everything at once: nothing is lost, and nothing is trained twice.

    python -m tests.faults.pairs --seconds 60

Eight processes work on one home: flow runs of one training on two workers, two `bard train` on a corpus with another
name and the same text, garbage collection again and again, a second `bard up`, which is refused, and two writers of one
champion's history. Afterwards, 8 processes add 1,000 entries to one history.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bardflow.storage.refs import Refs
from tests.faults.kills import BARD, DEPLOYMENT, FIELDS, PATIENCE_SECONDS, Project, Up, brought_up
from tests.project_up import free_port, wait_for

MOVER = """
import sys
from pathlib import Path
from bardflow.storage.handles import Model
from bardflow.storage.refs import RefMoved, Refs
refs, me, count = Refs(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
won = refused = 0
print("ready", flush=True)
sys.stdin.readline()
while won < count:
    try:
        refs.move("moves/champion", Model(digest=f"{won:064x}"), after=refs.head("moves/champion"), by=me, why="")
        won += 1
    except RefMoved:
        refused += 1
print(refused)
"""


def moves(home: Path, processes: int, count: int) -> int:
    """Let processes add `count` entries each to one history, check that none is lost, and return how many were refused.

    A refused entry is one that another process was faster with; its writer tries again.
    """
    command = [sys.executable, "-c", MOVER, str(home)]
    movers = [
        subprocess.Popen([*command, str(number), str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(processes)
    ]
    for mover in movers:
        assert mover.stdout is not None and mover.stdout.readline() == "ready\n"
    for mover in movers:
        assert mover.stdin is not None
        mover.stdin.write("go\n")
        mover.stdin.flush()
    refused = sum(int(mover.communicate(timeout=PATIENCE_SECONDS)[0]) for mover in movers)
    history = Refs(home).history("moves/champion")
    assert [entry.number for entry in history] == list(range(1, processes * count + 1))
    for number in range(processes):
        own = [int(entry.digest, 16) for entry in history if entry.by == str(number)]
        assert own == list(range(count)), f"process {number} lost an entry"
    return refused


def make_twin(project: Project) -> None:
    """Add a corpus with another name and the same text: its trainings need the same legs."""
    corpora = project.folder / "corpora"
    (corpora / "twin.toml").write_text((corpora / "own.toml").read_text())


def train_both(project: Project, seed: int) -> set[str]:
    """Train on both corpora at once by `bard train`, and return the digests of the models' weights."""
    weights = set()
    with ThreadPoolExecutor(2) as threads:
        processes = [project.train(seed, corpus) for corpus in ("own", "twin")]
        for out, said in threads.map(lambda process: process.communicate(timeout=PATIENCE_SECONDS), processes):
            assert out, said
            project.note_legs(said)
            weights.add(weights_of(project, json.loads(out)["model"]))
    return weights


def weights_of(project: Project, model: str) -> str:
    """Return the sha256 of a model's weights; a model also has a card, which names the corpus."""
    manifest = json.loads((project.home / "objects" / "model" / model / "manifest.json").read_text())
    return str(manifest["files"]["model.safetensors"]["sha256"])


@contextmanager
def again_and_again(command: list[str], project: Project, statuses: set[int]) -> Iterator[list[int]]:
    """Run a command again and again beside the work; yields the list of its exit statuses."""
    over, seen = threading.Event(), list[int]()

    def work() -> None:
        while not over.is_set():
            done = subprocess.run(command, env=project.environment, cwd=project.folder, capture_output=True, text=True)
            assert done.returncode in statuses, done.stderr
            seen.append(done.returncode)
            time.sleep(0.5)

    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(work)
        try:
            yield seen
        finally:
            over.set()
            working.result()


def two_flows(up: Up, seed: int) -> None:
    """Run the training twice at once as flow runs, and wait until both are Completed."""
    deployment = up.ask("GET", "/deployments/name/train-gpt/default", {})
    parameters = {"corpus": "own", "recipe": "tiny", "overrides": {**FIELDS, "seed": seed}}
    path = f"/deployments/{deployment['id']}/create_flow_run"
    runs = [up.ask("POST", path, {"parameters": parameters})["id"] for _ in range(2)]

    def ended(run: str) -> bool:
        state = up.ask("GET", f"/flow_runs/{run}", {})["state"]
        assert state["type"] not in ("FAILED", "CRASHED", "CANCELLED"), state
        return state["type"] == "COMPLETED"

    for run in runs:
        wait_for(lambda run=run: ended(run), "the flow run ends")
        logs = up.ask("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
        up.project.note_legs("\n".join(log["message"] for log in logs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--moves", type=int, default=1000)
    given = parser.parse_args()
    project = Project(Path(tempfile.mkdtemp(prefix="pairs-")) / "project")
    make_twin(project)
    # Without limits, so that the two workers run both flow runs at once.
    (project.folder / "prefect.yaml").write_text(DEPLOYMENT[: DEPLOYMENT.index("    concurrency_limit")])
    port = free_port()
    begun, rounds = time.monotonic(), 0
    with brought_up(project, port) as up:
        up.ask("PATCH", "/work_pools/bardflow", {"concurrency_limit": 4})
        worker = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", "bardflow"]
        second = subprocess.Popen(
            [*worker, "--name", "second", "--limit", "1"],
            env=project.environment | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"},
            cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with (
                again_and_again([*BARD, "gc"], project, {0}) as collections,
                again_and_again([*BARD, "up", "--port", str(free_port())], project, {1}) as refusals,
                ThreadPoolExecutor(2) as threads,
            ):
                while time.monotonic() - begun < given.seconds:
                    rounds += 1
                    flows = threads.submit(two_flows, up, rounds)
                    entries = threads.submit(moves, project.home / f"moves-{rounds}", 2, 50)
                    assert len(train_both(project, rounds)) == 1
                    flows.result(), entries.result()
        finally:
            second.kill()  # it ends by SIGINT, which processes of a shell's background jobs ignore; its runs have ended
            second.wait()
    print(
        f"{rounds} rounds in {time.monotonic() - begun:.0f} s beside {len(collections)} garbage collections and "
        f"{len(refusals)} refused `bard up`: {project.require_nothing_left()}"
    )
    begun = time.monotonic()
    refused = moves(project.home, 8, given.moves // 8)
    print(f"{given.moves} entries by 8 processes in {time.monotonic() - begun:.1f} s, {refused} refused, 0 lost")


if __name__ == "__main__":
    main()
