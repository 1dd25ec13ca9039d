"""The index, the reports and the page to write, as a browser gets them, and models as `transformers` opens them."""

import base64
import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bardflow.commands.web import reports_app, writing_app
from bardflow.errors import BardError
from bardflow.model.machine import device
from bardflow.model.sampling import SamplingSpec, sample, sample_watched
from bardflow.model.training.checkpoints import load_model
from bardflow.model.vocabulary import TOKENIZER_FILE, encode, load
from bardflow.storage.handles import Model, Report
from bardflow.tasks.champion import rollback
from bardflow.tasks.exporting import ExportError, check, export, push
from bardflow.tasks.index import write_index
from bardflow.tasks.recipes import overrides_from
from bardflow.tasks.reporting import METRICS, address_of, page_of, write_tensorboard
from bardflow.tasks.run import refs, store
from tests.conftest import serving
from tests.quick import run


def champion() -> Model:
    head = refs().head("own/champion")
    assert head is not None
    return Model(digest=head.digest)


@pytest.mark.usefixtures("quickly_answered")
def test_the_index_leads_to_every_report_and_tells_who_was_champion_when(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run()
    second = run(steps=40, leg_steps=40)
    rollback("own", to=None, by="rollback (ann)", why="the <b>older</b> rhymes")
    with TestClient(reports_app()) as client:
        page = client.get("/").text
        for outcome in (first, second):
            link = Path(outcome.report).relative_to(project / "home").as_posix()
            assert f'href="{link}"' in page
            assert client.get(f"/{link}").text == Path(outcome.report).read_text(encoding="utf-8")
            assert f"{outcome.bits_per_character:.4f}" in page
            report = Report(digest=Path(outcome.report).parent.name)
            assert address_of(report) == Path(outcome.report).as_uri()
            with monkeypatch.context() as patch:
                patch.setenv("BARDFLOW_REPORTS", "http://testserver")
                assert client.get(address_of(report)).text == client.get(f"/{link}").text
        assert page.index(f"{second.bits_per_character:.4f}") < page.index(f"{first.bits_per_character:.4f}")
        assert "rollback (ann)" in page and "the &lt;b&gt;older&lt;/b&gt; rhymes" in page
        assert "steps 40" in page and "train-gpt/default" in page and "0 3 * * * UTC" in page
        nowhere = f"/objects/report/{'0' * 64}/report.html"
        for stranger in ("/prefect/prefect.db", "/objects/report/../../prefect.yaml", nowhere):
            assert client.get(stranger).status_code == 404
        model = f"/objects/report/{champion().digest}/report.html"
        assert client.get(model).status_code == 404, "a model is no report"


def test_the_index_of_a_new_home_says_how_to_begin(project: Path) -> None:
    page = write_index().read_text(encoding="utf-8")
    assert "make train CORPUS=own" in page and "train-gpt has not seen it yet" in page
    assert [path.name for path in (project / "home").iterdir() if path.suffix == ".html"] == ["index.html"]


def test_one_bad_corpus_file_is_a_row_with_its_error_and_the_others_stand(project: Path) -> None:
    corpora = project / "corpora"
    (corpora / "draft.toml").write_text('title = "Half a <b>')
    (corpora / "experiments.toml").write_text((corpora / "own.toml").read_text())
    (corpora / "folder.toml").mkdir()
    with TestClient(reports_app()) as client:
        answer = client.get("/")
        assert answer.status_code == 200
        assert "make train CORPUS=own" in answer.text
        assert "draft.toml is not valid TOML" in answer.text
        assert "this name is taken by the project itself" in answer.text
        assert "folder.toml cannot be read" in answer.text
        assert "make train CORPUS=draft" not in answer.text


@pytest.mark.usefixtures("quickly_answered")
def test_what_a_home_holds_that_cannot_be_read_is_told_on_the_index_and_the_rest_is_shown(project: Path) -> None:
    outcome = run()
    kept = (project / "corpora" / "own.toml").read_text()
    (project / "corpora" / "own.toml").write_text("title = ")
    page = write_index().read_text(encoding="utf-8")
    assert "own.toml is not valid TOML" in page
    assert f"{outcome.bits_per_character:.4f}" in page, "its models are there all the same"
    (project / "corpora" / "own.toml").write_text(kept)
    for name in ("own/older", "experiments/older"):
        with store().draft() as draft:
            (draft.folder / "page.json").write_text(json.dumps({"of": "another day", "name": name}))
            (draft.folder / "report.html").write_text("")
            report = store().keep(draft, Report, {}, store().origin(champion()))
        notes = {"model": champion().digest, "evaluation": "ab" * 32}
        refs().move(name, report, after=None, by="a test", why="", notes=notes)
    (project / "home" / "refs" / "torn" / "champion").mkdir(parents=True)
    (project / "home" / "refs" / "torn" / "champion" / "000001.json").write_text("{")
    (project / "prefect.yaml").write_text("deployments: [{")
    page = write_index().read_text(encoding="utf-8")
    for told in ("own/older", "experiments/older", "torn/champion/000001.json is not an entry", "prefect.yaml is not"):
        assert told in page, told
    assert f"{outcome.bits_per_character:.4f}" in page


@pytest.mark.usefixtures("quickly_answered")
def test_a_request_of_the_index_reads_no_artifact_to_its_end(project: Path) -> None:
    run()
    shown = [write_index().read_text(encoding="utf-8")]
    # Whoever hashed them would find that their bytes are other ones.
    for kind in ("corpus", "model", "evaluation"):
        for path in (store().objects / kind).rglob("*"):
            if path.suffix in (".arrow", ".safetensors", ".npy"):
                path.chmod(0o644)
                path.write_bytes(path.read_bytes()[:-1])
    shown.append(write_index().read_text(encoding="utf-8"))
    made = [re.sub(r"<time [^>]*>[^<]*</time>", "", page) for page in shown]
    assert made[0] == made[1]


class Babble(torch.nn.Module):
    """A model's logits with the bytes that continue a character alone: no character ever comes of them."""

    def __init__(self, gpt: Any, allowed: list[int]) -> None:
        super().__init__()
        self.gpt, self.allowed = gpt, allowed

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.full((*hidden.shape[:-1], self.gpt.out_features), -1e4)
        logits[..., self.allowed] = 1.0
        return logits


@pytest.fixture
def babbling(monkeypatch: pytest.MonkeyPatch) -> Model:
    """A champion that draws nothing but bytes that make no character."""
    run(vocabulary_byte_fallback="always")
    tokens = load(store().folder(champion()) / TOKENIZER_FILE).get_vocab()

    def with_other_head(folder: Path) -> Any:
        gpt: Any = load_model(folder)
        weight = gpt.head.weight
        babble = Babble(gpt.head, [tokens[f"<0x{byte:02X}>"] for byte in range(0x80, 0xC0)])
        gpt.head = babble
        babble.weight = weight
        return gpt

    monkeypatch.setattr("bardflow.commands.web.load_model", with_other_head)
    return champion()


@pytest.mark.usefixtures("quickly_answered")
def test_a_model_that_draws_bytes_of_no_character_comes_to_an_end(babbling: Model) -> None:
    with TestClient(writing_app("own/champion", babbling)) as client:
        answer = client.post("/write", json={"prompt": "Verse", "characters": 20, "top_k": None})
        text = "".join(json.loads(line)["text"] for line in answer.text.splitlines())
        assert len(text) == 20 and set(text) == {"\ufffd"}


@pytest.mark.usefixtures("quickly_answered")
def test_a_client_that_goes_away_leaves_the_page_to_the_next(babbling: Model) -> None:
    wish = {"prompt": "Verse", "characters": 20_000, "top_k": None}  # no text before 20,000 bytes are drawn
    with serving(writing_app("own/champion", babbling)) as address:
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps(wish)
        for _ in range(3):  # the first draws, the others wait for it
            with socket.create_connection((host, int(port))) as gone:
                gone.sendall(
                    f"POST /write HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
                )
                assert gone.recv(100).startswith(b"HTTP/1.1 200")
        answer = httpx.post(f"{address}/write", json=wish | {"characters": 5}, timeout=600, trust_env=False)
        assert len("".join(json.loads(line)["text"] for line in answer.text.splitlines())) == 5


@pytest.mark.usefixtures("quickly_answered")
def test_a_prompt_that_is_no_text_is_refused_wherever_it_comes_from() -> None:
    run()
    with TestClient(writing_app("own/champion", champion())) as client:
        refused = client.post("/write", content=b'{"prompt": "Verse \\udcff"}')
        assert refused.status_code == 422 and "surrogate" in refused.json()["error"]
    with pytest.raises(BardError, match="prompt"):
        overrides_from({"prompt": "Verse \udcff"})


@pytest.mark.usefixtures("quickly_answered")
def test_the_page_to_write_streams_the_text_that_the_model_draws() -> None:
    run()
    with TestClient(writing_app("own/champion", champion())) as client:
        page = client.get("/")
        assert "own/champion" in page.text and "connect-src 'self'" in page.text
        wish = {"prompt": "Verse 3", "characters": 30, "temperature": 0.5, "top_k": None, "seed": 5}
        lines = [json.loads(line) for line in client.post("/write", json=wish).text.splitlines()]
        assert sum(len(line["text"]) for line in lines) == 30
        for line in lines:
            shares = [share for _, share in line["likeliest"]]
            assert shares == sorted(shares, reverse=True) and sum(shares) <= 1.0001
        again = [json.loads(line) for line in client.post("/write", json=wish).text.splitlines()]
        assert again == lines
        for wrong, said in (({"seed": -1}, "seed"), ({"prompt": "曹"}, "曹"), ({"volume": 3}, "volume")):
            refused = client.post("/write", json={"prompt": "V", "characters": 3} | wrong)
            assert refused.status_code == 422 and said in refused.json()["error"]


@pytest.mark.usefixtures("quickly_answered")
def test_a_runs_metrics_are_its_curve_as_json_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = Report(digest=Path(run().report).parent.name)
    lines = [json.loads(line) for line in (store().folder(report) / METRICS).read_text().splitlines()]
    assert lines == [point.model_dump(mode="json") for point in page_of(report).curve]
    assert [line["step"] for line in lines if line["validation_nats"] is not None] == [2, 4]
    written = write_tensorboard(page_of(report), tmp_path / "run")
    read = EventAccumulator(str(written)).Reload()
    losses = [(event.step, event.value) for event in read.Scalars("loss/validation")]
    assert losses == [
        (point["step"], pytest.approx(point["validation_nats"])) for point in lines if point["validation_nats"]
    ]
    [score] = read.Scalars("score/bits_per_character")
    assert score.value == pytest.approx(page_of(report).scores.bits_per_character)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BardError, match="pip install"):
        write_tensorboard(page_of(report), tmp_path / "board")
    assert not (tmp_path / "board").exists()


