"""A few days of schedules in compressed time; `python -m tests.faults.year` plays a year of them."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import CHECKOUT


def test_some_days_with_kills_leave_a_home_within_bounds_and_explained(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.year", "--days", "2", "--history-days", "1", "--kills", "0.5"]
    command += ["--seed", "3", "--folder", str(tmp_path / "year")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["runs"], figures["champions"] > 0, figures["kills"] > 0) == (8, True, True), figures
    assert figures["flow_runs_kept"] < figures["runs"], "the vacuum deleted the runs of the first day"
