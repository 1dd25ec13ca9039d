"""`bard doctor`: what in the set-up of this machine and project does not work, and what to do about it."""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

import yaml
from packaging.requirements import Requirement
from pydantic import BaseModel, ConfigDict

from bardflow.commands.console import opened, prepare_prefect
from bardflow.commands.prefect_api import api, ask
from bardflow.errors import BardError
from bardflow.home import healthy, held, home, prefect_environment, project_folder, up_lock
from bardflow.sources.corpora import corpus_names, load_corpus
from bardflow.storage.refs import Refs
from bardflow.toml import read_toml

# What a wrong version does with Prefect 3.8.8, as it was found by running it.
BREAKS = {
    "fastapi": "Prefect's server does not start with it",
    "sqlalchemy": "Prefect creates no scheduled run with it",
}
LITTLE_BYTES, TOO_LITTLE_BYTES = 5 * 10**9, 5 * 10**8
# The year before which nothing of bardflow was made: a machine without a clock starts in 1970.
FIRST_YEAR = 2025
# Not compared: they concern only the speed or this process's own output.
OTHERS = {"NO_PROXY", "no_proxy", "GOMP_SPINCOUNT", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}


class Check(BaseModel):
    """One check: its level, what was found, and what to do if it is not ok."""

    model_config = ConfigDict(frozen=True)

    name: str
    level: Literal["ok", "warning", "error"]
    found: str
    todo: str = ""


def ok(name: str, found: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name=name, level="ok", found=found)


def warning(name: str, found: str, todo: str) -> Check:
    """Return a check that found something which may be meant."""
    return Check(name=name, level="warning", found=found, todo=todo)


def error(name: str, found: str, todo: str) -> Check:
    """Return a check that found something which does not work."""
    return Check(name=name, level="error", found=found, todo=todo)


def examine() -> list[Check]:
    """Run all checks. A check that cannot be run is an error, and the others still run."""
    checks: list[Check] = []
    for name, check in CHECKS.items():
        try:
            checks += check()
        except (BardError, OSError, ValueError) as wrong:
            checks.append(error(name, str(wrong), "correct this, and run `bard doctor` again"))
    return checks


def python() -> Iterator[Check]:
    """Python, and torch's build."""
    yield ok("Python", ".".join(map(str, sys.version_info[:3])))
    from bardflow.model.machine import device

    chosen = device.choose("f32").name
    build = f"{metadata.version('torch')}, computes on {chosen}"
    if chosen == "cpu" and Path("/dev/nvidia0").exists():
        yield warning("torch", f"{build}, but there is an NVIDIA card", "install torch's CUDA build, or its driver")
    else:
        yield ok("torch", build)


def packages() -> Iterator[Check]:
    """The installed versions beside those that bardflow needs."""
    checked = 0
    for text in metadata.requires("bardflow") or []:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        checked += 1
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not need.specifier.contains(version, prereleases=True):
            why = BREAKS.get(need.name.lower())
            found = f"{need.name} {version or 'is not installed'}{f': {why}' if why else ''}"
            yield error("packages", found, f"pip install '{need.name}{need.specifier}'")
    yield ok("packages", f"{checked} checked")
    if "bardflow" not in {point.name for point in metadata.entry_points(group="prefect.plugins")}:
        yield warning("packages", "Prefect does not know bardflow's plugin", "install bardflow again: ./install.sh")


def storage() -> Iterator[Check]:
    """The home: writable, with locks and links, enough space, and times that are not in the future."""
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=home()) as folder:
        file = Path(folder) / "file"
        with file.open("wb") as opened:
            opened.write(b"1")
            os.fsync(opened.fileno())
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            os.link(file, Path(folder) / "link")
            yield ok("home", f"{home()} is writable, with locks and hard links")
        except OSError as wrong:
            yield warning(
                "home",
                f"{home()} has no hard links ({wrong.strerror})",
                "names are stored under a lock instead; for several machines set BARDFLOW_HOME to another file system",
            )
    free = shutil.disk_usage(home()).free
    said = f"{free / 1e9:,.1f} GB free"
    if free < LITTLE_BYTES:
        too_little = free < TOO_LITTLE_BYTES
        todo = "free some space, or run `bard gc`; `bard plan` says what a run needs"
        yield error("disk", said, todo) if too_little else warning("disk", said, todo)
    else:
        yield ok("disk", said)
    now = datetime.now(UTC)
    refs = Refs(home())
    latest = max((head.at for name in refs.names() if (head := refs.head(name))), default="")
    if now.year < FIRST_YEAR:
        yield error("clock", f"{now:%Y-%m-%d %H:%M} UTC", "set the clock; schedules and ages depend on it")
    elif latest > now.isoformat():
        yield warning("clock", f"the store has an entry of {latest}, which is in the future", "set the clock")
    else:
        yield ok("clock", f"{now:%Y-%m-%d %H:%M} UTC")


def remote() -> Iterator[Check]:
    """The remote: it answers, honours conditional writes, and is not ahead of this version."""
    there = opened()[0].remote
    if there is None:
        return
    if there.known() is None:
        yield ok("remote", f"{there.where} answers, and is empty; the first run or `bard push` fills it")
        return
    there.writable()
    yield ok("remote", f"{there.where} answers, and honours conditional writes")


