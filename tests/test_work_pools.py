"""The files for work pools with containers: variants of prefect.yaml, base job templates, manifests, and their jobs."""

import asyncio
import json
import re
import subprocess
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect.utilities.templating import find_placeholders
from prefect.workers.base import BaseJobConfiguration

from bardflow.commands.doctor import Check, other_server
from bardflow.commands.prefect_api import POOL, api, make_pool
from bardflow.commands.runs import MemoryWatch, look_after, prepare
from tests.conftest import CHECKOUT
from tests.project_up import free_port
from tests.test_deploy import image_settings, services
from tests.test_deployments import COMPUTING, DEPLOYMENTS, content

DEPLOY = CHECKOUT / "deploy"
KINDS = ("docker", "kubernetes")
PULL = "prefect.deployments.steps.set_working_directory"


def template(kind: str) -> dict[str, Any]:
    return dict(json.loads((DEPLOY / f"{kind}-pool.json").read_text()))


def printed(*arguments: str) -> str:
    """What `deploy/variants.py` prints."""
    command = [sys.executable, str(DEPLOY / "variants.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def find(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in manifests() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


class TestVariants:
    """The files differ from prefect.yaml in the work pool and the place of the project only."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_file_is_what_the_program_writes(self, kind: str) -> None:
        assert (DEPLOY / f"prefect.{kind}.yaml").read_text() == printed(kind)

    @pytest.mark.parametrize("kind", KINDS)
    def test_only_the_pool_and_the_place_of_the_project_differ(self, kind: str) -> None:
        theirs = yaml.safe_load((DEPLOY / f"prefect.{kind}.yaml").read_text())
        assert theirs.pop("pull") == [{PULL: {"directory": image_settings()["BARDFLOW_PROJECT"]}}]
        ours = content()
        del ours["definitions"]
        for deployment in ours["deployments"]:
            deployment["work_pool"]["name"] = f"bardflow-{kind}"
        assert theirs == ours

    @pytest.mark.parametrize(("kind", "cards"), [("docker", "device_requests"), ("kubernetes", "gpus")])
    def test_graphics_cards_are_for_flows_that_compute(self, kind: str, cards: str) -> None:
        found = yaml.safe_load(printed(kind, "--gpus", "1"))["deployments"]
        with_cards = {one["entrypoint"] for one in found if cards in one["work_pool"]["job_variables"]}
        assert with_cards == {one.entrypoint for one in DEPLOYMENTS if COMPUTING & set(one.tags)}
        for one in found:
            assert (
                one["work_pool"]["job_variables"].keys() - {"env"} <= template(kind)["variables"]["properties"].keys()
            )

    def test_cards_without_containers_are_refused(self) -> None:
        with pytest.raises(subprocess.CalledProcessError) as refused:
            printed("process", "--gpus", "1")
        assert refused.value.returncode == 2


@pytest.mark.parametrize("kind", KINDS)
class TestTemplates:
    """The base job templates are valid, keep no secret, and give a job what it needs and no more."""

    def test_every_variable_is_used_and_every_placeholder_is_one(self, kind: str) -> None:
        parts = template(kind)
        variables = parts["variables"]["properties"]
        Draft202012Validator.check_schema(parts["variables"])
        assert {found.name for found in find_placeholders(parts["job_configuration"])} == set(variables)
        defaults = {name: value["default"] for name, value in variables.items() if value.get("default") is not None}
        Draft202012Validator(parts["variables"]).validate(defaults)
        assert all(value["title"] and value["description"].endswith((".", "]")) for value in variables.values())

    def test_a_job_has_the_settings_of_the_image_whatever_the_worker_has(self, kind: str) -> None:
        given = template(kind)["variables"]["properties"]["env"]["default"]
        image = image_settings()
        for name, value in given.items():
            if name in image:
                assert value == image[name], name
        # A worker passes its own settings to its jobs; these would lead to other data, or to the database.
        named = re.compile("PREFECT_(HOME|PLUGINS|RESULTS|LOGGING).*")
        assert {name for name in image if named.match(name)} <= set(given)
        for secret in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_DATABASE_CONNECTION_URL"):
            assert given[secret] is None
        worker = {**given, "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql://u:p@h/d", "PREFECT_HOME": "/root"}
        assert prepared(template(kind), worker)["PREFECT_HOME"] == image["PREFECT_HOME"]
        assert not any("postgresql" in value for value in prepared(template(kind), worker).values())

    def test_no_secret_is_in_the_file(self, kind: str) -> None:
        text = (DEPLOY / f"{kind}-pool.json").read_text()
        assert not re.search(r"AUTH_STRING\": \"|://[^/\" ]*@", text)

    def test_a_job_has_no_rights_and_nothing_but_prefect_starts_it_again(self, kind: str) -> None:
        made = template(kind)["job_configuration"]
        if kind == "docker":
            container = made["container_create_kwargs"]
            compose = services()["worker"]
            assert made["privileged"] is made["auto_remove"] is False and "restart_policy" not in container
            for name in ("read_only", "cap_drop", "security_opt"):
                assert container[name] == compose[name], name
            assert container["user"] == "1000:1000" and made["memswap_limit"] == made["mem_limit"]
            return
        spec = made["job_manifest"]["spec"]
        assert spec["backoffLimit"] == 0 and spec["template"]["spec"]["restartPolicy"] == "Never"
        require_restricted(spec["template"]["spec"])
        [container] = spec["template"]["spec"]["containers"]
        [login] = [one for one in container["env"] if one["name"] == "PREFECT_API_AUTH_STRING"]
        assert login["valueFrom"]["secretKeyRef"]["key"] == "login"


def prepared(parts: dict[str, Any], worker: dict[str, str | None]) -> dict[str, str]:
    """The environment of a job of a worker with these settings, as Prefect's own class makes it."""

    class Configuration(BaseJobConfiguration):
        @classmethod
        def _base_environment(cls) -> dict[str, str]:
            return {name: value for name, value in worker.items() if value is not None}

    plain = {"job_configuration": {"env": "{{ env }}"}, "variables": parts["variables"]}
    made: Any = asyncio.run(Configuration.from_template_and_values(plain, {}, client=SimpleNamespace()))
    made.prepare_for_flow_run(SimpleNamespace(id=uuid.uuid4(), name="a-run", flow_id=uuid.uuid4(), deployment_id=None))
    return {name: value for name, value in made.env.items() if value is not None}


def require_restricted(pod: dict[str, Any]) -> None:
    """Check what Kubernetes's Pod Security Standard `restricted` asks for, and a read-only root."""
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False, "Prefect would read the variables of a service as settings"
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]} and context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"] and not context["privileged"]
    assert {next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]} <= {"persistentVolumeClaim", "emptyDir"}


