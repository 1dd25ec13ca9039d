"""The guard: a process that ends what a command started, if the command is killed or does not stop in time.

Its standard input is a pipe from the command. The kernel closes the pipe when the command ends in any way, also by
SIGKILL. While the command lives, Python's signal handler writes the number of each signal into the pipe at once, even
while the command is in code that runs no Python (`signal.set_wakeup_fd`).
"""

import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from bardflow.commands.processes import ENDING, kill, kill_all, lives, supervised_by

STOP_SECONDS = 13  # from a signal to SIGKILL; with starting and killing processes, all has ended within 15 s


def main(lock: Path, pid: int) -> None:
    """Wait until the process `pid` ends or should have ended, then kill all processes that it started."""
    with suppress(psutil.NoSuchProcess):
        wait_for(psutil.Process(pid))
    kill_all(lambda: supervised_by(lock))


def wait_for(owner: psutil.Process) -> None:
    """Wait until the owner ends; kill it if it lives 13 s after a signal.

    The owner is also looked at each second, because a process that it forked may keep the pipe open after it.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    deadline: float | None = None
    while lives(owner):
        if select.select([0], [], [], 1)[0]:
            received = os.read(0, 64)
            if not received:
                break
            if deadline is None and any(number in ENDING for number in received):
                deadline = time.monotonic() + STOP_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            kill([owner])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