def project() -> Iterator[Check]:
    """The project's corpora, recipes and deployments."""
    prepare_prefect()
    from bardflow.tasks.recipes import load_recipe, recipe_names

    folder = project_folder() / "corpora"
    names = corpus_names(folder)
    broken = list(failures(names, lambda name: load_corpus(name, folder)))
    yield from (error("corpora", said, "correct the file, or move it out of corpora/") for said in broken)
    yield ok("corpora", f"{len(names) - len(broken)} can be read")
    recipes = recipe_names()
    broken = list(failures(recipes, load_recipe))
    yield from (error("recipes", said, "correct the file, or move it out of recipes/") for said in broken)
    yield ok("recipes", f"{len(recipes) - len(broken)} can be read")
    file = project_folder() / "prefect.yaml"
    try:
        entries = [entry["entrypoint"] for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]]
    except (yaml.YAMLError, LookupError, TypeError) as wrong:
        yield error("deployments", f"{file} is not as it should be: {wrong!r}", "compare it with that of `bard init`")
        return
    if not any(entry.startswith("bardflow.flows.clean_up:") for entry in entries):
        todo = "copy the deployment `clean-up/nightly` from the prefect.yaml of `bard init`"
        yield warning("deployments", f"{len(entries)}, but none that bounds the size of the home", todo)
    else:
        yield ok("deployments", f"{len(entries)} in {file.name}")


def failures(names: list[str], read: Callable[[str], object]) -> Iterator[str]:
    """Yield the error of each name that cannot be read."""
    for name in names:
        try:
            read(name)
        except BardError as wrong:
            yield str(wrong)


def server() -> Iterator[Check]:
    """The server of `bard up`, and the address that typed `prefect` commands use."""
    url = up_lock().read_text(encoding="utf-8") if held(up_lock()) else None
    if url is None and (other := os.environ.get("PREFECT_API_URL")):
        yield from other_server(other)
    elif url is None:
        yield ok("server", "`bard up` does not run; each command starts a temporary server")
    elif healthy(url):
        yield ok("server", f"answers at {url}")
    else:
        todo = f"wait until it has started, or read {home() / 'logs' / 'server.log'}"
        yield error("server", f"`bard up` runs, but {url or 'its server'} does not answer", todo)
    typed = os.environ.get("PREFECT_API_URL", typed_address())
    if url is not None and typed is not None and typed.rstrip("/") != url:
        todo = f"set PREFECT_API_URL={url} where you type `prefect` commands"
        yield warning(
            "server", f"typed `prefect` commands call {typed or 'no address'}, and `bard up` is at {url}", todo
        )


def other_server(url: str) -> Iterator[Check]:
    """The server at PREFECT_API_URL, which `bard up` did not start, and whether its work pools have a worker."""
    if not healthy(url):
        todo = "start it, or correct PREFECT_API_URL, which ends in /api"
        yield error("server", f"nothing answers at {url} (PREFECT_API_URL)", todo)
        return
    yield ok("server", f"answers at {url} (PREFECT_API_URL); `bard up` does not run")
    with api(url) as client:
        used = {deployment["work_pool_name"] for deployment in ask(client, "/deployments/filter", {})}
        for pool in ask(client, "/work_pools/filter", {}):
            if pool["name"] in used and pool["status"] != "READY":
                said = "is paused" if pool["status"] == "PAUSED" else "has deployments, but no worker is online"
                todo = f"prefect work-pool resume {pool['name']}"
                todo = todo if pool["status"] == "PAUSED" else f"prefect worker start --pool {pool['name']}"
                yield warning("work pools", f"{pool['name']!r} ({pool['type']}) {said}", todo)
            elif pool["name"] in used:
                yield ok("work pools", f"{pool['name']!r} ({pool['type']}) has a worker")


def typed_address() -> str | None:
    """Return the API address in the project's `prefect.toml` or `pyproject.toml`; None if there is none."""
    for name, keys in (("prefect.toml", ()), ("pyproject.toml", ("tool", "prefect"))):
        path = project_folder() / name
        table = read_toml(path, BardError) if path.is_file() else {}
        for key in (*keys, "api"):
            table = table.get(key, {})
        if table.get("url"):
            return str(table["url"])
    return None


def settings() -> Iterator[Check]:
    """Environment variables that `bard` sets itself, with another value."""
    ours = prefect_environment()
    other = [name for name, value in ours.items() if name not in OTHERS and os.environ.get(name, value) != value]
    for name in other:
        found = f"{name} is {os.environ[name]!r}; bard uses {ours[name]!r}"
        yield warning("settings", found, f"unset {name}, so that `prefect` commands use the same data as `bard`")
    if os.environ.get("PREFECT_API_URL") == "":
        yield error("settings", "PREFECT_API_URL is empty, which breaks Prefect's events", "unset PREFECT_API_URL")
    elif not other:
        yield ok("settings", "no variable conflicts")


CHECKS: dict[str, Callable[[], Iterator[Check]]] = {
    "Python": python,
    "packages": packages,
    "home": storage,
    "remote": remote,
    "server": server,
    "settings": settings,  # before `project`, which sets these variables and imports Prefect
    "project": project,
}


def text_of(checks: list[Check]) -> str:
    """Return the checks for people, one in a line, with what to do below."""
    lines = []
    for check in checks:
        lines.append(f"{check.level:<8} {check.name:<12} {check.found}")
        lines += [f"{'':<21} -> {check.todo}"] if check.todo else []
    return "\n".join(lines)
