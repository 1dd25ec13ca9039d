"""Requests to Prefect's REST API about interrupted runs, the work pool, deployments and their next runs."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from pydantic import BaseModel, ConfigDict

from bardflow.commands.processes import FLOW_RUN, UpError, end_of, environment_of, start
from bardflow.home import home, password

POOL = "bardflow"
WORKER = "bardflow"
UNDER_WAY = ("PENDING", "RUNNING", "CANCELLING")
AUTOMATION = "bardflow: lost runs are crashed"
HEARTBEAT_SECONDS = 30  # as in prefect.yaml; the least that Prefect takes
LOST_HEARTBEATS = 10
BUSY_PAUSES_SECONDS = (0.2, 0.5, 1, 2, 4)
PLAN_SECONDS = 20  # the scheduler looks at changed deployments every 5 s


class State(BaseModel):
    """The state of a flow run; only the fields used here."""

    model_config = ConfigDict(frozen=True)

    timestamp: datetime
    message: str | None


class FlowRun(BaseModel):
    """A flow run in Prefect's REST API; only the fields used here."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    state: State
    state_type: str
    labels: dict[str, str | int | float | bool]
    run_count: int
    auto_scheduled: bool
    expected_start_time: datetime
    work_pool_name: str | None


class Deployment(BaseModel):
    """A deployment in Prefect's REST API; only the fields used here. `title` is `<flow>/<deployment>`."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    entrypoint: str
    title: str
    scheduled: bool


class PatientTransport(httpx.HTTPTransport):
    """Sends a request again that the server answers with 503: so it says that its database was locked."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for pause in BUSY_PAUSES_SECONDS:
            response = super().handle_request(request)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return response
            response.close()
            time.sleep(pause)
        return super().handle_request(request)


def api(url: str) -> httpx.Client:
    """Return an HTTP client for the server. Importing Prefect's own client takes 1.5 s and 60 MB."""
    name, _, secret = (password() or "").partition(":")
    auth = (name, secret) if name else None
    return httpx.Client(base_url=url, timeout=60, trust_env=False, auth=auth, transport=PatientTransport())


def ask(client: httpx.Client, path: str, question: dict[str, Any]) -> Any:
    """POST a request and return the response's JSON.

    Raises:
        UpError: the server refused the request or did not answer.
    """
    try:
        response = client.post(path, json=question)
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        raise UpError(f"The server refused {path}: {error.response.status_code} {error.response.text}") from error
    except httpx.HTTPError as error:
        raise UpError(f"The server did not answer {path}: {error!r}. Its log is {home() / 'logs'}.") from error
    return response.json() if response.content else None


# Flow runs


def runs_under_way(client: httpx.Client) -> list[FlowRun]:
    """Return the runs of our work pool that are pending, running or being cancelled."""
    question = {
        "work_pools": {"name": {"any_": [POOL]}},
        "flow_runs": {"state": {"type": {"any_": UNDER_WAY}}},
        "limit": 200,  # the server's maximum for one request
    }
    return [FlowRun.model_validate(run) for run in ask(client, "/flow_runs/filter", question)]


def read_runs(client: httpx.Client, ids: set[str]) -> list[FlowRun]:
    """Return the flow runs with these ids."""
    answers = ask(client, "/flow_runs/filter", {"flow_runs": {"id": {"any_": sorted(ids)}}})
    return [FlowRun.model_validate(run) for run in answers]


def is_ours(run: FlowRun) -> bool:
    """Return whether the worker of `bard up` took the run, and not a worker of another pool or on another machine.

    Only then does its process show that it lives: a container's may not be seen from here.
    """
    return run.work_pool_name == POOL and run.labels.get("prefect.worker.name", WORKER) == WORKER


