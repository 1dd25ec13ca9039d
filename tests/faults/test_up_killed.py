"""Whatever stops `bard up` or a part of it, no run is lost."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from bardflow.commands.prefect_api import AUTOMATION, api, ask
from bardflow.commands.processes import SUPERVISOR
from tests.project_up import DEPLOYMENTS, PATIENCE_SECONDS, Project, left_by, wait_for

# Runs of a schedule that is faster than they are would wait before other runs; the next deployment deletes them.
SELDOM = DEPLOYMENTS.replace("interval: 5", "interval: 3600")


def test_a_run_under_way_goes_on_after_a_stop_and_after_a_kill(served: Project) -> None:
    (served.folder / "prefect.yaml").write_text(SELDOM)
    run_id = served.begin("--param", "recipe=tiny")
    other = served.prefect("deployment", "run", "tick/often").stdout.split("UUID: ")[1].split()[0]
    # The first look that is noted may have begun before; the second would take the run, and the third comes after.
    for _ in range(3):
        before = served.last_look()
        wait_for(lambda before=before: served.last_look() != before, "the worker looks for due runs")
    assert served.run(other)["state_type"] == "SCHEDULED", "two deployments never run at once"

    process = served.start()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 0, served.text()
    assert not served.processes()
    with sqlite3.connect(f"file:{served.home}/prefect/prefect.db?mode=ro", uri=True) as database:
        question = "select state_type, state_name from flow_run where id = ?"
        states = database.execute(question, (run_id,)).fetchall()
    assert states == [("SCHEDULED", "Resuming")]
    database.close()

    served.start()
    served.wait_for_begin()
    served.kill()

    served.start()
    run = served.run(run_id)
    assert f"Interrupted runs, started again: {run['name']}" in served.text()
    (served.home / "gate").touch()
    wait_for(lambda: served.run(run_id)["state_type"] == "COMPLETED", "the run completes")
    wait_for(lambda: served.run(other)["state_type"] == "COMPLETED", "and the other one")
    assert served.run(run_id)["run_count"] == 3
    # The task that had finished before the stop was answered from the cache both times.
    notes = (served.home / "notes.txt").read_text().split()
    assert [line for line in notes if line != "tick"] == ["begin", "end"]


def test_a_killed_part_is_back_and_the_run_under_way_finishes_by_itself(served: Project) -> None:
    run_id = served.begin()
    for part, word in (("worker", "worker"), ("server", "server"), ("reports", "--serve")):
        (process,) = [p for p in served.processes() if word in p.cmdline()]
        process.kill()
        wait_for(lambda part=part: f"{part}: up again" in served.text(), f"the {part} is back")
        assert f"{part}: ended by itself (exit status -9); starting it again in 1 s" in served.text()
        if part == "worker":  # nobody could cancel its run
            served.wait_for_begin()
    for process in served.flow_processes(run_id):
        process.kill()
    served.wait_for_begin()
    assert "It crashed and is run again in 1 s (1 of 3 times)" in served.text()
    (served.home / "gate").touch()
    wait_for(lambda: served.run(run_id)["state_type"] == "COMPLETED", "the run completes")
    assert served.run(run_id)["run_count"] == 3


def test_a_run_that_is_cancelled_ends_even_if_it_hears_no_signal(served: Project) -> None:
    run_id = served.begin("--param", "deaf=true")
    processes = served.flow_processes(run_id)
    assert processes
    assert served.prefect("flow-run", "cancel", run_id).returncode == 0
    wait_for(lambda: served.run(run_id)["state_type"] == "CANCELLED", "the run is cancelled")
    wait_for(lambda: not any(process.is_running() for process in processes), "its process has ended")


def test_a_run_that_is_lost_with_another_machine_is_run_again_here(served: Project, tmp_path: Path) -> None:
    (served.folder / "prefect.yaml").write_text(SELDOM)
    assert served.prefect("--no-prompt", "deploy", "--all").returncode == 0
    with api(served.url) as client:  # 20 s without a heartbeat, not 300
        (found,) = ask(client, "/automations/filter", {"automations": {"name": {"any_": [AUTOMATION]}}})
        sooner = {name: found[name] for name in ("name", "description", "enabled", "actions")}
        sooner["trigger"] = found["trigger"] | {"within": 20}
        client.put(f"/automations/{found['id']}", json=sooner).raise_for_status()
    (worker,) = [process for process in served.processes() if "worker" in process.cmdline()]
    worker.suspend()  # so the other machine's worker takes the run
    away = {"BARDFLOW_HOME": str(tmp_path), "PREFECT_API_URL": served.url, SUPERVISOR: str(tmp_path)}
    away["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", "bardflow"]
    other = subprocess.Popen([*command, "--name", "other"], env=served.environment() | away, cwd=served.folder)
    created = served.prefect("deployment", "run", "wait/default")
    wait_for((tmp_path / "waiting").exists, "the other machine begins the run")
    for process in left_by(tmp_path):  # the other machine loses its power
        process.kill()
    other.wait()
    worker.resume()
    run_id = created.stdout.split("UUID: ")[1].split()[0]
    served.wait_for_begin()
    assert "It crashed and is run again in 1 s (1 of 3 times). No heartbeat for 300 s" in served.text()
    (served.home / "gate").touch()
    wait_for(lambda: served.run(run_id)["state_type"] == "COMPLETED", "the run completes")
