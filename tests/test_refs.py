import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from bardflow.storage.handles import Corpus, Handle, Model, Report, Vocabulary
from bardflow.storage.manifests import Origin, StoreError
from bardflow.storage.refs import Entry, RefMoved, Refs, resolve
from bardflow.storage.store import Store

NAME = "three-kingdoms/champion"
ORIGIN = Origin(task="make@1", inputs={}, spec={}, run=None, commit=None, packages={}, at="", measured={})


def model(number: int) -> Model:
    return Model(digest=f"{number:064x}")


def move(refs: Refs, handle: Handle, *, name: str = NAME) -> Entry:
    return refs.move(name, handle, after=refs.head(name), by="a test", why="to see")


@pytest.fixture
def refs(tmp_path: Path) -> Refs:
    return Refs(tmp_path)


def test_a_name_points_where_it_was_last_moved(refs: Refs) -> None:
    assert refs.head(NAME) is None
    assert refs.history(NAME) == []
    assert refs.names() == []
    first = move(refs, model(1))
    second = refs.move(
        NAME, Report(digest="ab" * 32), after=first, by="you", why="better", notes={"model": "x", "n": 1}
    )
    assert refs.head(NAME) == second
    assert (second.number, second.handle, second.notes) == (2, Report(digest="ab" * 32), {"model": "x", "n": 1})
    assert refs.history(NAME) == [first, second]
    assert Refs(refs.folder.parent).history(NAME) == [first, second]