def reschedule(client: httpx.Client, runs: list[FlowRun]) -> list[FlowRun]:
    """Set runs whose process is dead back to Scheduled, and return them; set those being cancelled to Cancelled.

    Runs that have ended, or whose process is alive, or that are on another machine, are not changed.
    """
    alive = {environment_of(process).get(FLOW_RUN) for process in psutil.process_iter()}
    again = []
    for run in runs:
        if run.id in alive or run.state_type not in UNDER_WAY or not is_ours(run):
            continue
        end_tasks(client, run)
        if run.state_type == "CANCELLING":
            state: dict[str, Any] = {"type": "CANCELLED", "message": "Cancelled; its process was killed."}
        else:
            message = "Its process was ended; it resumes from its last finished task."
            state = scheduled(run, "Resuming", message, datetime.now(UTC))
            again.append(run)
        # Forced, because no rule of Prefect allows this change from Running. The concurrency slot is still released.
        ask(client, f"/flow_runs/{run.id}/set_state", {"state": state, "force": True})
    return again


def end_tasks(client: httpx.Client, run: FlowRun) -> None:
    """Set the unfinished tasks of a run whose process is dead to Crashed."""
    question = {
        "flow_runs": {"id": {"any_": [run.id]}},
        "task_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
    }
    for task in ask(client, "/task_runs/filter", question):
        crashed = {"type": "CRASHED", "message": "The process of the flow run ended."}
        ask(client, f"/task_runs/{task['id']}/set_state", {"state": crashed, "force": True})


def scheduled(run: FlowRun, name: str, message: str, due: datetime) -> dict[str, Any]:
    """Return a Scheduled state with this name, so that a worker resumes the run once it is due."""
    # `prefect deploy` deletes auto-scheduled runs that never ran, except those that wait for a slot (Prefect 3.8.8).
    return {
        "type": "SCHEDULED",
        "name": "AwaitingConcurrencySlot" if run.auto_scheduled and run.run_count == 0 else name,
        "message": message,
        "state_details": {"scheduled_time": due.isoformat()},
    }


# Pool, deployments, worker


def make_pool(client: httpx.Client) -> None:
    """Create the work pool if it does not exist. An existing pool is not changed.

    It runs one flow at a time, because two training runs would share cores and memory and distort an experiment with a
    time budget. A limit on one deployment would not stop a run of another deployment.
    """
    pool = {
        "name": POOL,
        "type": "process",
        "description": "Flow runs as processes on this machine, by `bard up`.",
        "concurrency_limit": 1,
    }
    try:
        response = client.post("/work_pools/", json=pool)
    except httpx.HTTPError as error:
        raise UpError(f"The server did not answer: {error!r}. Its log is in {home() / 'logs'}.") from error
    if response.status_code not in (httpx.codes.CREATED, httpx.codes.CONFLICT):
        raise UpError(f"The server refused the work pool {POOL!r}: {response.status_code} {response.text}")


def has_pool(client: httpx.Client, pool: str) -> bool:
    """Return whether the server has a work pool of this name."""
    return bool(ask(client, "/work_pools/filter", {"work_pools": {"name": {"any_": [pool]}}}))


def make_automation(client: httpx.Client) -> None:
    """Create the automation that marks runs on other machines as Crashed when their heartbeats stop.

    The process of a run on this machine is watched by its worker. Five minutes without an event are ten heartbeats,
    so neither a restart of the server nor a short loss of the network is taken for a crash. The server itself notes
    that a run is Running, so a machine that is lost before the first heartbeat is missed too. An automation as earlier
    versions made it is replaced; one with changes of the user's is not.
    """
    found = ask(client, "/automations/filter", {"automations": {"name": {"any_": [AUTOMATION]}}})
    if found and found[0]["trigger"].get("after") != ["prefect.flow-run.heartbeat"]:
        return
    trigger = {
        "type": "event",
        "posture": "Proactive",
        "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
        "for_each": ["prefect.resource.id"],
        "after": ["prefect.flow-run.Running", "prefect.flow-run.heartbeat"],
        "expect": ["prefect.flow-run.*"],
        "threshold": 1,
        "within": LOST_HEARTBEATS * HEARTBEAT_SECONDS,
    }
    message = f"No heartbeat for {LOST_HEARTBEATS * HEARTBEAT_SECONDS} s: the process or its machine is gone."
    automation = {
        "name": AUTOMATION,
        "description": "Marks a run as Crashed when its heartbeats stop; `bard up` then runs it again.",
        "trigger": trigger,
        "actions": [{"type": "change-flow-run-state", "state": "CRASHED", "message": message}],
    }
    ask(client, "/automations/", automation)
    for old in found:
        client.delete(f"/automations/{old['id']}").raise_for_status()


