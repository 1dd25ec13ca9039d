"""`bard` from outside: what a person types, what comes back, and what a killed run leaves behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from bardflow.commands import cli
from bardflow.storage.store import Store
from tests.conftest import CHECKOUT, make_project, own_text, served_by

SETTINGS = ("steps=90", "leg_steps=30", "samples=1", "sample_characters=40", "vocabulary_byte_fallback=always")
ARGUMENTS = ["train", "own", "--recipe", "tiny", *(word for text in SETTINGS for word in ("--set", text))]


class Said(NamedTuple):
    code: int
    out: str
    err: str


def environment(project: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CORPORA_"))}
    return kept | {"BARDFLOW_PROJECT": str(project), "BARDFLOW_HOME": str(project / "home")} | more


def typed(project: Path, *arguments: str, **more: str) -> Said:
    """Run `bard` as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bardflow.commands.cli", *arguments],
        capture_output=True, text=True, cwd=CHECKOUT, env=environment(project, **more), timeout=600,
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)


def test_the_commands_are_known_before_a_large_library_is_imported() -> None:
    large = ("httpx", "numpy", "pydantic", "prefect", "torch", "pyarrow", "datasets", "tokenizers")
    code = f"import sys, bardflow.commands.cli; print([name for name in {large} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, server_url: str) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """A project in which one model was trained, what `--json` said, and the log on standard error."""
    project = make_project(tmp_path_factory.mktemp("trained") / "project")
    with served_by(project / "home", server_url):
        said = typed(project, *ARGUMENTS, "--json")
        assert said.code == 0, said.err
        yield project, json.loads(said.out), said.err


@pytest.fixture
def bard(
    trained: tuple[Path, dict[str, Any], str],
    prefect_server: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Any]:
    """Call the command line in this process, in the trained project."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    monkeypatch.setenv("BARDFLOW_PROJECT", str(trained[0]))
    monkeypatch.setenv("BARDFLOW_HOME", str(trained[0] / "home"))
    monkeypatch.delenv("CORPORA_MIRROR", raising=False)

    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["bard", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return Said(int(end.value.code or 0), out, err)

    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: trained[0] / "home" / "results"}):
        yield call


