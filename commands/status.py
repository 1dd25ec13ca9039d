"""`bard status`: server, worker, schedules, last runs, disk use and champions, gathered without importing Prefect."""

import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx
from pydantic import BaseModel, ConfigDict

from bardflow.commands.console import opened
from bardflow.commands.prefect_api import POOL, WORKER, all_deployments, api, ask, next_starts
from bardflow.commands.processes import UpError
from bardflow.home import healthy, held, home, up_lock
from bardflow.storage.garbage import size
from bardflow.storage.handles import KINDS, Evaluation
from bardflow.storage.manifests import StoreError
from bardflow.storage.refs import Refs
from bardflow.storage.store import Store

RUNS = 8
# A worker sends a heartbeat every 30 s; Prefect counts one as offline after three of them.
OFFLINE_SECONDS = 90
LAST_RUNS = f"""
select flow.name, flow_run.name, flow_run.state_type, flow_run.state_name, flow_run_state.message,
       flow_run.start_time, flow_run.end_time
from flow_run join flow on flow.id = flow_run.flow_id left join flow_run_state on flow_run_state.id = flow_run.state_id
where flow_run.start_time is not null order by flow_run.start_time desc limit {RUNS}
"""


class Frozen(BaseModel):
    """A value of the status."""

    model_config = ConfigDict(frozen=True)


class Scheduled(Frozen):
    """A deployment with a schedule, and its next start; None if none is planned."""

    deployment: str
    next: datetime | None


class LastRun(Frozen):
    """A flow run, with its state and the first line of the state's message."""

    flow: str
    name: str
    type: str
    state: str
    message: str
    started: datetime
    seconds: float | None


class Champion(Frozen):
    """The champion of a corpus: its score in bits per character (None if that is not stored) and since when."""

    corpus: str
    recipe: str
    model: str
    bits_per_character: float | None
    since: datetime


class Status(Frozen):
    """The state of a project. `disk` is in bytes by kind; `problems` are what could not be read."""

    home: Path
    remote: str | None
    server: Literal["running", "not answering", "not running"]
    url: str | None
    worker: Literal["online", "offline"]
    schedules: list[Scheduled]
    runs: list[LastRun]
    disk: dict[str, int]
    free: int
    champions: list[Champion]
    problems: list[str]


def gather() -> Status:
    """Return the state of the project. Without a running `bard up`, the last runs are read from Prefect's database."""
    problems: list[str] = []
    url = up_lock().read_text(encoding="utf-8") if held(up_lock()) else None
    server: Literal["running", "not answering", "not running"] = "not running"
    schedules: list[Scheduled] = []
    runs: list[LastRun] = []
    worker: Literal["online", "offline"] = "offline"
    if url is not None:
        server = "running" if healthy(url) else "not answering"
    if url is not None and server == "running":
        try:
            with api(url) as client:
                worker = "online" if is_online(client) else "offline"
                schedules = planned(client)
                runs = runs_of_server(client)
        except UpError as error:
            problems.append(str(error))
    else:
        try:
            runs = runs_of_file(home() / "prefect" / "prefect.db")
        except sqlite3.Error as error:
            problems.append(f"Prefect's database could not be read: {error}")
    return Status(
        home=home(),
        remote=remote_state(),
        server=server,
        url=url,
        worker=worker,
        schedules=schedules,
        runs=runs,
        disk=disk_use(home()),
        free=shutil.disk_usage(next(path for path in (home(), *home().parents) if path.exists())).free,
        champions=champions(problems),
        problems=problems,
    )


def remote_state() -> str | None:
    """Return the address of the remote and whether it answers; None without one."""
    remote = opened()[0].remote
    if remote is None:
        return None
    from bardflow.storage.remote.syncing import state_of

    return f"{remote.where} {state_of(remote)}"


def is_online(client: httpx.Client) -> bool:
    """Return whether our worker sent a heartbeat lately."""
    now = datetime.now(UTC)
    if not ask(client, "/work_pools/filter", {"work_pools": {"name": {"any_": [POOL]}}}):
        return False  # `bard up` has not created the pool yet
    return any(
        worker["name"] == WORKER
        and (now - datetime.fromisoformat(worker["last_heartbeat_time"])).total_seconds() < OFFLINE_SECONDS
        for worker in ask(client, f"/work_pools/{POOL}/workers/filter", {})
    )


def planned(client: httpx.Client) -> list[Scheduled]:
    """Return the deployments with a schedule, the next one first."""
    deployments = [deployment for deployment in all_deployments(client) if deployment.scheduled]
    starts = next_starts(client, [deployment.id for deployment in deployments])
    found = [Scheduled(deployment=one.title, next=starts.get(one.id)) for one in deployments]
    return sorted(found, key=lambda one: (one.next is None, one.next, one.deployment))


