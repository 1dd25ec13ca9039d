"""prefect.yaml says what it seems to say: Prefect ignores most misspelt keys in silence, this test does not."""

import importlib
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bardflow.commands.prefect_api import POOL

FILE = Path(__file__).resolve().parent.parent / "prefect.yaml"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Schedule(Strict):
    """Without a slug and an explicit `active`, deploying again doubles or re-activates a schedule."""

    slug: str
    cron: str
    timezone: str
    active: bool
    parameters: dict[str, Any] = {}


class WorkPool(Strict):
    name: Literal["bardflow"]
    job_variables: dict[str, dict[str, str]]


class ConcurrencyLimit(Strict):
    limit: int
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]


class Deployment(Strict):
    name: str
    entrypoint: str = Field(pattern=r"^bardflow\.flows\.\w+:\w+$")
    description: str
    tags: list[str] = Field(min_length=1)
    parameters: dict[str, Any]
    work_pool: WorkPool
    concurrency_limit: ConcurrencyLimit | None = None
    schedules: list[Schedule] = []  # an experiment waits to be asked


class PrefectFile(Strict):
    name: str
    definitions: dict[str, Any]  # Prefect leaves this key alone: it holds the anchors
    deployments: list[Deployment]


def content() -> Any:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


# Deployments that compute with a model have one of these tags.
COMPUTING = {"training", "experiment", "evaluation"}
DEPLOYMENTS = PrefectFile.model_validate(content()).deployments


def flow_of(deployment: Deployment) -> Flow[..., Any]:
    module, name = deployment.entrypoint.split(":")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, Flow)
    return found


@pytest.mark.parametrize(
    "place", [(), ("deployments", 0), ("deployments", 0, "schedules", 0), ("deployments", 0, "work_pool")]
)
def test_a_misspelt_key_fails_this_test(place: tuple[str | int, ...]) -> None:
    document = content()
    part = document
    for step in place:
        part = part[step]
    part["scheduels"] = []
    with pytest.raises(ValidationError):
        PrefectFile.model_validate(document)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: f"{deployment.entrypoint}/{deployment.name}")
class TestEachDeployment:
    def test_its_entry_point_is_a_flow_that_takes_its_parameters(self, deployment: Deployment) -> None:
        for schedule in deployment.schedules:
            flow_of(deployment).validate_parameters({**deployment.parameters, **schedule.parameters})

    def test_its_schedules_are_ones_that_prefect_can_plan(self, deployment: Deployment) -> None:
        for schedule in deployment.schedules:
            CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
        slugs = [schedule.slug for schedule in deployment.schedules]
        assert len(set(slugs)) == len(slugs)

    def test_it_goes_to_the_pool_that_bard_up_serves(self, deployment: Deployment) -> None:
        assert deployment.work_pool.name == POOL

    def test_a_flow_process_loads_no_plugins(self, deployment: Deployment) -> None:
        assert deployment.work_pool.job_variables["env"]["PREFECT_PLUGINS_ENABLED"] == "false"

    def test_one_training_of_it_runs_at_a_time(self, deployment: Deployment) -> None:
        if "training" in deployment.tags:
            assert deployment.concurrency_limit == ConcurrencyLimit(limit=1, collision_strategy="ENQUEUE")


def test_the_deployments_are_those_that_users_are_told_of() -> None:
    every = [f"{flow_of(deployment).name}/{deployment.name}" for deployment in DEPLOYMENTS]
    titles = set(every)
    trained = {"train-gpt/default", "train-gpt/three-kingdoms"}
    scheduled = trained | {"refresh-corpora/daily", "evaluate-gpt/daily", "clean-up/nightly"}
    experiments = {f"{name}/default" for name in ("compare-vocabularies", "compare-models", "scaling-ladder", "search")}
    assert titles == scheduled | experiments | {"verify-home/default"}
    assert {title for title, d in zip(every, DEPLOYMENTS, strict=True) if d.schedules} == scheduled


def test_each_training_deployment_has_a_corpus_of_its_own() -> None:
    corpora = [deployment.parameters["corpus"] for deployment in DEPLOYMENTS if "training" in deployment.tags]
    assert len(set(corpora)) == len(corpora)
