"""The main job with PostgreSQL behind Prefect's server: by `bard up`, and by the commands of deploy/compose.yaml."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from bardflow.commands.prefect_api import all_deployments, api, ask
from bardflow.commands.processes import FLOW_RUN, environment_of
from tests.conftest import make_project
from tests.postgres import PASSWORD, postgres, programs
from tests.project_up import PATIENCE_SECONDS, UP, free_port, wait_for
from tests.quick import QUICK
from tests.test_deploy import image_settings, services

HERE = programs()
pytestmark = pytest.mark.skipif(HERE is None, reason="needs PostgreSQL: apt-get install postgresql")
LOGIN = "me:open-sesame"


def begun(client: httpx.Client) -> str:
    """Run the deployment train-gpt on the small corpus, and return the run's id."""
    [deployment] = [one for one in all_deployments(client) if one.title == "train-gpt/default"]
    parameters = {"corpus": "own", "recipe": "tiny", "overrides": QUICK}
    path = f"/deployments/{deployment.id}/create_flow_run"
    return str(ask(client, path, {"parameters": parameters, "state": {"type": "SCHEDULED"}})["id"])


def ended(client: httpx.Client, run: str) -> str:
    """Wait until the run has ended, and return the type of its last state; a crashed run is run again."""

    def state() -> str | None:
        [now] = ask(client, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return now["state_type"] if now["state_type"] in ("COMPLETED", "FAILED", "CANCELLED") else None

    return str(wait_for(state, "the run ends"))


def test_bard_up_trains_on_postgresql(tmp_path: Path) -> None:
    assert HERE is not None
    project, port = make_project(tmp_path / "project"), free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "BARDFLOW"))}
    said = tmp_path / "said.txt"
    with postgres(HERE) as address, said.open("wb") as output:
        environment = kept | {
            "BARDFLOW_PROJECT": str(project),
            "BARDFLOW_HOME": str(project / "home"),
            "PREFECT_API_DATABASE_CONNECTION_URL": address,
            "PREFECT_SERVER_METRICS_ENABLED": "true",
        }
        command = [sys.executable, "-c", UP, str(port)]
        with subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT) as up:
            try:
                wait_for(lambda: "is up:" in said.read_text() or up.poll() is not None, "bard up")
                assert up.poll() is None, said.read_text()
                with api(f"http://127.0.0.1:{port}/api") as client:
                    assert ended(client, begun(client)) == "COMPLETED", said.read_text()
                    metrics = client.get("/metrics").raise_for_status().text
                    assert "# TYPE process_resident_memory_bytes gauge" in metrics
            finally:
                up.send_signal(signal.SIGTERM)
                assert up.wait(PATIENCE_SECONDS) == 0, said.read_text()
    files = [path for path in (project / "home").rglob("*") if path.is_file()]
    assert any(path.match("refs/own/champion/000001.json") for path in files)
    assert not any(path.name.startswith("prefect.db") for path in files), "nothing is in SQLite"
    assert not any(PASSWORD.encode() in path.read_bytes() for path in files), "the password is in no file"


def test_the_commands_of_the_compose_file_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HERE is not None
    project, ports = make_project(tmp_path / "project"), {"4200": free_port(), "4201": free_port()}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "BARDFLOW"))}
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", LOGIN)
    with ExitStack() as stack:
        address = stack.enter_context(postgres(HERE)).rpartition("@")[2]

        def here(text: str, home: Path) -> str:
            """What the file says, with this machine's folders, ports and addresses."""
            text = re.sub(r"\$\{BARDFLOW_LOGIN:[^}]*\}", LOGIN, text)
            text = re.sub(r"\$\{POSTGRES_PASSWORD:[^}]*\}", PASSWORD, text)
            text = text.replace("@postgres:5432/prefect", f"@{address}").replace("http://server:", "http://127.0.0.1:")
            text = re.sub(r"^/data", str(home), text).replace("/project", str(project))
            return re.sub(r"\b420[01]\b", lambda port: str(ports[port[0]]), text)

        def begin(name: str) -> Path:
            """Start a service as a process; it is stopped at the end. Returns the file of what it says."""
            service, home = services()[name], tmp_path / services()[name]["volumes"][0].partition(":")[0]
            settings = {**image_settings(), **service["environment"]}
            environment = {variable: here(value, home) for variable, value in settings.items()}
            command, said = [here(word, home) for word in service["command"]], tmp_path / f"{name}.txt"
            process = subprocess.Popen(
                command, env={**kept, **environment, "PATH": path}, cwd=project,
                stdout=stack.enter_context(said.open("wb")), stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            stack.callback(process.wait, PATIENCE_SECONDS)
            stack.callback(os.killpg, process.pid, signal.SIGTERM)
            return said

        client = stack.enter_context(api(f"http://127.0.0.1:{ports['4200']}/api"))
        begin("server")
        wait_for(lambda: answered(client, "/health"), "the server")
        worker = begin("worker")
        begin("reports")
        wait_for(lambda: answered(client, "/work_pools/bardflow"), "the work pool")
        wait_for(lambda: "Worker 'bardflow' started" in worker.read_text(), "the worker")
        run = begun(client)
        [process] = wait_for(lambda: processes_of(run), "the run's process")
        process.kill()
        assert ended(client, run) == "COMPLETED", worker.read_text()
        assert "It crashed and is run again in 10 s (1 of 3 times)" in worker.read_text()
        assert httpx.get(f"{client.base_url}work_pools/bardflow", trust_env=False).status_code == 401
        reports = f"http://127.0.0.1:{ports['4201']}/"
        wait_for(lambda: answered(client, reports), "the reports")
        assert httpx.get(reports, trust_env=False).status_code == 401
        assert "own" in client.get(reports).text


def processes_of(run: str) -> list[psutil.Process]:
    """The processes of a flow run."""
    return [process for process in psutil.process_iter() if environment_of(process).get(FLOW_RUN) == run]


def answered(client: httpx.Client, address: str) -> bool:
    """Whether a server answers with success."""
    try:
        return client.get(address).is_success
    except httpx.HTTPError:
        return False
