"""The files in deploy/ fit the program: the settings of the image, the commands and ports of the parts, the unit."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bardflow.commands.prefect_api import POOL, WORKER
from bardflow.commands.up import history_settings
from bardflow.home import prefect_environment
from tests.conftest import CHECKOUT
from tests.test_docs import require_legal

DEPLOY = CHECKOUT / "deploy"


def services() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"])


def image_settings() -> dict[str, str]:
    """The environment that the image sets."""
    [block] = re.findall(r"^ENV ((?:.*\\\n)*.*\n)", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    return dict(pair.split("=", 1) for pair in block.replace("\\\n", " ").split())


def test_the_image_has_the_settings_that_bard_gives_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_settings()
    monkeypatch.setenv("BARDFLOW_HOME", str(tmp_path))
    for name in ("OMP_WAIT_POLICY", *image):
        if name != "BARDFLOW_HOME":
            monkeypatch.delenv(name, raising=False)
    ours = prefect_environment() | history_settings()
    here = {name: value.replace(str(tmp_path), "/data") for name, value in ours.items() if name.lower() != "no_proxy"}
    assert image == here | {"BARDFLOW_HOME": "/data", "BARDFLOW_PROJECT": "/project", "HF_HOME": "/data/huggingface"}


def test_the_parts_are_reached_from_this_machine_only_and_share_the_home() -> None:
    found = services()
    assert set(found) == {"postgres", "server", "worker", "reports"}
    for name, service in found.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if name != "postgres":
            assert service["read_only"] and service["cap_drop"] == ["ALL"], name
    assert found["worker"]["volumes"] == found["reports"]["volumes"] == ["data:/data"]
    require_legal(found["reports"]["command"][1:])
    start = found["worker"]["command"][-1]
    assert f"worker start --pool {POOL} --name {WORKER}" in start and f"work-pool create {POOL}" in start


def test_no_secret_is_in_the_files_and_none_can_be_left_out() -> None:
    for name, service in services().items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|AUTH|CONNECTION_URL", variable):
                assert re.search(r"\$\{[A-Z_]+:\?[^}]+\}", str(value)), f"{name}: {variable}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "bardflow.service").read_text()
    [command] = re.findall(r"^ExecStart=(\S+) (.*)$", text, re.MULTILINE)
    require_legal(command[1].split())
    # The program is looked for, so the test names one that is here.
    here = tmp_path / "bardflow.service"
    here.write_text(text.replace(command[0], sys.executable).replace("file:///opt/bardflow", "file:///"))
    done = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