@pytest.mark.usefixtures("quickly_answered")
def test_watching_changes_no_draw() -> None:
    run()
    folder = store().folder(champion())
    gpt, tokenizer, cpu = load_model(folder), load(folder / TOKENIZER_FILE), device.Device("cpu", "f32")
    [ids] = encode(tokenizer, ["Verse"])
    spec = SamplingSpec(temperature=1, top_k=None, seed=3)
    plain, watched = sample(gpt, ids.tolist(), spec, cpu), sample_watched(gpt, ids.tolist(), spec, cpu, likeliest=4)
    for _ in range(40):
        drawn = next(watched)
        assert drawn.token == next(plain)
        assert len(drawn.likeliest) == 4 and 0 < drawn.shares[0] <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_answered")
@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("unigram", 300), ("wordpiece", 540)])
def test_an_export_opens_in_transformers_with_the_same_tokens_and_logits_and_has_its_scores(
    kind: str, size: int, tmp_path: Path
) -> None:
    outcome = run(vocabulary_kind=kind, vocabulary_size=size)
    folder = tmp_path / "given"
    scores = export(champion(), folder)
    assert scores is not None and scores.bits_per_character == outcome.bits_per_character
    found = check(folder, champion())
    assert found.logits < 1e-3 and found.tokens == scores.tokens
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| bits per character | {outcome.bits_per_character:.4f} |" in card and "model-index:" in card
    with pytest.raises(ExportError, match="new or empty"):
        export(champion(), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "project"]


