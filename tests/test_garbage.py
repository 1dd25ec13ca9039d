import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bardflow.storage.garbage import Collected, Policy, collect_garbage
from bardflow.storage.handles import Checkpoint, Corpus, Evaluation, Handle, Model, Report, Source, text_of
from bardflow.storage.lineage import lineage
from bardflow.storage.manifests import Origin, StoreError
from bardflow.storage.refs import Refs
from bardflow.storage.store import Store

# Names get the real time, so ages are measured from it.
NOW = datetime.now(UTC)


class Home(NamedTuple):
    store: Store
    refs: Refs

    def made(self, kind: type[Handle], text: str, at: str = "", **inputs: Handle) -> Handle:
        came = {name: text_of(handle) for name, handle in inputs.items()}
        origin = Origin(task="", inputs=came, spec={}, run=None, commit=None, packages={}, at=at, measured={})
        with self.store.draft() as draft:
            (draft.folder / "file").write_text(text)
            return self.store.keep(draft, kind, {}, origin)

    def move(self, name: str, handle: Handle, **notes: Any) -> None:
        self.refs.move(name, handle, after=self.refs.head(name), by="a test", why="", notes=notes)

    def model(self, text: str, days_ago: float = 0) -> list[Handle]:
        """A model and all that it was made from, sources first."""
        at = (NOW - timedelta(days=days_ago)).isoformat(timespec="seconds")
        source = self.made(Source, text, at)
        corpus = self.made(Corpus, text, at, source=source)
        begun = self.made(Checkpoint, text, at, corpus=corpus)
        leg = self.made(Checkpoint, text + "1" * 5000, at, checkpoint=begun, corpus=corpus)
        return [source, corpus, begun, leg, self.made(Model, text, at, checkpoint=leg)]

    def left(self) -> set[Handle]:
        return set(self.store.handles())

    def collect(self, *keep: Handle, dry_run: bool = False) -> Collected:
        return collect_garbage(self.store, self.refs, keep=keep, dry_run=dry_run)

    def apply(self, now: datetime | None = None, **policy: Any) -> Collected:
        return collect_garbage(self.store, self.refs, Policy(**policy), now=now, dry_run=False)

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.store.root.rglob("*") if path.is_file())


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
    before = home.bytes()
    assert home.collect().bytes == before - home.bytes() > 7000
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


def test_the_last_entries_of_a_name_and_what_is_young_stay(home: Home) -> None:
    reports = [home.made(Report, f"page {number}") for number in range(4)]
    for report in reports:
        home.move("a/small", report)
    young, old = home.model("b", days_ago=6.9), home.model("c", days_ago=7.1)
    later = NOW + timedelta(days=1000)
    assert set(home.apply(now=NOW, keep_last=2, keep_days=7).objects) == set(old), "all entries are young too"
    assert set(home.apply(now=later, keep_last=2, keep_days=7).objects) == {*reports[:2], *young}
    assert home.left() == set(reports[2:])


def test_within_a_budget_nothing_is_deleted_and_above_it_the_oldest_first(home: Home) -> None:
    models = [home.model(text, days_ago) for text, days_ago in (("a", 30), ("b", 20), ("c", 10))]
    home.move("a/champion", models[2][-1])
    full = home.bytes()
    assert home.apply(budget=full).objects == ()
    done = home.apply(budget=full - 1)
    assert len(done.objects) == 1 and set(done.objects) < set(models[0]), "no more than the budget needs"
    assert done.left == home.bytes() < full
    home.apply(budget=full * 3 // 4)
    assert home.left() >= {*models[1], *models[2]} and home.bytes() <= full * 3 // 4
    done = home.apply(budget=1)
    assert home.left() == set(models[2]) and done.records == () and done.left == home.bytes() > 1


def test_a_former_champion_over_the_budget_keeps_its_model_and_its_explanation(home: Home) -> None:
    old, new = home.model("a", 20), home.model("b", 10)
    scores = home.made(Evaluation, "scores", model=old[-1])
    home.move("a/champion", old[-1], evaluation=scores.digest)
    home.move("a/champion", new[-1])
    assert home.apply().records == (), "without a budget all of it stays"
    said = collect_garbage(home.store, home.refs, Policy(budget=1), dry_run=True)
    before = home.bytes()
    done = home.apply(budget=1)
    assert done == said and set(done.records) == set(old[:-1]) and done.left == home.bytes() == before - done.bytes
    assert [ancestor.handle for ancestor in lineage(home.store, old[-1])] == old
    for handle in (old[-1], scores, *new):
        assert home.store.damage(handle) is None
    for handle in old[:-1]:
        assert "a record" in str(home.store.damage(handle))
    assert home.apply(budget=1).bytes == 0
    assert home.model("a", 20) == old, "made again, each has its files again"
    assert all(home.store.damage(handle) is None for handle in old)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    models=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["champion", "small", ""])), max_size=6),
    last=st.integers(1, 3),
    days=st.sampled_from([0, 7, 30]),
    budget=st.none() | st.integers(0, 120_000),
)
def test_under_any_policy_champions_are_whole_and_explained(
    models: list[tuple[int, str]], last: int, days: int, budget: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Store(Path(folder)), Refs(Path(folder)))
        champions = []
        for number, (age, name) in enumerate(models):
            made = home.model(str(number), age)
            if name:
                home.move(f"a/{name}", made[-1])
            champions += [made] if name == "champion" else []
        done = home.apply(now=NOW, keep_last=last, keep_days=days, budget=budget)
        for made in champions:
            assert home.store.damage(made[-1]) is None
            assert [ancestor.handle for ancestor in lineage(home.store, made[-1])] == made
        if champions:
            assert all(home.store.damage(handle) is None for handle in champions[-1])
        assert done.left == (None if budget is None else home.bytes())
        if budget is not None and home.bytes() > budget:
            assert home.apply(now=NOW, keep_last=last, keep_days=days).objects == (), "all that is left is kept"
