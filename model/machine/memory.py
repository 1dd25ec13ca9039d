"""Measured memory: free memory, the current use of this process, and its peak."""

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from bardflow.errors import BardError
from bardflow.model.machine.device import Device

PROC = Path("/proc/self")
CGROUPS = Path("/sys/fs/cgroup")

_UNITS = {"": 1, "b": 1} | {
    spelling: base**power
    for power, letter in enumerate("kmgt", start=1)
    for spelling, base in ((letter, 1000), (f"{letter}b", 1000), (f"{letter}ib", 1024))
}


class BadLimit(BardError):
    """A memory limit is not a positive number of bytes."""


def limit_bytes(given: int | str, device: Device) -> int:
    """Return a limit in bytes, given as a number, a text such as `800MB`, `2GiB` or `1.5 GB`, or `free`.

    `free` means `free_bytes`.

    Raises:
        BadLimit: it is none of these, or not positive.
    """
    text = str(given).strip().lower()
    if text == "free":
        return free_bytes(device)
    limit = parsed_bytes(text)
    if limit <= 0:
        raise BadLimit(
            f"memory_limit is {given!r}, but a positive number of bytes is expected, or a text such as 800MB or 2GiB, "
            "or free for what the machine has free"
        )
    return limit


def parsed_bytes(text: str) -> int:
    """Return a number of bytes, given as `800MB`, `2GiB`, `1.5 GB` or `1000`; 0 if the text is something else."""
    matched = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([a-z]*)", text.strip().lower())
    return int(float(matched[1]) * _UNITS[matched[2]]) if matched and matched[2] in _UNITS else 0


def free_bytes(device: Device) -> int:
    """The memory that this process can use in all: its current use plus the free memory of the device.

    Except on CUDA, free memory is what the system reports as available, or less if a control group limits the process.
    """
    if device.name == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved()
    available = psutil.virtual_memory().available
    left = control_group_bytes(PROC / "cgroup", CGROUPS)
    return resident_bytes(device) + (available if left is None else min(available, left))


def control_group_bytes(membership: Path, mounted: Path) -> int | None:
    """The memory that control groups (Linux, versions 1 and 2) leave to this process, or None without a limit.

    `membership` is /proc/self/cgroup, and `mounted` the folder where the groups are mounted. A group's limit also
    applies to its children, so each group up to the root counts. Cached file pages count as free, because the system
    frees them when memory is short.
    """
    if not membership.is_file():
        return None
    left: list[int] = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = mounted / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        # In a container, the path may be the one outside, which does not exist; then the root is its group.
        for folder in [group, *group.parents] if group.is_dir() else [root]:
            if not folder.is_relative_to(root):
                break
            limit, usage = folder / names[0], folder / names[1]
            if not limit.is_file() or not usage.is_file() or limit.read_text().strip() == "max":
                continue
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            held = int(usage.read_text()) - int(statistics.get(names[2], 0))
            # In version 1, "no limit" is the largest number of pages.
            if int(limit.read_text()) < 2**60:
                left.append(max(0, int(limit.read_text()) - held))
    return min(left, default=None)


def resident_bytes(device: Device) -> int:
    """The current memory use of this process: device memory on CUDA, resident memory elsewhere."""
    if device.name == "cuda":
        return torch.cuda.memory_reserved()
    resident: int = psutil.Process().memory_info().rss
    return resident


def forget_peak(device: Device) -> bool:
    """Return freed memory, then reset `peak_bytes`. Return False if the system cannot reset it.

    Linux resets the peak when 5 is written to /proc/self/clear_refs (proc(5)). Other systems only have the peak since
    the process started.
    """
    if device.name == "cuda":
        give_back(device)
        torch.cuda.reset_peak_memory_stats()
        return True
    give_back(device)
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def give_back(device: Device) -> None:
    """Return freed memory to the system.

    glibc, and torch on a GPU, keep it otherwise: copies from one leg would count in the next leg's peak.
    """
    if device.name == "cuda":
        torch.cuda.empty_cache()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


# glibc's mallopt(3): from this size on, an allocation is a mapping of its own. Its number in malloc.h, the size in
# blocks that are put together from shards, and that of all other work (bardflow.home.computing_environment).
M_MMAP_THRESHOLD, MAPPED_BYTES, USUAL_BYTES = -3, 2**20, 2**25


@contextmanager
def large_tensors_mapped(device: Device) -> Iterator[None]:
    """Give each large tensor on a CPU a mapping of its own in this block, so that freed ones leave no unused memory.

    It takes time. Blocks in shards are allocated and freed again and again: without this a leg of 85 M parameters on
    two workers took more memory than with whole copies (1,864 and 1,521 MB; with it 812).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if device.name == "cpu" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, USUAL_BYTES)


def peak_bytes(device: Device) -> int:
    """The peak memory use since `forget_peak`: device memory on CUDA, resident memory elsewhere."""
    if device.name == "cuda":
        return torch.cuda.max_memory_reserved()
    if (PROC / "status").is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (PROC / "status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
