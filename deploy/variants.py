"""Write variants of prefect.yaml: the same deployments, schedules and parameters on another work pool.

Run `python deploy/variants.py` after each change of prefect.yaml: it writes deploy/prefect.docker.yaml and
deploy/prefect.kubernetes.yaml, which `tests/test_work_pools.py` compares. With a kind of pool, it prints a variant:

    python deploy/variants.py docker --gpus 1          flows that compute with a model get a graphics card
    python deploy/variants.py process --directory DIR  flows run as processes, in the project's folder DIR
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
# The project's folder in the image of deploy/Containerfile.
PROJECT = "/project"
# The deployments that compute with a model have one of these tags.
COMPUTING = {"training", "experiment", "evaluation"}
CUDA_IMAGE = "bardflow:cuda"
FILES = {kind: HERE / f"prefect.{kind}.yaml" for kind in ("docker", "kubernetes")}
HEADER = """\
# The deployments of prefect.yaml on the work pool `{pool}`. Do not edit: `python deploy/variants.py` writes this file.
# Deploy with: prefect --no-prompt deploy --all --prefect-file FILE
"""


def graphics_cards(kind: str, gpus: int) -> dict[str, Any]:
    """Return the job variables that give a flow's container `gpus` NVIDIA cards."""
    if kind == "docker":
        return {"image": CUDA_IMAGE, "device_requests": [{"count": gpus, "capabilities": [["gpu"]]}]}
    return {"image": CUDA_IMAGE, "gpus": gpus}


def variant(content: dict[str, Any], kind: str, pool: str, directory: str, gpus: int = 0) -> dict[str, Any]:
    """Return the content of prefect.yaml for another work pool.

    Only the work pool of each deployment changes, and a pull step says where the project lies: the folder that a
    deployment is made from is not there in a container. Job variables of prefect.yaml stay.
    """
    plain: dict[str, Any] = {}
    deployments = []
    for entry in content["deployments"]:
        job_variables = copy.deepcopy(entry["work_pool"].get("job_variables", {}))
        if gpus and COMPUTING & set(entry.get("tags", [])):
            job_variables |= graphics_cards(kind, gpus)
        work_pool = {"name": pool, "job_variables": job_variables}
        # Equal values become one object, which YAML writes once, with an anchor.
        shared = plain.setdefault(repr(work_pool), work_pool)
        deployments.append(copy.deepcopy({k: v for k, v in entry.items() if k != "work_pool"}) | {"work_pool": shared})
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": directory}}]
    return {"name": content["name"], "pull": pull, "deployments": deployments}


def text_of(content: dict[str, Any], pool: str) -> str:
    """Return a variant as YAML."""
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return HEADER.format(pool=pool) + body


def main() -> None:
    """Write the two files, or print one variant."""
    parser = argparse.ArgumentParser(description="Variants of prefect.yaml for other work pools.")
    parser.add_argument("kind", nargs="?", choices=("docker", "kubernetes", "process"))
    parser.add_argument("--pool", help="name of the work pool; bardflow-KIND if not given")
    parser.add_argument("--directory", default=PROJECT, help=f"the project's folder where flows run ({PROJECT})")
    parser.add_argument("--gpus", type=int, default=0, help="NVIDIA cards for each flow that computes with a model")
    parser.add_argument("--source", type=Path, default=HERE.parent / "prefect.yaml", help="another prefect.yaml")
    given = parser.parse_args()
    if given.gpus < 0 or (given.gpus and given.kind not in FILES):
        parser.error("--gpus takes a number above 0, and docker or kubernetes")
    content = yaml.safe_load(given.source.read_text(encoding="utf-8"))
    if given.kind is None:
        for kind, file in FILES.items():
            pool = f"bardflow-{kind}"
            file.write_text(text_of(variant(content, kind, pool, PROJECT), pool), encoding="utf-8")
        return
    pool = given.pool or f"bardflow-{given.kind}"
    print(text_of(variant(content, given.kind, pool, given.directory, given.gpus), pool), end="")


if __name__ == "__main__":
    main()
