"""Two homes with one remote: no move of a name is lost, and a killed push or pull leaves nothing half.

    python -m tests.faults.remote --moves 500 --kills 20

Four processes, two on each home, add entries to one history through a real server of the S3 protocol. Then a push and a
pull of 40 artifacts are killed (SIGKILL) at random times and run again, until one of each ends by itself.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from bardflow.storage.refs import Refs
from bardflow.storage.remote import Remote
from bardflow.storage.remote.syncing import verify_remote
from bardflow.storage.store import Store
from bardflow.storage.verifying import verify
from tests.artifacts import content, keep, origin
from tests.object_storage import BUCKET, CREDENTIALS, Storage, running_storage

NAME = "moves/champion"
OPEN = """
import sys
from pathlib import Path
from bardflow.storage.refs import RefMoved, Refs
from bardflow.storage.remote import Remote
from bardflow.storage.store import Store
from bardflow.storage.remote.syncing import pull, push
root, address, url = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
remote = Remote(root, address, url, True)
print("ready", flush=True)
"""
MOVER = """
refs, me, count = Refs(root, remote), sys.argv[4], int(sys.argv[5])
handle = next(Store(root).handles())
sys.stdin.readline()
won = refused = 0
while won < count:
    try:
        refs.move("moves/champion", handle, after=refs.head("moves/champion"), by=me, why="", notes={"number": won})
        won += 1
    except RefMoved:
        refused += 1
print(refused)
"""
PUSHER, PULLER = "\npush(root, remote)\n", "\npull(root, remote)\n"


def started(program: str, root: Path, storage: Storage, prefix: str, *more: str) -> "subprocess.Popen[str]":
    """A process that has imported everything."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN + program, str(root), f"s3://{BUCKET}/{prefix}", storage.url, *more],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | storage.environment(prefix),
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def moves(folder: Path, storage: Storage, count: int) -> int:
    """Let two processes on each of two homes share `count` moves of one name; return how many were refused.

    Afterwards both homes have the same history, in which each process finds its own moves in order.
    """
    homes, each = [folder / "a", folder / "b"], count // 4
    movers = []
    for number in range(4):
        root = homes[number % 2]
        keep(Store(root))
        movers.append(started(MOVER, root, storage, "moves", str(number), str(each)))
    for mover in movers:
        assert mover.stdin is not None
        mover.stdin.write("go\n")
        mover.stdin.flush()
    refused = sum(int(mover.communicate()[0]) for mover in movers)
    assert [mover.returncode for mover in movers] == [0] * 4
    first, second = (
        Refs(root, Remote(root, f"s3://{BUCKET}/moves", storage.url, True)).history(NAME) for root in homes
    )
    assert first == second
    assert [entry.number for entry in first] == list(range(1, 4 * each + 1))
    own = defaultdict(list)
    for entry in first:
        own[entry.by].append(entry.notes["number"])
    assert dict(own) == {str(number): list(range(each)) for number in range(4)}
    assert not list(verify_remote(homes[0], Remote(homes[0], f"s3://{BUCKET}/moves", storage.url, True)))
    return refused


def kills(folder: Path, storage: Storage, count: int, chance: random.Random) -> tuple[int, int]:
    """Kill a push and then a pull up to `count` times each; return how often each was killed before it ended."""
    a, b = folder / "from", folder / "to"
    store, refs = Store(a), Refs(a)
    before = None
    for number in range(40):
        files = {"large": bytes([number]) * 300_000, "small": b"s"}
        before = keep(store, files, origin(**({} if before is None else {"before": before})))
        if number % 8 == 7:
            refs.point(NAME, before, by="me", why=lambda entry: "")
    remote = Remote(a, f"s3://{BUCKET}/kills", storage.url, True)

    def harmful() -> list[object]:
        return [harm for harm in verify_remote(a, remote) if harm.harmful]

    pushed = killed(PUSHER, a, storage, count, chance, harmful)
    assert not list(verify_remote(a, remote)), "and nothing unfinished is left"
    pulled = killed(PULLER, b, storage, count, chance, lambda: [f for f in verify(b) if f.harmful])
    assert Refs(b).history(NAME) == refs.history(NAME)
    for handle in store.handles():
        assert content(Store(b).folder(handle)) == content(store.folder(handle))
    return pushed, pulled


def killed(program: str, root: Path, storage: Storage, count: int, chance: random.Random, harms: object) -> int:
    """Run a program until it ends by itself, and kill it after a random time before; nothing may be half each time."""
    assert callable(harms)
    for number in range(count + 1):
        process = started(program, root, storage, "kills")
        if number < count:
            time.sleep(chance.uniform(0, 0.6))
            process.kill()
        process.communicate()
        if process.returncode == 0:
            return number
        assert number < count
        assert not (found := harms()), f"after kill {number}: {found}"
    raise AssertionError


def main() -> None:
    """Run the long form, and print its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--moves", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    os.environ.update(CREDENTIALS)
    with tempfile.TemporaryDirectory() as name, running_storage(Path(name) / "served") as storage:
        os.environ["AWS_ENDPOINT"] = storage.url
        began = time.monotonic()
        refused = moves(Path(name), storage, given.moves)
        took = time.monotonic() - began
        print(
            f"{given.moves} moves by 4 processes on 2 homes: none lost, {refused} refused and tried again, {took:.0f} s"
        )
        pushed, pulled = kills(Path(name), storage, given.kills, random.Random(given.seed))
        print(f"a push killed {pushed} times and a pull killed {pulled} times: nothing half, the same 40 artifacts")


if __name__ == "__main__":
    main()