def deploy(client: httpx.Client, project: Path) -> list[Deployment]:
    """Deploy prefect.yaml and return all deployments on the server.

    Raises:
        UpError: Prefect refused the file or skipped an entry; the message has the end of its log.
    """
    exit_status = -1
    while exit_status < 0:  # killed, and not by an error of its own
        child = start(project, "deploy", ["--no-prompt", "deploy", "--all"], {"PREFECT_API_URL": str(client.base_url)})
        exit_status = child.process.wait()
    if exit_status != 0:
        raise UpError(f"Prefect could not deploy {project / 'prefect.yaml'}. {end_of(child.log)}")
    deployments = all_deployments(client)
    if not deployments:
        raise UpError(f"There is no deployment in {project / 'prefect.yaml'}. {end_of(child.log)}")
    missing = declared(project) - {(deployment.entrypoint, deployment.name) for deployment in deployments}
    if missing:
        skipped = ", ".join(f"{name} of {entrypoint}" for entrypoint, name in sorted(missing))
        raise UpError(f"Prefect skipped {skipped} in {project / 'prefect.yaml'}. {end_of(child.log)}")
    return deployments


def all_deployments(client: httpx.Client) -> list[Deployment]:
    """Return every deployment on the server, sorted by title."""
    flows = {flow["id"]: flow["name"] for flow in ask(client, "/flows/filter", {})}
    found = [
        Deployment(
            id=answer["id"],
            name=answer["name"],
            entrypoint=answer["entrypoint"],
            title=f"{flows[answer['flow_id']]}/{answer['name']}",
            scheduled=not answer["paused"] and any(schedule["active"] for schedule in answer["schedules"]),
        )
        for answer in ask(client, "/deployments/filter", {})
    ]
    return sorted(found, key=lambda deployment: deployment.title)


def declared(project: Path) -> set[tuple[str, str]]:
    """Return the entry point and the name of each deployment in prefect.yaml."""
    content = yaml.safe_load((project / "prefect.yaml").read_text(encoding="utf-8"))
    return {(entry["entrypoint"], entry["name"]) for entry in content["deployments"]}


def worker_seen(client: httpx.Client, since: datetime) -> bool:
    """Return whether our worker has sent a heartbeat since then."""
    workers = ask(client, f"/work_pools/{POOL}/workers/filter", {})
    return any(
        worker["name"] == WORKER and datetime.fromisoformat(worker["last_heartbeat_time"]) >= since
        for worker in workers
    )


def planned_starts(client: httpx.Client, deployments: list[Deployment]) -> dict[str, datetime]:
    """Return each deployment's next planned start by id; waits up to 20 s until every active schedule has one."""
    wanted = [deployment.id for deployment in deployments if deployment.scheduled]
    deadline = time.monotonic() + PLAN_SECONDS
    while True:
        planned = next_starts(client, wanted)
        if len(planned) == len(wanted) or time.monotonic() > deadline:
            return planned
        time.sleep(0.5)


def next_starts(client: httpx.Client, deployments: list[str]) -> dict[str, datetime]:
    """Return the next planned start of each deployment by its id, for those that have one."""
    planned = {}
    for deployment_id in deployments:
        question = {
            "deployments": {"id": {"any_": [deployment_id]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": 1,
        }
        for run in ask(client, "/flow_runs/filter", question):
            planned[deployment_id] = FlowRun.model_validate(run).expected_start_time
    return planned
