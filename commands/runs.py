"""Flow runs whose process was killed, is lost, or does not obey a cancellation.

`bard up` looks after them. Where the worker was started without it, call `python -m bardflow.commands.runs` beside it,
with the names of the work pools; with none, it is the pool of `bard up`.
"""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil

from bardflow.commands.prefect_api import (
    POOL,
    UNDER_WAY,
    FlowRun,
    api,
    ask,
    end_tasks,
    has_pool,
    is_ours,
    make_automation,
    reschedule,
    scheduled,
)
from bardflow.commands.processes import FLOW_RUN, UpError, environment_of, kill

# A crashed run is run again after each of these pauses; after one more crash it is Failed.
PAUSES_SECONDS = (10, 30, 90)
CRASHED_DAYS = 1  # a run that crashed earlier stays as it is
LOOK_SECONDS = 4.0
CANCEL_SECONDS = 6  # what Prefect's worker has to end a cancelled run, which takes it 1-3 s
LOST_SECONDS = 120  # a run without a process is started or reported by its worker before

VMSTAT = Path("/proc/vmstat")
KILLED = re.compile(r"status code:? (-9|137)\b")
OUT_OF_MEMORY = (
    "Out of memory: the kernel ended the flow's process. Give training a memory limit: set BARDFLOW_MEMORY_LIMIT=free "
    "for `bard up`, or a number such as 2GiB, or set the run's parameter memory_limit."
)


class MemoryWatch:
    """Tells whether the kernel has ended processes for want of memory; Linux counts them (oom_kill, proc_vmstat(5))."""

    def __init__(self, counters: Path = VMSTAT) -> None:
        self._counters = counters
        self._seen = self._count()

    def ran_out(self) -> bool:
        """Return whether the kernel has ended a process for want of memory since the last call."""
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        try:
            counted = re.search(r"^oom_kill (\d+)$", self._counters.read_text(), re.MULTILINE)
        except OSError:
            return 0  # not Linux
        return int(counted[1]) if counted else 0


def look_after(client: httpx.Client, memory: MemoryWatch, pools: Sequence[str] = (POOL,)) -> Iterator[str]:
    """Look after the runs of these work pools once, and yield a line for each run that was changed.

    - A crashed run is run again, at most three times, after 10, 30 and 90 s; after the next crash it is Failed.
    - A run that is being cancelled and still has a process after 6 s loses the process and is Cancelled.
    - A run on this machine that has been under way for 120 s or more and has no process is run again at once.

    The last two hold only for runs of the worker of `bard up`. A worker for containers cancels and watches its own.

    No run is run again while its process lives.

    Raises:
        UpError: the server refused a request or did not answer.
    """
    question = {
        "work_pools": {"name": {"any_": list(pools)}},
        "flow_runs": {"state": {"type": {"any_": [*UNDER_WAY, "CRASHED"]}}},
        "sort": "EXPECTED_START_TIME_DESC",
        "limit": 200,  # the server's maximum for one request
    }
    runs = [FlowRun.model_validate(run) for run in ask(client, "/flow_runs/filter", question)]
    now = datetime.now(UTC)
    least = {"CRASHED": 0, "CANCELLING": CANCEL_SECONDS}
    late = [
        run for run in runs if (now - run.state.timestamp).total_seconds() > least.get(run.state_type, LOST_SECONDS)
    ]
    if not late:
        return
    alive: dict[str | None, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        alive.setdefault(environment_of(process).get(FLOW_RUN), []).append(process)
    for run in late:
        if run.state_type == "CRASHED":
            if run.id not in alive and now - run.state.timestamp < timedelta(days=CRASHED_DAYS):
                yield run_again(client, run, why(run.state.message or "", memory))
        elif run.state_type == "CANCELLING":
            if is_ours(run):
                kill(alive.get(run.id, []))
                reschedule(client, [run])
                yield f"Run {run.name} is cancelled; its process was killed, because it did not end in time."
        elif is_ours(run) and run.id not in alive and reschedule(client, [run]):
            yield f"Run {run.name} had no process any more; it is run again."


def why(message: str, memory: MemoryWatch) -> str:
    """Return why a run crashed: the state's message, or that memory ran out, with the way to limit it."""
    return OUT_OF_MEMORY if KILLED.search(message) and memory.ran_out() else message


def run_again(client: httpx.Client, run: FlowRun, reason: str) -> str:
    """Set a crashed run back to Scheduled, or to Failed after too many crashes, and return a line that says so."""
    response = client.get("/flow_run_states/", params={"flow_run_id": run.id}).raise_for_status()
    crashes = sum(state["type"] == "CRASHED" for state in response.json())
    end_tasks(client, run)
    if crashes > len(PAUSES_SECONDS):
        message = f"It crashed {crashes} times and is not run again. {reason}"
        state = {"type": "FAILED", "message": f"{message} `prefect flow-run retry {run.id}` resumes it."}
        line = f"Run {run.name} failed: {message}"
    else:
        pause = PAUSES_SECONDS[crashes - 1]
        message = f"It crashed and is run again in {pause} s ({crashes} of {len(PAUSES_SECONDS)} times). {reason}"
        state = scheduled(run, "AwaitingRetry", message, run.state.timestamp + timedelta(seconds=pause))
        line = f"Run {run.name}: {message}"
    # Forced, as in `reschedule`.
    ask(client, f"/flow_runs/{run.id}/set_state", {"state": state, "force": True})
    return line


def prepare(client: httpx.Client, pools: Sequence[str]) -> None:
    """Check that the pools exist, and let the server mark runs as Crashed whose heartbeats stop.

    Raises:
        UpError: the server refused a request or did not answer.
        SystemExit: it has no work pool of this name.
    """
    for pool in pools:
        if not has_pool(client, pool):
            raise SystemExit(f"There is no work pool {pool!r} at {client.base_url}. `prefect work-pool ls` lists them.")
    make_automation(client)


def main(pools: Sequence[str]) -> None:
    """Look after the runs of these pools of the server at PREFECT_API_URL, for ever; without its answer, try again."""
    if not (url := os.environ.get("PREFECT_API_URL")):
        raise SystemExit("Set PREFECT_API_URL to the address of Prefect's server, which ends in /api.")
    memory = MemoryWatch()
    prepared, failed = False, ""
    while True:
        try:
            with api(url) as client:
                if not prepared:
                    prepare(client, pools)
                    prepared = True
                for line in look_after(client, memory, pools):
                    print(line, flush=True)
            failed = ""
        except (UpError, httpx.HTTPError) as error:
            if str(error) != failed:  # once, not every few seconds
                failed = str(error)
                print(f"{url}: {failed.rstrip('.')}; trying again", flush=True)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:] or [POOL])