def test_history_is_append_only_and_a_rollback_is_one_more_move(refs: Refs) -> None:
    move(refs, model(1))
    folder = refs.folder / NAME
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    move(refs, model(2))
    move(refs, model(1))
    assert [entry.handle for entry in refs.history(NAME)] == [model(1), model(2), model(1)]
    assert [entry.number for entry in refs.history(NAME)] == [1, 2, 3]
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.items() <= after.items()
    assert sorted(after) == ["000001.json", "000002.json", "000003.json"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    assert list(refs.drafts.iterdir()) == []


def test_history_keeps_its_order_past_ten_moves(refs: Refs) -> None:
    for number in range(12):
        move(refs, model(number))
    assert [entry.handle for entry in refs.history(NAME)] == [model(number) for number in range(12)]
    assert refs.head(NAME) == refs.history(NAME)[-1]


def test_of_two_movers_that_saw_the_same_head_the_second_is_refused(refs: Refs) -> None:
    seen = move(refs, model(1))
    won = refs.move(NAME, model(2), after=seen, by="first", why="")
    for late in (seen, None):
        with pytest.raises(RefMoved, match=f"{NAME} was changed by another run"):
            refs.move(NAME, model(3), after=late, by="second", why="")
    assert refs.head(NAME) == won
    assert len(refs.history(NAME)) == 2


@pytest.mark.parametrize("free", [True, False])
def test_of_many_threads_with_the_same_head_exactly_one_wins(refs: Refs, free: bool) -> None:
    seen = None if free else move(refs, model(0))
    together = Barrier(8)

    def mover(number: int) -> Entry | None:
        together.wait()
        try:
            return refs.move(NAME, model(number), after=seen, by=str(number), why="")
        except RefMoved:
            return None

    with ThreadPoolExecutor(8) as threads:
        (won,) = [entry for entry in threads.map(mover, range(1, 9)) if entry]
    assert refs.head(NAME) == won
    assert len(refs.history(NAME)) == (1 if free else 2)


MOVER = """
import sys
from pathlib import Path
from bardflow.storage.handles import Model
from bardflow.storage.refs import RefMoved, Refs
refs, me, won = Refs(Path(sys.argv[1])), sys.argv[2], 0
print("ready", flush=True)
sys.stdin.readline()
while won < 25:
    try:
        refs.move("a/b", Model(digest=f"{won:064x}"), after=refs.head("a/b"), by=me, why="")
        won += 1
    except RefMoved:
        pass
"""

# The kernel refuses this process and its children the calls `link` and `linkat`, as it does on FAT: a seccomp filter
# (seccomp(2)) of four instructions, or five: load the call's number, compare, allow, or refuse with EPERM.
NO_LINKS = """
import ctypes, errno, os, platform, struct
calls = {"x86_64": (86, 265), "aarch64": (37,)}[platform.machine()]
program = [(0x20, 0, 0, 0), *((0x15, len(calls) - n, 0, call) for n, call in enumerate(calls))]
program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | errno.EPERM)]
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]
kernel = ctypes.CDLL(None, use_errno=True)
assert kernel.prctl(38, 1, 0, 0, 0) == 0
filter = Program(len(program), b"".join(struct.pack("HBBI", *line) for line in program))
assert kernel.prctl(22, 2, ctypes.byref(filter), 0, 0) == 0, os.strerror(ctypes.get_errno())
"""
filters = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


@pytest.mark.parametrize(
    "before", ["", pytest.param(NO_LINKS, marks=pytest.mark.skipif(not filters, reason="needs Linux's seccomp"))]
)
def test_processes_that_move_one_name_lose_no_move_with_hard_links_and_without(refs: Refs, before: str) -> None:
    movers = [
        subprocess.Popen(
            [sys.executable, "-c", before + MOVER, str(refs.folder.parent), me],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in "xyz"
    ]
    for mover in movers:
        assert mover.stdout
        mover.stdout.readline()
    for mover in movers:
        assert mover.stdin
        mover.stdin.write("go\n")
        mover.stdin.flush()
    for mover in movers:
        mover.communicate()
    assert [mover.returncode for mover in movers] == [0, 0, 0]
    history = refs.history("a/b")
    assert [entry.number for entry in history] == list(range(1, 76))
    for me in "xyz":
        assert [entry.handle for entry in history if entry.by == me] == [model(number) for number in range(25)]
    assert refs.names() == ["a/b"]
    assert list(refs.drafts.iterdir()) == []


def test_to_point_somewhere_is_done_whoever_moves_the_name_meanwhile(refs: Refs) -> None:
    together = Barrier(8)

    def pointer(number: int) -> list[bool]:
        together.wait()
        return [
            refs.point(NAME, model(number), by=str(number), why=lambda head: f"after {head and head.number}").moved
            for _ in range(10)
        ]

    with ThreadPoolExecutor(8) as threads:
        moved = sum(map(sum, threads.map(pointer, range(8))))
    history = refs.history(NAME)
    assert len(history) == moved >= 8
    assert [entry.why for entry in history] == ["after None", *(f"after {n}" for n in range(1, moved))]
    last = history[-1]
    assert refs.point(NAME, last.handle, by="", why=lambda head: "").moved is False
    assert refs.history(NAME) == history


@pytest.mark.parametrize(
    "name",
    ["", "champion", "/champion", "a/", "a//b", "../a/b", "a/../b", "a/.b", "A/b", "a b/c", "a/b\n", "三國/champion"],
)
def test_bad_names_are_refused(refs: Refs, name: str) -> None:
    refused = "is not a name; a name looks like three-kingdoms/champion"
    for look in (refs.head, refs.history):
        with pytest.raises(StoreError, match=refused):
            look(name)
    with pytest.raises(StoreError, match=refused):
        refs.move(name, model(1), after=None, by="a test", why="")
    assert not refs.folder.exists()


def test_a_name_may_lie_below_another(refs: Refs) -> None:
    move(refs, model(1), name="a/b")
    move(refs, model(2), name="a/b/c")
    assert refs.names() == ["a/b", "a/b/c"]
    assert [len(refs.history(name)) for name in refs.names()] == [1, 1]


def test_a_move_with_a_number_that_is_not_finite_is_refused(refs: Refs) -> None:
    with pytest.raises(StoreError, match="only finite numbers"):
        refs.move(NAME, model(1), after=None, by="", why="", notes={"loss": float("nan")})
    assert refs.head(NAME) is None
    assert refs.names() == []


def test_a_move_that_cannot_be_read_is_an_error_that_names_its_file(refs: Refs) -> None:
    move(refs, model(1))
    (refs.folder / NAME / "000002.json").write_bytes(b'{"number": 2')
    for look in (refs.head, refs.history):
        with pytest.raises(StoreError, match=r"three-kingdoms/champion/000002\.json is not an entry of a name"):
            look(NAME)


def test_a_ref_is_a_name_or_the_beginning_of_a_digest(refs: Refs, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.draft() as draft:
        (draft.folder / "file").write_bytes(b"x")
        handle = store.keep(draft, Vocabulary, {}, ORIGIN)
    move(refs, handle)
    assert resolve(store, refs, NAME) == handle
    assert resolve(store, refs, handle.short) == handle


@pytest.mark.parametrize("ref", ["three-kingdoms/champions", "three-kingdoms", "0000", "Three-Kingdoms/champion", ""])
def test_a_ref_that_names_nothing_is_an_error_that_lists_the_names(refs: Refs, tmp_path: Path, ref: str) -> None:
    with pytest.raises(StoreError, match=r"Names in this store: none yet; `make train` makes the first"):
        resolve(Store(tmp_path), refs, ref)
    move(refs, model(1))
    move(refs, Corpus(digest="ab" * 32), name="synthetic/text")
    with pytest.raises(StoreError, match=r"Names in this store: synthetic/text, three-kingdoms/champion") as caught:
        resolve(Store(tmp_path), refs, ref)
    assert repr(ref) in str(caught.value)


@pytest.mark.parametrize("number", [1, 2])
def test_a_changed_or_deleted_entry_is_never_read(refs: Refs, number: int) -> None:
    for each in (1, 2):
        move(refs, model(each))
    path = refs.folder / NAME / f"{number:06}.json"
    whole = path.read_text()
    path.chmod(0o644)
    path.write_text(whole.replace(f"{number:064x}", f"{number + 1:064x}"))
    with pytest.raises(StoreError, match=f"{path.name} is damaged .* `bard verify --repair` restores it"):
        refs.history(NAME)
    path.unlink()
    for look in (refs.head, refs.history):
        with pytest.raises(StoreError, match=f"{path.name} is missing, an entry of the name {NAME}"):
            look(NAME)
    assert refs.names() == [NAME]