def runs_of_server(client: httpx.Client) -> list[LastRun]:
    """Return the runs that started last, the latest first."""
    flows = {flow["id"]: flow["name"] for flow in ask(client, "/flows/filter", {})}
    question = {"flow_runs": {"start_time": {"is_null_": False}}, "sort": "START_TIME_DESC", "limit": RUNS}
    return [
        last_run(
            flows.get(run["flow_id"], "?"), run["name"], run["state_type"], run["state_name"],
            run["state"]["message"], run["start_time"], run["end_time"],
        )
        for run in ask(client, "/flow_runs/filter", question)
    ]  # fmt: skip


def runs_of_file(database: Path) -> list[LastRun]:
    """Return the runs that started last from Prefect's SQLite file; none if there is no file.

    Raises:
        sqlite3.Error: the file is not such a database.
    """
    if not database.is_file():
        return []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return [last_run(*row) for row in connection.execute(LAST_RUNS)]


def last_run(
    flow: str, name: str, type_: str, state: str, message: str | None, started: str, ended: str | None
) -> LastRun:
    """Return a run, from Prefect's values."""
    start = in_utc(started)
    return LastRun(
        flow=flow,
        name=name,
        type=type_,
        state=state,
        message=(message or "").partition("\n")[0],
        started=start,
        seconds=None if ended is None else (in_utc(ended) - start).total_seconds(),
    )


def in_utc(text: str) -> datetime:
    """Parse a time; those in the database have no time zone and are UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def disk_use(folder: Path) -> dict[str, int]:
    """Return the bytes of the home by kind of artifact and by folder, without those of 0 bytes."""
    parts = {kind: folder / "objects" / kind for kind in KINDS}
    parts |= {"cached results": folder / "prefect" / "results"}
    parts |= {name: folder / name for name in ("downloads", "drafts", "searches", "logs")}
    sizes = {name: size(path) for name, path in parts.items() if path.exists()}
    sizes["Prefect's database"] = sum(size(path) for path in (folder / "prefect").glob("prefect.db*"))
    sizes["other"] = size(folder) - sum(sizes.values()) if folder.exists() else 0
    return {name: count for name, count in sizes.items() if count > 0}


def champions(problems: list[str]) -> list[Champion]:
    """Return the champion of each corpus, and add errors to `problems`."""
    refs, store = Refs(home()), Store(home())
    found = []
    for name in refs.names():
        if not name.endswith("/champion"):
            continue
        try:
            entry = refs.head(name)
            assert entry is not None
            bits = None
            try:
                bits = store.facts(Evaluation(digest=entry.notes["evaluation"]))["bits_per_character"]
            except StoreError as error:
                problems.append(str(error))
            found.append(
                Champion(
                    corpus=name.removesuffix("/champion"),
                    recipe=entry.notes["recipe"],
                    model=entry.digest,
                    bits_per_character=bits,
                    since=datetime.fromisoformat(entry.at),
                )
            )
        except StoreError as error:
            problems.append(str(error))
    return found


def text_of(status: Status) -> str:
    """Return the status for people, on one screen."""
    lines = [f"home      {status.home}"]
    lines += [] if status.remote is None else [f"remote    {status.remote}"]
    at = "" if status.url is None else f" at {status.url.removesuffix('/api')}"
    missing = "; `bard up` starts it" if status.server == "not running" else ""
    missing = f"; see {status.home / 'logs' / 'server.log'}" if status.server == "not answering" else missing
    lines += [f"server    {status.server}{at}{missing}", f"worker    {status.worker}"]
    if status.schedules:
        lines.append("\nnext runs")
        width = max(len(one.deployment) for one in status.schedules)
        lines += [
            f"  {one.deployment:<{width}}  {when(one.next) if one.next else 'not planned'}" for one in status.schedules
        ]
    lines.append("\nlast runs" if status.runs else "\nno run yet: `bard train` starts one")
    for run in status.runs:
        took = "" if run.seconds is None else f"{run.seconds:,.0f} s"
        why = f"  {run.message[:70]}" if run.type in ("FAILED", "CRASHED") or run.state == "OverBudget" else ""
        lines.append(f"  {when(run.started)}  {run.flow:<20} {run.state:<12} {took:>8}{why}")
    lines.append("\nchampions" if status.champions else "\nno champion yet")
    for champion in status.champions:
        bits = f"{champion.bits_per_character:.4f} bits per character" if champion.bits_per_character else "no score"
        lines.append(
            f"  {champion.corpus:<22} {bits:<28} {champion.recipe:<10} {champion.model[:8]}  {when(champion.since)}"
        )
    lines.append(f"\ndisk      {sum(status.disk.values()) / 1e6:,.1f} MB in the home, {status.free / 1e9:,.1f} GB free")
    by_size = sorted(status.disk.items(), key=lambda part: -part[1])
    lines += [f"  {name:<20} {count / 1e6:>10,.1f} MB" for name, count in by_size if count >= 50_000]
    lines += [f"\nNot readable: {problem}" for problem in status.problems]
    return "\n".join(lines)


def when(time: datetime) -> str:
    """Format a time in this machine's time zone."""
    return f"{time.astimezone():%a %d %b %H:%M}"