class TestManifests:
    """deploy/kubernetes.yaml starts the parts of compose.yaml, and fits the template of its jobs."""

    def test_every_pod_is_restricted_and_all_but_the_worker_have_no_token(self) -> None:
        pods = {
            one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in manifests() if "Depl" in one["kind"]
        }
        assert set(pods) == {"server", "worker", "reports"}
        for name, pod in pods.items():
            require_restricted(pod)
            assert (pod.get("automountServiceAccountToken", True) is False) == (name != "worker")

    @pytest.mark.parametrize("name", ["server", "reports"])
    def test_a_part_has_the_command_and_settings_of_the_compose_file(self, name: str) -> None:
        [container] = find("Deployment", name)["spec"]["template"]["spec"]["containers"]
        compose = services()[name]
        assert container["args"] == compose["command"]
        plain = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        secret = {one["name"] for one in container["env"] if "valueFrom" in one}
        assert plain == {key: value for key, value in compose["environment"].items() if "$" not in value}
        assert secret <= {key for key, value in compose["environment"].items() if "$" in value}

    def test_the_worker_serves_the_pool_of_the_variant_and_its_jobs_find_server_claim_and_secret(self) -> None:
        worker = find("Deployment", "worker")["spec"]["template"]["spec"]["containers"]
        pool = "bardflow-kubernetes"
        assert worker[0]["args"][3:] == ["--pool", pool, "--type", "kubernetes", "--no-create-pool-if-not-found"]
        assert worker[1]["args"][1:] == ["-m", "bardflow.commands.runs", pool]
        variables = template("kubernetes")["variables"]["properties"]
        assert find("PersistentVolumeClaim", variables["home_claim"]["default"])
        assert {one["metadata"].get("namespace", "bardflow") for one in manifests()} == {
            variables["namespace"]["default"]
        }
        address = httpx.URL(variables["env"]["default"]["PREFECT_API_URL"])
        assert find("Service", str(address.host))["spec"]["ports"][0]["port"] == address.port
        assert {one["name"]: one.get("value") for one in worker[0]["env"]}["PREFECT_API_URL"] == str(address)


