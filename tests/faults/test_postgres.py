"""The main job by `bard up` with PostgreSQL behind Prefect's server, and its metrics."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bardflow.commands.prefect_api import all_deployments, api, ask
from tests.conftest import make_project
from tests.postgres import PASSWORD, postgres, programs
from tests.project_up import PATIENCE_SECONDS, UP, free_port, wait_for
from tests.quick import QUICK

HERE = programs()


@pytest.mark.skipif(HERE is None, reason="needs PostgreSQL: apt-get install postgresql")
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
                    [deployment] = [one for one in all_deployments(client) if one.title == "train-gpt/default"]
                    parameters = {"corpus": "own", "recipe": "tiny", "overrides": QUICK}
                    path = f"/deployments/{deployment.id}/create_flow_run"
                    run = ask(client, path, {"parameters": parameters, "state": {"type": "SCHEDULED"}})

                    def ended() -> str | None:
                        [now] = ask(client, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
                        return now["state_type"] if now["state_type"] in ("COMPLETED", "FAILED", "CRASHED") else None

                    assert wait_for(ended, "the run ends") == "COMPLETED", said.read_text()
                    metrics = client.get("/metrics").raise_for_status().text
                    assert "# TYPE process_resident_memory_bytes gauge" in metrics
            finally:
                up.send_signal(signal.SIGTERM)
                assert up.wait(PATIENCE_SECONDS) == 0, said.read_text()
    files = [path for path in (project / "home").rglob("*") if path.is_file()]
    assert any(path.match("refs/own/champion/000001.json") for path in files)
    assert not any(path.name.startswith("prefect.db") for path in files), "nothing is in SQLite"
    assert not any(PASSWORD.encode() in path.read_bytes() for path in files), "the password is in no file"
