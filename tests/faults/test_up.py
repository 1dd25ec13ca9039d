"""`bard up` serves a project: its schedules, its UI, its reports. A small project of its own, a real server."""

import re
import signal
from pathlib import Path

import httpx
import pytest

from bardflow.commands.prefect_api import api, deploy
from bardflow.commands.processes import UpError
from bardflow.commands.up import server, up
from bardflow.home import prefect_environment
from tests.project_up import DEPLOYMENTS, FLOWS, PATIENCE_SECONDS, Project, free_port, wait_for


def test_deployments_and_their_next_starts_are_said(served: Project) -> None:
    lines = {line.split()[0]: line for line in served.text().splitlines() if "/" in line and line.startswith("  ")}
    assert "next" in lines["tick/often"]
    assert "no schedule" in lines["wait/default"]
    assert f"http://127.0.0.1:{served.port}" in served.text()
    assert "wait/default" in served.prefect("deployment", "ls").stdout


def test_the_reports_are_served_beside_the_ui(served: Project) -> None:
    [address] = re.findall(r"Reports: +(http://127\.0\.0\.1:\d+)$", served.text(), re.MULTILINE)
    page = httpx.get(address, timeout=PATIENCE_SECONDS, trust_env=False).raise_for_status().text
    assert "<h1>Reports</h1>" in page and "tick/often: interval 5 s UTC" in page
    assert "draft.toml is not valid TOML" in page, "one bad corpus file stops nothing"
    stranger = httpx.get(address, headers={"Host": "example.org"}, timeout=PATIENCE_SECONDS, trust_env=False)
    assert stranger.status_code == 400


def test_the_ui_calls_the_port_it_is_served_from(served: Project) -> None:
    address = f"http://127.0.0.1:{served.port}/ui-settings"
    settings = httpx.get(address, timeout=PATIENCE_SECONDS, trust_env=False).json()
    assert settings["api_url"] == served.url


def test_a_scheduled_run_appears_and_completes(served: Project) -> None:
    runs = wait_for(lambda: served.tick_runs("COMPLETED"), "a scheduled run completes")
    assert runs[0]["auto_scheduled"]
    assert f"Reports:        {(served.home / 'site.txt').read_text()}\n" in served.text()
    # Deploying again follows the file: from here on nothing is scheduled, which saves the machine a run every 5 s.
    (served.folder / "prefect.yaml").write_text(DEPLOYMENTS.replace("active: true", "active: false"))
    assert served.prefect("--no-prompt", "deploy", "--all").returncode == 0
    wait_for(lambda: not served.tick_runs("SCHEDULED"), "what was due has had its turn, and nothing follows")


def test_a_second_up_is_refused_and_names_the_address_of_the_first(served: Project, inside: Project) -> None:
    with pytest.raises(UpError, match=rf"already runs .*http://127.0.0.1:{served.port}"):
        up(free_port())


def test_other_commands_use_the_server_that_is_up(served: Project, inside: Project) -> None:
    with server() as url:
        assert url == served.url


def test_what_prefect_skips_in_silence_is_an_error(served: Project, inside: Project, tmp_path: Path) -> None:
    (tmp_path / "scratch_flows.py").write_text(FLOWS)
    (tmp_path / "prefect.yaml").write_text(
        "deployments:\n  - {name: other, entrypoint: 'scratch_flows:tick', work_pool: {name: bardflow}, "
        "schedules: [{cron: '0 3 * * *', time_zone: UTC}]}\n"
    )
    with api(served.url) as client, pytest.raises(UpError, match=r"prefect\.yaml"):
        deploy(client, tmp_path)


def test_a_wrong_parameter_is_refused_with_the_legal_values(served: Project) -> None:
    refused = served.prefect("deployment", "run", "-p", "recipe=huge", "wait")
    assert refused.returncode == 1
    assert "'huge' is not one of ['small', 'tiny']" in refused.stdout


def test_without_up_a_command_has_a_temporary_server_on_the_same_data(inside: Project) -> None:
    if inside.process is not None and not inside.ended():
        inside.process.send_signal(signal.SIGINT)
        inside.process.wait(PATIENCE_SECONDS)
    with server() as url:
        assert url != inside.url
        assert httpx.get(f"{url}/health", timeout=PATIENCE_SECONDS, trust_env=False).text == "true"
    assert not inside.processes()
    assert prefect_environment()["PREFECT_HOME"] == str(inside.home / "prefect")