@pytest.fixture
def client(server_url: str) -> Any:
    with api(server_url) as client:
        yield client


def post(client: httpx.Client, path: str, question: dict[str, Any]) -> Any:
    return client.post(path, json=question).raise_for_status().json()


@pytest.mark.parametrize("kind", KINDS)
def test_prefects_server_takes_the_template_and_checks_job_variables_against_it(
    client: httpx.Client, kind: str
) -> None:
    pool = f"a-{kind}-pool-{uuid.uuid4().hex[:8]}"
    post(client, "/work_pools/", {"name": pool, "type": kind, "base_job_template": template(kind)})
    flow = post(client, "/flows/", {"name": "pooled"})
    question = {"name": pool, "flow_id": flow["id"], "work_pool_name": pool, "enforce_parameter_schema": False}
    variables = next(one for one in yaml.safe_load(printed(kind, "--gpus", "2"))["deployments"])["work_pool"]
    deployment = post(client, "/deployments/", {**question, "job_variables": variables["job_variables"]})
    assert deployment["work_pool_name"] == pool
    wrong = client.post("/deployments/", json={**question, "name": "wrong", "job_variables": {"memory": 4}})
    assert wrong.status_code == httpx.codes.UNPROCESSABLE_ENTITY and "memory" in wrong.text
    for path in (f"/deployments/{deployment['id']}", f"/work_pools/{pool}"):
        client.delete(path).raise_for_status()


def test_crashed_runs_of_a_pool_of_containers_are_run_again_and_live_ones_are_left_alone(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the runs had been under way for long: in the pool of `bard up`, those without a process would be run again.
    monkeypatch.setattr("bardflow.commands.runs.LOST_SECONDS", -60)
    monkeypatch.setattr("bardflow.commands.runs.CANCEL_SECONDS", -60)
    make_pool(client)
    pool = f"containers-{uuid.uuid4().hex[:8]}"
    with pytest.raises(SystemExit, match=f"no work pool '{pool}'"):
        prepare(client, [pool])
    post(client, "/work_pools/", {"name": pool, "type": "process"})
    prepare(client, [POOL, pool])
    flow = post(client, "/flows/", {"name": "pooled"})
    deployment = post(client, "/deployments/", {"name": pool, "flow_id": flow["id"], "work_pool_name": pool})

    def state(kind: str) -> tuple[str, str]:
        run = post(client, f"/deployments/{deployment['id']}/create_flow_run", {})["id"]
        changed = {"type": kind, "message": "Exited with status code: 137."}
        post(client, f"/flow_runs/{run}/set_state", {"state": changed, "force": True})
        return run, kind

    runs = dict(map(state, ("CRASHED", "RUNNING", "CANCELLING")))

    def states() -> dict[str, str]:
        return {kind: client.get(f"/flow_runs/{run}").json()["state_type"] for run, kind in runs.items()}

    before = states()

    def said() -> list[str]:
        return list(look_after(client, MemoryWatch(Path("/nothing")), [pool]))

    [line] = said()
    assert "run again in 10 s (1 of 3 times)" in line
    assert states() == before | {"CRASHED": "SCHEDULED"}
    for path in (*(f"/flow_runs/{run}" for run in runs), f"/deployments/{deployment['id']}", f"/work_pools/{pool}"):
        client.delete(path).raise_for_status()


def test_the_doctor_names_a_pool_whose_deployments_nobody_runs(client: httpx.Client, server_url: str) -> None:
    pool = f"idle-{uuid.uuid4().hex[:8]}"
    post(client, "/work_pools/", {"name": pool, "type": "docker", "base_job_template": template("docker")})
    flow = post(client, "/flows/", {"name": "pooled"})
    deployment = post(client, "/deployments/", {"name": pool, "flow_id": flow["id"], "work_pool_name": pool})

    def about() -> list[Check]:
        return [check for check in other_server(server_url) if pool in check.found]

    [before] = about()
    assert before.level == "warning" and before.todo == f"prefect worker start --pool {pool}"
    client.post(f"/work_pools/{pool}/workers/heartbeat", json={"name": "one"}).raise_for_status()
    [after] = about()
    assert after.level == "ok"
    client.delete(f"/deployments/{deployment['id']}").raise_for_status()
    client.delete(f"/work_pools/{pool}").raise_for_status()
    [silent] = other_server(f"http://127.0.0.1:{free_port()}/api")
    assert silent.level == "error" and "PREFECT_API_URL" in silent.todo