def test_a_push_is_one_commit_of_the_folders_files_and_a_refusal_leaves_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("---\nlicence: mit\n---\nA card.\n", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    committed: list[Any] = []

    async def create(request: Request) -> JSONResponse:
        if request.headers.get("authorization") != "Bearer ann's":
            return JSONResponse({"error": "Invalid credentials"}, 401)
        return JSONResponse({"url": f"{request.base_url}ann/{(await request.json())['name']}"})

    async def preupload(request: Request) -> JSONResponse:
        files = (await request.json())["files"]
        return JSONResponse(
            {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        )

    async def commit(request: Request) -> JSONResponse:
        committed.extend(json.loads(line) for line in (await request.body()).splitlines())
        return JSONResponse({"commitUrl": f"{request.base_url}ann/bard/commit/1", "commitOid": "1" * 40})

    def valid(request: Request) -> JSONResponse:
        return JSONResponse({"warnings": [], "errors": []})

    hub = Starlette(
        routes=[
            Route("/api/repos/create", create, methods=["POST"]),
            Route("/api/validate-yaml", valid, methods=["POST"]),
            Route("/api/models/ann/bard/preupload/main", preupload, methods=["POST"]),
            Route("/api/models/ann/bard/commit/main", commit, methods=["POST"]),
        ]
    )
    with serving(hub) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "nobody's")
        with pytest.raises(ExportError, match=r"(?s)is written, but was not pushed to ann/bard.*Invalid credentials"):
            push(tmp_path, "ann/bard")
        assert committed == []
        monkeypatch.setenv("HF_TOKEN", "ann's")
        assert push(tmp_path, "ann/bard") == f"{address}/ann/bard"
    files = {line["value"]["path"]: line["value"]["content"] for line in committed if line["key"] == "file"}
    assert {name: base64.b64decode(content) for name, content in files.items()} == {
        path.name: path.read_bytes() for path in tmp_path.iterdir()
    }
