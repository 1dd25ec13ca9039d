import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bardflow.storage.garbage import Collected, collect_garbage
from bardflow.storage.handles import Checkpoint, Corpus, Evaluation, Handle, Model, Report, Source, text_of
from bardflow.storage.lineage import lineage
from bardflow.storage.refs import Refs
from bardflow.storage.store import Origin, Store, StoreError


class Home(NamedTuple):
    store: Store
    refs: Refs

    def made(self, kind: type[Handle], text: str, **inputs: Handle) -> Handle:
        came = {name: text_of(handle) for name, handle in inputs.items()}
        origin = Origin(task="", inputs=came, spec={}, run=None, commit=None, packages={}, at="", measured={})
        with self.store.draft() as draft:
            (draft.folder / "file").write_text(text)
            return self.store.keep(draft, kind, {}, origin)

    def move(self, name: str, handle: Handle, **notes: Any) -> None:
        self.refs.move(name, handle, after=self.refs.head(name), by="a test", why="", notes=notes)

    def model(self, text: str) -> list[Handle]:
        """A model and all that it was made from, sources first."""
        source = self.made(Source, text)
        corpus = self.made(Corpus, text, source=source)
        begun = self.made(Checkpoint, text, corpus=corpus)
        leg = self.made(Checkpoint, text + "1", checkpoint=begun, corpus=corpus)
        return [source, corpus, begun, leg, self.made(Model, text, checkpoint=leg)]

    def left(self) -> set[Handle]:
        return set(self.store.handles())

    def collect(self, *keep: Handle, dry_run: bool = False) -> Collected:
        return collect_garbage(self.store, self.refs, keep=keep, dry_run=dry_run)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(Store(tmp_path), Refs(tmp_path))


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_no_name_reaches_is_removed_and_the_rest_stays_whole(home: Home) -> None:
    champion, stranger = home.model("a"), home.model("b")
    home.move("a/champion", champion[-1])
    collected = home.collect()
    assert set(collected.objects) == set(stranger)
    assert home.left() == set(champion)
    assert all(home.store.damage(handle) is None for handle in champion)
    assert [ancestor.handle for ancestor in lineage(home.store, champion[-1])] == champion
    assert home.collect() == Collected((), 0, ())


def test_a_dry_run_says_the_same_and_removes_nothing(home: Home) -> None:
    everything = set(home.model("a"))
    dead = home.store.drafts / f"{dead_process()}-x"
    dead.mkdir()
    (dead / "half").write_bytes(b"1234567")
    said = home.collect(dry_run=True)
    assert set(said.objects) == everything
    assert home.left() == everything
    assert said.drafts == (dead,)
    assert dead.is_dir()
    assert home.collect() == said
    assert home.left() == set()


def test_the_bytes_are_those_on_the_disk(home: Home) -> None:
    home.model("a")
    (home.store.drafts / f"{dead_process()}-moving-x").write_bytes(b"1234567")
    files = [path for folder in (home.store.objects, home.store.drafts) for path in folder.rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files)
    assert home.collect().bytes == on_disk
    assert not any(path.is_file() for path in home.store.objects.rglob("*"))


def test_what_the_notes_of_a_head_name_stays(home: Home) -> None:
    model = home.model("a")
    evaluation = home.made(Evaluation, "scores", model=model[-1])
    report = home.made(Report, "page")
    home.move("a/small", report, model=model[-1].digest, evaluation=evaluation.digest, against=3)
    champion = home.made(Model, "m")
    of_champion = home.made(Report, "other page")
    home.move("a/champion", champion, recipe="small", report=of_champion.digest)
    assert home.collect().objects == ()
    assert home.left() == {*model, evaluation, report, champion, of_champion}


def test_all_that_notes_may_name_is_reached(home: Home) -> None:
    kinds = {"model": Model, "report": Report, "evaluation": Evaluation, "rival": Evaluation}
    noted = {key: home.made(kind, f"the {key} in a note") for key, kind in kinds.items()}
    report = home.made(Report, "page")
    home.move("a/small", report, **{key: handle.digest for key, handle in noted.items()}, verdict={"moved": True})
    home.move("b/small", report, rival=None)
    assert home.collect().objects == ()
    assert home.left() == {report, *noted.values()}


def test_every_champion_there_ever_was_stays_for_a_rollback_and_older_reports_go(home: Home) -> None:
    old, new = home.model("a"), home.model("b")
    old_report, new_report = home.made(Report, "old"), home.made(Report, "new")
    of_old = home.made(Evaluation, "scores")
    home.move("a/champion", old[-1], evaluation=of_old.digest)
    home.move("a/champion", new[-1])
    home.move("a/small", old_report)
    home.move("a/small", new_report)
    assert home.collect().objects == (old_report,)
    home.move("a/champion", old[-1])
    assert [ancestor.handle for ancestor in lineage(home.store, old[-1])] == old
    assert home.store.damage(of_old) is None


def test_what_the_caller_keeps_stays_with_all_it_was_made_from(home: Home) -> None:
    under_way = home.model("a")[:4]
    gone = home.model("b")
    home.collect(under_way[-1])
    assert home.left() == set(under_way)
    assert home.left().isdisjoint(gone)


def test_names_of_objects_that_are_gone_are_no_obstacle(home: Home) -> None:
    model = home.model("a")
    home.move("a/champion", model[-1], report="ab" * 32)
    home.move("b/text", Corpus(digest="cd" * 32))
    home.store.discard(model[0])
    assert home.collect().objects == ()
    assert home.left() == set(model[1:])


def test_where_it_is_not_known_what_is_reached_nothing_is_removed(home: Home) -> None:
    model, stranger = home.model("a"), home.model("b")
    home.move("a/champion", model[-1])
    origin = home.store.folder(model[3]) / "origin.json"
    origin.chmod(0o644)
    origin.write_bytes(b"{")
    with pytest.raises(StoreError, match=rf"{model[3].short} is damaged \(origin.json is missing or cannot be read"):
        home.collect()
    assert home.left() == {*model, *stranger}


def test_a_damaged_object_that_nothing_reaches_is_removed(home: Home) -> None:
    for name in ("manifest.json", "origin.json"):
        handle = home.made(Corpus, name)
        (home.store.folder(handle) / name).unlink()
    assert len(home.collect().objects) == 2
    assert home.left() == set()


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_stay(home: Home) -> None:
    with home.store.draft() as draft:
        (draft.folder / "half").write_bytes(b"1")
        dead = home.store.drafts / f"{dead_process()}-abc"
        (dead / "nested").mkdir(parents=True)
        (dead / "nested" / "half").write_bytes(b"12")
        others = [home.store.drafts / f"{os.getppid()}-discarded-x", home.store.drafts / "not ours"]
        for other in others:
            other.mkdir()
        assert home.collect() == Collected((), 2, (dead,))
        assert set(home.store.drafts.iterdir()) == {draft.folder, *others}


def test_a_draft_of_a_killed_writer_is_collected(home: Home) -> None:
    script = """if True:
        import os, signal, sys
        from pathlib import Path
        from bardflow.storage.store import Store
        with Store(Path(sys.argv[1])).draft() as draft:
            (draft.folder / "first").write_bytes(b"1")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", script, home.store.root])
    assert len(list(home.store.drafts.iterdir())) == 1
    assert len(home.collect().drafts) == 1
    assert list(home.store.drafts.iterdir()) == []


def test_an_empty_home_has_nothing_to_collect(home: Home) -> None:
    assert home.collect() == Collected((), 0, ())
