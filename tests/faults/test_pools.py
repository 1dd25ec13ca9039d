"""Another work pool with a worker and a home of its own, and the jobs that Prefect's workers for containers make."""

import asyncio
import copy
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect import settings
from prefect.client.schemas.objects import FlowRun

from bardflow.commands.prefect_api import PatientTransport, ask
from bardflow.storage.handles import Report
from bardflow.storage.refs import Refs
from bardflow.storage.store import Store
from tests.conftest import make_project
from tests.faults.test_postgres import LOGIN, answered, begun, ended, processes_of
from tests.project_up import PATIENCE_SECONDS, free_port, wait_for
from tests.test_deploy import image_settings
from tests.test_work_pools import DEPLOY, KINDS, printed, template

POOL = "another-pool"
# What each worker needs; `make faults` checks the jobs that it makes where this is installed.
PACKAGES = {"docker": "prefect_docker", "kubernetes": "prefect_kubernetes"}


class Machine:
    """A folder that stands for a machine: processes with an environment of their own, and a home."""

    def __init__(self, folder: Path, stack: ExitStack, **settings: str) -> None:
        self.folder, self.stack, self.home = folder, stack, folder / "home"
        folder.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "BARDFLOW"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**kept, "PATH": path, "HOME": str(folder), **settings}

    def begin(self, *command: str) -> Path:
        """Start a program, which is stopped at the end; returns the file of what it says."""
        said = self.folder / f"{uuid.uuid4().hex}.txt"
        process = subprocess.Popen(
            command, env=self.environment, cwd=self.folder, stdout=self.stack.enter_context(said.open("wb")),
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.stack.callback(process.wait, PATIENCE_SECONDS)
        self.stack.callback(os.killpg, process.pid, signal.SIGTERM)
        return said

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def environment_here(home: Path, project: Path, url: str) -> dict[str, str | None]:
    """The environment of the Docker pool's jobs, with this machine's folders and the server's address."""
    given = template("docker")["variables"]["properties"]["env"]["default"]
    here = {"http://server:4200/api": url, "/data": str(home), "/project": str(project)}

    def place(value: str | None) -> str | None:
        for theirs, ours in here.items():
            if value is not None and (value == theirs or value.startswith(f"{theirs}/")):
                return ours + value.removeprefix(theirs)
        return value

    return {name: place(value) for name, value in given.items()}


def test_deployments_run_on_another_pool_with_a_worker_and_a_home_of_its_own(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}/api"
    login = {"PREFECT_API_AUTH_STRING": LOGIN}
    with ExitStack() as stack:
        server = Machine(
            tmp_path / "server", stack, PREFECT_HOME=str(tmp_path / "server"), PREFECT_SERVER_API_PORT=str(port),
            PREFECT_SERVER_API_AUTH_STRING=LOGIN, **login,
        )  # fmt: skip
        server.begin("prefect", "server", "start")
        client = httpx.Client(base_url=url, auth=tuple(LOGIN.split(":")), timeout=60, transport=PatientTransport())
        stack.enter_context(client)
        wait_for(lambda: answered(client, "/health"), "the server")

        # One machine deploys, from its own copy of the project.
        desk = Machine(tmp_path / "desk", stack, PREFECT_API_URL=url, PREFECT_HOME=str(tmp_path / "desk"), **login)
        first = make_project(desk.folder / "project")
        desk.environment |= {"BARDFLOW_PROJECT": str(first), "BARDFLOW_HOME": str(desk.home)}
        # Another one works. Its worker has settings for itself only; those of the jobs are in the pool's template.
        host = Machine(tmp_path / "host", stack, PREFECT_API_URL=url, PREFECT_HOME=str(tmp_path / "host"), **login)
        second = make_project(host.folder / "project")
        parts = json.loads(host.run("prefect", "work-pool", "get-default-base-job-template", "--type", "process"))
        parts["variables"]["properties"]["env"]["default"] = environment_here(host.home, second, url)
        (desk.folder / "pool.json").write_text(json.dumps(parts))
        desk.run("prefect", "work-pool", "create", POOL, "--type", "process", "--base-job-template", "pool.json")
        options = ["--pool", POOL, "--directory", str(second), "--source", str(first / "prefect.yaml")]
        changed = printed("process", *options)
        (desk.folder / "variant.yaml").write_text(changed)
        desk.run("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "variant.yaml")
        worker = host.begin("prefect", "worker", "start", "--pool", POOL)
        runs = host.begin(sys.executable, "-m", "bardflow.commands.runs", POOL)

        require_the_same(client, yaml.safe_load((first / "prefect.yaml").read_text()))
        run = begun(client)
        [process] = wait_for(lambda: processes_of(run), "the run's process")
        process.kill()
        assert ended(client, run) == "COMPLETED", worker.read_text()
        assert "It crashed and is run again in 10 s (1 of 3 times)" in runs.read_text()
        [after] = ask(client, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        assert after["work_pool_name"] == POOL
        wait_for(lambda: len(scheduled(client)) == 5, "every schedule has a next run on this pool")

    entry = Refs(host.home).head("own/champion")
    assert entry is not None
    report = Store(host.home).folder(Report(digest=entry.notes["report"])) / "report.html"
    assert "own" in report.read_text()
    assert not desk.home.exists() or not (desk.home / "objects").exists(), "nothing was made where it was deployed"
    assert not (server.folder / "objects").exists()
    login_in = [path for path in host.home.rglob("*") if path.is_file() and LOGIN.encode() in path.read_bytes()]
    assert login_in == [], "the login is in no file of the home"


def require_the_same(client: httpx.Client, project: dict[str, Any]) -> None:
    """Check that the server has exactly the deployments of a prefect.yaml, on our pool."""
    found = {(one["name"], one["entrypoint"]): one for one in ask(client, "/deployments/filter", {})}
    assert len(found) == len(project["deployments"])
    for wanted in project["deployments"]:
        one = found[wanted["name"], wanted["entrypoint"]]
        assert (one["work_pool_name"], one["parameters"]) == (POOL, wanted["parameters"])
        crons = [(schedule["slug"], schedule["schedule"]["cron"], schedule["active"]) for schedule in one["schedules"]]
        assert crons == [(s["slug"], s["cron"], s["active"]) for s in wanted.get("schedules", [])]


def scheduled(client: httpx.Client) -> set[str]:
    """The deployments with a planned run on our pool."""
    question = {
        "work_pools": {"name": {"any_": [POOL]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    return {run["deployment_id"] for run in ask(client, "/flow_runs/filter", question)}


@pytest.fixture
def run() -> FlowRun:
    return FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="merry-fox")


@pytest.fixture
def worker_settings() -> Iterator[None]:
    """A worker's own settings, which it passes to its jobs where the template does not replace them."""
    own = {
        settings.PREFECT_API_URL: "http://127.0.0.1:4200/api",
        settings.PREFECT_API_AUTH_STRING: LOGIN,
        settings.PREFECT_SERVER_API_AUTH_STRING: LOGIN,
        settings.PREFECT_API_DATABASE_CONNECTION_URL: "postgresql+asyncpg://u:secret@h/d",
    }
    with settings.temporary_settings(own):
        yield


def configuration(kind: str, variables: dict[str, Any], run: FlowRun) -> Any:
    """What Prefect's worker makes of the template and of job variables, before it starts a job."""
    if kind == "docker":
        from prefect_docker.worker import DockerWorkerJobConfiguration as Configuration
    else:
        from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration
    made = asyncio.run(Configuration.from_template_and_values(template(kind), variables, client=object()))
    made.prepare_for_flow_run(run)
    return made


def job_variables(kind: str, *options: str) -> dict[str, Any]:
    """The job variables of the deployment that trains."""
    return dict(yaml.safe_load(printed(kind, *options))["deployments"][0]["work_pool"]["job_variables"])


@pytest.mark.parametrize("gpus", [0, 2])
def test_the_docker_worker_makes_a_container_without_rights(run: FlowRun, worker_settings: None, gpus: int) -> None:
    pytest.importorskip(PACKAGES["docker"], reason="needs prefect-docker: pip install -c constraints.txt '.[docker]'")
    from docker.models.containers import _create_container_args
    from prefect_docker.worker import DockerWorker

    options = ["--gpus", str(gpus)] if gpus else []
    made = configuration("docker", job_variables("docker", *options), run)
    created = DockerWorker(work_pool_name="any", test_mode=True)._build_container_settings(None, made)
    container = _create_container_args({**created, "version": "1.48"})
    host = container["host_config"]
    assert (container["user"], container["command"]) == ("1000:1000", "prefect flow-run execute")
    assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and host["SecurityOpt"] == ["no-new-privileges:true"]
    assert not host.get("Privileged") and "RestartPolicy" not in host
    assert host["Binds"] == ["bardflow_data:/data"] and host["Memory"] == host["MemorySwap"] == 4 * 2**30
    assert [one["Count"] for one in host.get("DeviceRequests", [])] == ([gpus] if gpus else [])
    assert created["image"] == ("bardflow:cuda" if gpus else "bardflow:latest")
    environment = container["environment"]
    require_the_images(environment)
    assert environment["PREFECT_API_AUTH_STRING"] == LOGIN, "from the worker, which needs it too"


def require_the_images(environment: dict[str, str]) -> None:
    """Check that a job computes with the settings of the image and does not get the database's address."""
    for name, value in image_settings().items():
        assert environment.get(name, value).lower() == value.lower(), name
    assert environment["PREFECT_API_URL"] == "http://server:4200/api"
    assert not any("secret" in value for value in environment.values())


@pytest.mark.parametrize("gpus", [0, 2])
def test_the_kubernetes_worker_makes_a_job_that_a_cluster_takes(run: FlowRun, worker_settings: None, gpus: int) -> None:
    needed = "pip install -c constraints.txt '.[kubernetes]'"
    pytest.importorskip(PACKAGES["kubernetes"], reason=f"needs prefect-kubernetes: {needed}")
    options = ["--gpus", str(gpus)] if gpus else []
    manifest = configuration("kubernetes", job_variables("kubernetes", *options), run).job_manifest
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    plain = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    require_the_images(plain)
    assert LOGIN not in json.dumps(manifest), "the login comes from the secret"
    assert plain["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule", "an evicted run is Prefect's to resume"
    assert container["resources"]["limits"].get("nvidia.com/gpu", 0) == gpus
    assert len({one["name"] for one in container["env"]}) == len(container["env"])


def require_valid(manifest: dict[str, Any]) -> None:
    """Check a manifest against Kubernetes's own schema; unknown fields are errors."""
    linter = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: pip install it")
    linter.validate(manifest, linter.latest_version(), strict=True)


def test_kubernetes_schema_knows_every_field_of_the_job(run: FlowRun, worker_settings: None) -> None:
    pytest.importorskip(PACKAGES["kubernetes"], reason="needs prefect-kubernetes")
    variables = {"gpus": 1, "node_selector": {"a": "b"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    manifest = configuration("kubernetes", {**variables, "image_pull_secrets": [{"name": "r"}]}, run).job_manifest
    # prefect-kubernetes wants these two in the pod, where Kubernetes ignores them; 1 is its default for jobs.
    pod = manifest["spec"]["template"]["spec"]
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    require_valid(manifest)
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(Exception, match="resource"):
        require_valid(wrong)


def test_kubernetes_schema_knows_every_field_of_the_parts() -> None:
    for manifest in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()):
        require_valid(manifest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_sets_only_what_the_worker_knows(kind: str) -> None:
    module = pytest.importorskip(f"{PACKAGES[kind]}.worker", reason=f"needs {PACKAGES[kind]}")
    worker = {"docker": "DockerWorker", "kubernetes": "KubernetesWorker"}[kind]
    known = getattr(module, worker).get_default_base_job_template()["job_configuration"]
    assert template(kind)["job_configuration"].keys() <= known.keys()
