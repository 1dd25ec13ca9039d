"""Memory as the machine counts it: limits as people write them, control groups, and a peak that can be forgotten."""

import mmap
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from bardflow.model.machine.device import Device
from bardflow.model.machine.memory import (
    PROC,
    BadLimit,
    control_group_bytes,
    forget_peak,
    free_bytes,
    limit_bytes,
    peak_bytes,
    resident_bytes,
)

CPU = Device("cpu", "f32")
MB = 1_000_000


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (800_000_000, 800 * MB),
        ("800000000", 800 * MB),
        ("800MB", 800 * MB),
        ("800 mb", 800 * MB),
        ("1.5GB", 1500 * MB),
        ("2GiB", 2 * 2**30),
        ("2g", 2000 * MB),
        ("512 MiB", 512 * 2**20),
        ("100B", 100),
    ],
)
def test_a_limit_is_read_as_people_write_it(given: int | str, expected: int) -> None:
    assert limit_bytes(given, CPU) == expected


@pytest.mark.parametrize("given", ["", "much", "-5", "0", 0, -1, "800 XB", "half", "1.2.3GB", "nan", "inf"])
def test_what_is_no_number_of_bytes_is_refused_with_what_is(given: int | str) -> None:
    with pytest.raises(BadLimit, match=r"800MB or 2GiB, or free"):
        limit_bytes(given, CPU)


def test_free_is_what_this_process_holds_and_what_the_machine_has_beside_it() -> None:
    free = limit_bytes("free", CPU)
    assert resident_bytes(CPU) < free <= psutil.virtual_memory().total
    assert free == pytest.approx(free_bytes(CPU), rel=0.2)


def group(folder: Path, names: tuple[str, str], limit: str, usage: int, statistics: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(statistics)


V2, V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_the_tightest_control_group_counts_and_cached_pages_are_free(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/outer/inner\n")
    group(tmp_path / "outer", V2, str(900 * MB), 500 * MB, f"anon 1\ninactive_file {100 * MB}\n")
    group(tmp_path / "outer" / "inner", V2, "max", 300 * MB, "inactive_file 0\n")
    assert control_group_bytes(membership, tmp_path) == 500 * MB
    group(tmp_path / "outer" / "inner", V2, str(350 * MB), 300 * MB, "inactive_file 0\n")
    assert control_group_bytes(membership, tmp_path) == 50 * MB


def test_control_groups_of_the_first_version_and_of_a_container_are_read(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("3:cpuset:/\n4:memory:/outside/name\n")
    group(tmp_path / "memory", V1, str(700 * MB), 200 * MB, f"total_inactive_file {50 * MB}\n")
    assert control_group_bytes(membership, tmp_path) == 550 * MB
    group(tmp_path / "memory", V1, "9223372036854771712", 200 * MB, "total_inactive_file 0\n")
    assert control_group_bytes(membership, tmp_path) is None


def test_a_machine_without_control_groups_has_no_such_limit(tmp_path: Path) -> None:
    assert control_group_bytes(tmp_path / "cgroup", tmp_path) is None


def test_the_peak_covers_what_was_held_and_is_forgotten_where_the_system_can() -> None:
    before = resident_bytes(CPU)
    # New pages: numpy may take memory that an earlier test freed and that is still resident.
    pages = mmap.mmap(-1, 80 * MB)
    np.frombuffer(pages, np.uint8)[:] = 1
    assert peak_bytes(CPU) >= before + 40 * MB
    highest = peak_bytes(CPU)
    pages.close()
    if forget_peak(CPU):
        assert peak_bytes(CPU) < highest - 40 * MB
    else:
        assert not (PROC / "clear_refs").exists()
    assert peak_bytes(CPU) >= resident_bytes(CPU) // 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how memory is given back is set for glibc alone")
@pytest.mark.parametrize("given", [{}, {"MALLOC_TRIM_THRESHOLD_": "0"}], ids=["ours", "the user's"])
def test_a_command_keeps_freed_memory_though_it_has_started_already_and_the_users_settings_win(
    given: dict[str, str],
) -> None:
    """Memory that is freed and taken again costs a page fault for each 4 KiB where the kernel got it back."""
    program = (
        "import resource; from bardflow.home import set_up_computing; set_up_computing()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def take(): return [b'x' * 2**23 for _ in range(20)]\n"
        "take(); before = faults(); take(); print(faults() - before)"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=kept | given)
    pages = 20 * 2**23 // resource.getpagesize()
    assert (int(done.stdout) < 0.01 * pages) == (not given)
