"""Speed and peak memory of processes: our trainings on random tokens, and nanoGPT's `train.py`.

A training runs in its own process and does what a leg does: read a checkpoint, take steps, score, save a checkpoint.
Its peak is measured from outside, by `/usr/bin/time -v` if it exists, otherwise by the kernel's value for the child
process (ru_maxrss).
"""

import json
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pydantic import BaseModel, ConfigDict  # noqa: E402

from bardflow.home import computing_environment  # noqa: E402
from bardflow.model.networks import GPTSpec  # noqa: E402
from bardflow.model.training import TrainingSpec, begin  # noqa: E402

TIME = Path("/usr/bin/time")


class Case(BaseModel):
    """A training on random tokens; `memory_limit` is as in a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpt: GPTSpec
    vocabulary: int
    batch: int
    optimizer: str
    memory_limit: int | str | None = None
    steps: int = 2


def case(architecture: str, layers: int, heads: int, width: int, context: int, **more: Any) -> Case:
    """Make a case with an architecture's defaults: classic is tied, with GELU and AdamW; modern has Muon."""
    classic = architecture == "classic"
    own = {"activation": "gelu", "tied": True} if classic else {}
    outside = {name: more.pop(name) for name in ("vocabulary", "batch", "optimizer", "memory_limit") if name in more}
    shape = {"architecture": architecture, "layers": layers, "heads": heads, "width": width, "context": context}
    return Case.model_validate(
        {"optimizer": "adamw" if classic else "muon", "vocabulary": 65, "gpt": shape | own | more} | outside
    )


def train(what: Case) -> dict[str, Any]:
    """Train in this process; return the plan made before, the losses, and the median step seconds after the first."""
    from bardflow.model.machine import device as devices
    from bardflow.model.machine import limit_bytes
    from bardflow.model.planning import Machine, choose, settled_bytes
    from bardflow.model.scoring import score
    from bardflow.model.training import Training, load_snapshot, save_snapshot

    spec = TrainingSpec.model_validate({"steps": what.steps, "batch": what.batch, "optimizer": what.optimizer})
    device = devices.choose(spec.precision)
    machine = Machine.here(device, settled_bytes(device))
    limit = None if what.memory_limit is None else limit_bytes(what.memory_limit, device)
    plan = choose(what.gpt, what.vocabulary, spec, machine, limit)
    tokens = random_tokens(what.vocabulary, (what.batch + 2) * what.gpt.context)
    losses, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        save_snapshot(begin(what.gpt, what.vocabulary, spec.seed), Path(folder))
        training = Training(load_snapshot(Path(folder)), spec, device, plan.execution)
        begun = time.perf_counter()
        for step in training.steps(tokens, what.steps):
            losses.append(float(step.loss))
            seconds.append(time.perf_counter() - begun)
            begun = time.perf_counter()
        validation, in_f32 = tokens[: (what.batch + 2) * what.gpt.context], devices.Device(device.name, "f32")
        score(training.gpt, validation, before=validation[:1], device=in_f32, execution=plan.execution)
        save_snapshot(training.state(), Path(folder))
    return {
        "plan": plan.model_dump(),
        "moment": plan.moment,
        "planned": plan.peak.total,
        "losses": losses,
        "step_seconds": statistics.median(seconds[1:] or seconds),
    }


def random_tokens(vocabulary_size: int, count: int) -> "np.ndarray[tuple[int], np.dtype[np.uint16]]":
    """Draw token ids uniformly; speed and memory do not depend on them."""
    return np.random.default_rng(0).integers(0, vocabulary_size, count).astype(np.uint16)


def measured(what: Case) -> dict[str, Any]:
    """Train in a separate process, in the environment that `bard` sets, and measure its peak from outside."""
    command = [sys.executable, str(Path(__file__).resolve()), what.model_dump_json()]
    out, peak = outside(command, os.environ | computing_environment(), CHECKOUT)
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer | {"measured": peak}


def outside(command: list[str], environment: dict[str, str], folder: Path) -> tuple[str, int]:
    """Run a command and return its output and its peak resident bytes.

    Raises:
        SystemExit: the command failed; the message has its error output.
    """
    if TIME.exists():
        done = subprocess.run(
            [str(TIME), "-v", *command], capture_output=True, text=True, env=environment, cwd=folder
        )  # fmt: skip
        found = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
        code, out, err, peak = done.returncode, done.stdout, done.stderr, int(found[1]) * 1024 if found else 0
    else:
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(command, stdout=said, env=environment, cwd=folder)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = code = os.waitstatus_to_exitcode(status)
            said.seek(0)
            out, err, peak = said.read(), "", usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{err}")
    return out, peak


class NanoGPT(BaseModel):
    """A run of nanoGPT's `train.py`: milliseconds of the printed steps, by step number, and the peak in bytes.

    `undisturbed` excludes the first step and steps whose time includes an evaluation.
    """

    milliseconds: dict[int, float]
    undisturbed: dict[int, float]
    peak: int


def run_nanogpt(checkout: Path, data: Path, arguments: list[str]) -> NanoGPT:
    """Run a checkout's `train.py` on the CPU, in the unchanged environment; `data` is a folder made by `write_data`."""
    command = [sys.executable, "train.py", *arguments, "--device=cpu", "--compile=False", f"--dataset={data}"]
    printed, peak = outside(command, dict(os.environ), checkout)
    lines = re.findall(r"^iter (\d+): loss [\d.]+, time ([\d.]+)ms", printed, re.MULTILINE)
    milliseconds = {int(step): float(spent) for step, spent in lines}
    scored = {int(step) for step in re.findall(r"^step (\d+):", printed, re.MULTILINE)}
    undisturbed = {n: spent for n, spent in milliseconds.items() if n and n not in scored}
    return NanoGPT(milliseconds=milliseconds, undisturbed=undisturbed, peak=peak)


def write_data(folder: Path, train: Any, held_out: Any, tokens: list[Any]) -> None:
    """Write a dataset for nanoGPT's `train.py`, which joins its name to `data/`; an absolute path is unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    train.tofile(folder / "train.bin")
    held_out.tofile(folder / "val.bin")
    meta = {"vocab_size": len(tokens), "itos": dict(enumerate(tokens)), "stoi": {t: i for i, t in enumerate(tokens)}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def product_rate(dtype: torch.dtype) -> float:
    """Measure operations per second of products of 2048 x 2048 matrices, the median of five."""
    a = torch.randn(2048, 2048).to(dtype)
    rates = []
    for _ in range(6):
        begun = time.perf_counter()
        for _ in range(3):
            a @ a
        rates.append(3 * 2 * 2048**3 / (time.perf_counter() - begun))
    return statistics.median(rates[1:])


if __name__ == "__main__":
    print(json.dumps(train(Case.model_validate_json(sys.argv[1]))))