@pytest.fixture
def elsewhere(bard: Any, tmp_path: Path, server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another project, in which nothing was trained; `bard` is called there."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    project = make_project(tmp_path / "project")
    monkeypatch.setenv("BARDFLOW_PROJECT", str(project))
    monkeypatch.setenv("BARDFLOW_HOME", str(project / "home"))
    results = {PREFECT_LOCAL_STORAGE_PATH: project / "home" / "prefect" / "results"}
    with served_by(project / "home", server_url), temporary_settings(results):
        yield project


def test_a_training_ends_with_scores_a_sample_the_report_and_the_champion(
    trained: tuple[Path, dict[str, Any], str],
) -> None:
    _, outcome, story = trained
    assert outcome["trained"] and outcome["champion_moved"]
    assert outcome["nats_per_token"] > 0 and outcome["bits_per_character"] > 0
    assert "xz -9" in outcome["baselines"]
    assert len(outcome["sample"]) == 40
    assert Path(outcome["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "Traceback" not in story and "ERROR" not in story


def test_a_repeated_training_trains_nothing_also_after_garbage_collection(
    trained: tuple[Path, dict[str, Any], str], bard: Any
) -> None:
    another = bard(*ARGUMENTS, "--set", "steps=2", "--set", "leg_steps=2")  # takes the name own/tiny over
    assert another.code == 0, another.err
    assert bard(*ARGUMENTS).code == 0  # and gives it back: no name refers to the other run now
    planned = json.loads(bard("gc", "--dry-run", "--json").out)
    collected = json.loads(bard("gc", "--json").out)
    assert collected["objects"] == planned["objects"] != []
    said = bard(*ARGUMENTS)
    assert said.code == 0 and "missing" not in said.err, said.err
    assert "nothing trained" in said.out and "corpus unchanged" in said.out
    assert f"{trained[1]['bits_per_character']:.4f} bits per character" in said.out
    assert "xz -9" in said.out and "report " in said.out and "champion " in said.out


def test_artifacts_open_without_this_project(trained: tuple[Path, dict[str, Any], str]) -> None:
    import datasets

    store = Store(trained[0] / "home")
    handles = {h.kind: h for h in store.handles()}
    tokens = datasets.load_from_disk(str(store.folder(handles["token-shards"])))
    tokenizer = Tokenizer.from_file(str(store.folder(handles["model"]) / "tokenizer.json"))
    ids = [i for row in tokens["train"]["input_ids"] for i in row]
    ids += [i for row in tokens["validation"]["input_ids"] for i in row]
    assert tokenizer.decode(ids) == own_text()
    with safe_open(store.folder(handles["model"]) / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" in weights.keys()  # noqa: SIM118 - not a dictionary


def test_no_pickle_is_kept_anywhere(trained: tuple[Path, dict[str, Any], str]) -> None:
    for path in (trained[0] / "home").rglob("*"):
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".bin"}
        if path.is_file() and "results" in path.parts and "copies" not in path.parts:
            json.loads(path.read_text())


def test_path_show_and_explain_lead_from_a_name_to_the_source(
    bard: Any, trained: tuple[Path, dict[str, Any], str]
) -> None:
    model = trained[1]["model"]
    folder = bard("path", "own/champion").out.strip()
    assert folder.endswith(model) and (Path(folder) / "config.json").is_file()
    assert bard("path", model[:8]).out.strip() == folder

    shown = json.loads(bard("show", "own/champion", "--json").out)
    assert shown["digest"] == model and shown["history"][0]["why"] == "the first champion of own"
    assert "model.safetensors" in bard("show", "own/champion").out

    chain = json.loads(bard("explain", "own/champion", "--json").out)
    assert chain[0]["kind"] == "Source" and chain[-1]["digest"] == model
    source = chain[0]
    assert source["origin"]["measured"]["address"].endswith("texts/own.txt")
    said = bard("explain", model[:8]).out
    assert next(iter(source["files"].values()))["sha256"] in said and "texts/own.txt" in said


def test_a_sample_is_the_same_for_the_same_seed_and_begins_with_the_prompt(bard: Any) -> None:
    once, again = (bard("sample", "own/champion", "--prompt", "Verse é", "--characters", "30") for _ in range(2))
    assert once.out == again.out and once.out.startswith("Verse é")
    assert len(once.out.rstrip("\n")) <= len("Verse é") + 30
    other = bard("sample", "own/champion", "--prompt", "Verse é", "--characters", "30", "--seed", "2")
    assert other.out != once.out


def test_a_sample_on_its_way_is_the_sample_and_no_character_is_ever_broken(bard: Any) -> None:
    # At this heat the bytes of the vocabulary come in runs, whole characters and none among them.
    arguments = ("sample", "own/champion", "--characters", "200", "--temperature", "10", "--top-k", "0")
    at_once, coming = bard(*arguments), bard(*arguments, "--stream")
    assert at_once.out == coming.out and "\ufffd" in at_once.out
    for said in (at_once, coming):
        assert "tokens per second" in said.err
    *pieces, last = [json.loads(line) for line in bard(*arguments, "--stream", "--json").out.splitlines()]
    assert "".join(piece["text"] for piece in pieces) == last["text"] and len(last["text"]) == 200
    assert last["prompt"] + last["text"] == at_once.out.removesuffix("\n")
    assert last["tokens"] >= 200 and last["tokens_per_second"] > 0


def test_texts_that_are_drawn_together_begin_with_the_one_that_is_drawn_alone(bard: Any) -> None:
    arguments = ("sample", "own/champion", "--characters", "50", "--top-p", "0.95", "--json")
    alone, three = (json.loads(bard(*arguments, "--count", count).out) for count in ("1", "3"))
    assert alone["texts"] == [alone["text"]] == three["texts"][:1] and alone["top_p"] == 0.95
    assert len(set(three["texts"])) == 3 and {len(text) for text in three["texts"]} == {50}
    pieces = [json.loads(line) for line in bard(*arguments, "--count", "3", "--stream").out.splitlines()]
    for row in range(3):
        assert "".join(piece["text"] for piece in pieces[:-1] if piece["row"] == row) == three["texts"][row]
    shown = bard(*arguments[:-1], "--count", "3").out
    assert shown == "\n---\n".join(three["prompt"] + text for text in three["texts"]) + "\n"


def test_an_evaluations_texts_are_those_that_bard_sample_draws(
    bard: Any, trained: tuple[Path, dict[str, Any], str]
) -> None:
    drawn = json.loads(bard("sample", "own/champion", "--characters", "40", "--json").out)
    assert drawn["text"] == trained[1]["sample"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("path", "own/chamion"), "own/champion"),
        (("show", "ffffffffffff"), "no artifact's digest starts with"),
        (("sample", "own/tiny"), "only a Model generates text"),
        (("sample", "own/champion", "--prompt", ""), "--prompt is empty"),
        (("sample", "own/champion", "--top-p", "1.5"), "--top-p 1.5: input should be less than or equal to 1"),
        (("sample", "own/champion", "--top-p", "0"), "--top-p 0.0: input should be greater than 0"),
        (("sample", "own/champion", "--stream", "--count", "2"), "add --json"),
        (("train", "own", "--recipe", "tinny"), "did you mean 'tiny'"),
        (("train", "own", "--set", "learning_rate"), "FIELD=VALUE"),
        (("train", "owm"), "own"),
        (("train", "own", "--memory-limit", "lots"), "800MB or 2GiB, or free"),
        (("plan", "own", "--memory-limit", "1MB"), "the least that would do"),
        (("plan", "owm"), "own"),
        (("plan", "own", "--price", "L4"), "CARD=DOLLARS"),
        (("plan", "own", "--price", "H9=1"), "T4, L4"),
        (("corpus", "add", "own", "--from", "texts/own.txt"), "exists already"),
        (("corpus", "add", "more", "--from", "texts/none.txt"), "none.txt"),
        (("corpus", "add", "More!", "--from", "texts/own.txt"), "a-z"),
        (("corpus", "add", "experiments", "--from", "texts/own.txt"), "taken by the project itself"),
        # What Python makes of a byte that is not UTF-8 in a command.
        (("sample", "own/champion", "--prompt", "Verse \udcff"), "U+DCFF, which is no character"),
        (("train", "own", "--set", "prompt=Verse \udcff"), "prompt"),
        (("rollback", "own", "--to", "1", "--why", "\udcff"), "is the champion already"),
        (("show", "\udcff/champion"), "is not a name"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(bard: Any, arguments: tuple[str, ...], said: str) -> None:
    answer = bard(*arguments)
    assert answer.code == 1
    assert said in answer.err and "Traceback" not in answer.err
    assert answer.out == ""


def test_a_plan_says_whether_it_fits_how_long_it_takes_and_whether_the_cloud_is_worth_it(bard: Any) -> None:
    arguments = ("plan", "own", "--recipe", "tiny", "--probe-seconds", "1", "--price", "L4=9.5")
    said = bard(*arguments)
    assert said.code == 0, said.err
    for word in ("parameters", "FLOPs", "disk", "peak memory", "activations", "s a step", "H100", "9.50", "worth it?"):
        assert word in said.out, word
    foreseen = json.loads(bard(*arguments, "--json").out)
    assert foreseen["peak_bytes"] == sum(foreseen["plan"]["moments"][foreseen["moment"]].values())
    assert foreseen["training_seconds"] == pytest.approx(60 * foreseen["step_seconds"])
    assert foreseen["checkpoints"] == 4


def test_a_plan_has_the_vocabulary_that_training_learns(bard: Any, trained: tuple[Path, dict[str, Any], str]) -> None:
    facts = json.loads(bard("show", trained[1]["model"][:8], "--json").out)["facts"]
    settings = [word for text in SETTINGS for word in ("--set", text)]
    arguments = ("plan", "own", "--recipe", "tiny", *settings, "--probe-seconds", "0", "--json")
    known = json.loads(bard(*arguments).out)
    (trained[0] / "corpora" / "twin.toml").write_text((trained[0] / "corpora" / "own.toml").read_text())
    looked_at = json.loads(bard("plan", "twin", *arguments[2:]).out)
    (trained[0] / "corpora" / "twin.toml").unlink()
    for foreseen in (known, looked_at):
        assert foreseen["vocabulary_size"] == facts["vocabulary_size"]
        assert sum(foreseen["parameters"].values()) == facts["parameters"]
        assert foreseen["step_seconds"] is None and "not known without a probe" in foreseen["verdict"]


def test_a_local_text_is_added_looked_at_and_listed(bard: Any, trained: tuple[Path, dict[str, Any], str]) -> None:
    text = trained[0] / "texts" / "more.txt"
    text.write_text(
        "".join(f"第{n}行：天下大勢，分久必合，合久必分。{chr(0x4E00 + n)}\n" for n in range(400)), encoding="utf-8"
    )
    said = bard("corpus", "add", "more", "--from", str(text), "--language", "zh-Hant", "--pin")
    assert said.code == 0, said.err
    for word in ("sha256", "characters", "distinct", "vocabulary", "warning", "utf-8"):
        assert word in said.out, word
    described = (trained[0] / "corpora" / "more.toml").read_text()
    assert 'path = "texts/more.txt"' in described and "sha256" in described
    listed = json.loads(bard("corpus", "list", "--json").out)
    assert {corpus["name"] for corpus in listed} == {"own", "more"}
    assert "more" in bard("corpus", "list").out
    (trained[0] / "corpora" / "more.toml").unlink()


def test_rows_without_a_value_are_counted_and_a_folder_of_two_formats_is_refused(
    bard: Any, trained: tuple[Path, dict[str, Any], str]
) -> None:
    folder = trained[0] / "texts" / "rows"
    folder.mkdir()
    rows: list[dict[str, str | None]] = [{"verse": f"Verse {n} of the bard.\n"} for n in range(40)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"verse": None}, {}]))
    said = bard("corpus", "add", "rows", "--from", str(folder))
    assert said.code == 0 and "left out     2 of 42 rows, which have no value there" in said.out
    (trained[0] / "corpora" / "rows.toml").unlink()
    counted = json.loads(bard("corpus", "add", "rows", "--from", str(folder), "--json").out)
    assert counted["rows"] == {"rows": 42, "without_value": 2}
    (trained[0] / "corpora" / "rows.toml").unlink()
    (folder / "README.md").write_text("# Verses\n")
    said = bard("corpus", "add", "rows", "--from", str(folder))
    assert said.code == 1 and "README.md is plain text, and a.jsonl is jsonl" in said.err
    assert not (trained[0] / "corpora" / "rows.toml").exists()
    said = bard("corpus", "add", "rows", "--from", f"{folder}/*.jsonl")
    assert said.code == 0
    (trained[0] / "corpora" / "rows.toml").unlink()


def test_a_corpus_file_that_cannot_be_used_is_listed_with_its_error(
    bard: Any, trained: tuple[Path, dict[str, Any], str]
) -> None:
    draft = trained[0] / "corpora" / "draft.toml"
    draft.write_text('title = "Half')
    try:
        listed = bard("corpus", "list")
        assert listed.code == 0 and "A test's own text" in listed.out
        assert "draft  cannot be used: " in listed.out and "not valid TOML" in listed.out
        as_json = {corpus["name"]: corpus for corpus in json.loads(bard("corpus", "list", "--json").out)}
        assert "not valid TOML" in as_json["draft"]["error"] and "error" not in as_json["own"]
    finally:
        draft.unlink()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A loopback address that serves a text."""
    (tmp_path / "ballad.txt").write_text(own_text())
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/ballad.txt"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_text_at_an_address_is_added_and_trained_with_no_code(elsewhere: Path, served: str, bard: Any) -> None:
    said = bard("corpus", "add", "ballad", "--from", served, "--json")
    assert said.code == 0, said.err
    added = json.loads(said.out)
    assert added["survey"]["characters"] == len(own_text()) and added["fetched"]["address"] == served
    said = bard("train", "ballad", "--recipe", "tiny", "--set", "steps=4", "--set", "leg_steps=4", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["corpus"] == "ballad"


def test_an_unreachable_corpus_that_was_named_is_an_error_and_one_that_was_not_gives_way(
    elsewhere: Path, bard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))
    gone = 'title = "Gone"\n[source]\nurl = "http://127.0.0.1:9/gone.txt"\n'
    (elsewhere / "corpora" / "tiny-shakespeare.toml").write_text(gone)
    (elsewhere / "corpora" / "synthetic.toml").write_text('title = "Made up"\n[source]\nsynthetic = 20_000\n')
    quick = ("--recipe", "tiny", "--set", "steps=2", "--set", "leg_steps=2")
    named = bard("train", "tiny-shakespeare", *quick)
    unnamed = bard("train", *quick)
    assert named.code == 1 and named.out == ""
    for word in ("http://127.0.0.1:9/gone.txt", "CORPORA_MIRROR", "synthetic"):
        assert word in named.err, word
    assert unnamed.code == 0, unnamed.err
    assert unnamed.err.count("127.0.0.1:9") >= 2
    assert unnamed.err.strip().rpartition("This was the synthetic corpus")[1]
    assert "bits per character" in unnamed.out


@pytest.mark.faults
def test_a_killed_training_goes_on_from_its_last_leg_and_ends_with_the_same_model(
    elsewhere: Path, bard: Any, trained: tuple[Path, dict[str, Any], str]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bardflow.commands.cli", *ARGUMENTS],
        stderr=subprocess.PIPE, text=True, cwd=CHECKOUT, env=environment(elsewhere),
    )  # fmt: skip
    assert process.stderr is not None
    story = []
    for line in process.stderr:
        story.append(line)
        if line.startswith("train_leg"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL, "".join(story)

    said = bard(*ARGUMENTS, "--json")
    assert said.code == 0, said.err
    legs = [line.split()[1] for line in said.err.splitlines() if line.startswith("train_leg")]
    assert legs[0] == "cached" and "done" in legs
    assert json.loads(said.out)["model"] == trained[1]["model"]
