"""Processes whose speed and peak memory are measured: our trainings on random tokens, and nanoGPT's own `train.py`.

A training runs in a process of its own, as a leg of a run does: read a checkpoint, take steps, score, keep a
checkpoint. Its peak is measured from outside, by `/usr/bin/time -v` where there is one and else by the kernel's count
for the ended child (ru_maxrss).
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
    """A training on random tokens; `memory_limit` as in a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpt: GPTSpec
    vocabulary: int
    batch: int
    optimizer: str
    memory_limit: int | str | None = None
    steps: int = 2


def case(architecture: str, layers: int, heads: int, width: int, context: int, **more: Any) -> Case:
    """A case of an architecture as it is published: the classic one tied, with GELU and AdamW; the modern with Muon."""
    classic = architecture == "classic"
    own = {"activation": "gelu", "tied": True} if classic else {}
    outside = {name: more.pop(name) for name in ("vocabulary", "batch", "optimizer", "memory_limit") if name in more}
    shape = {"architecture": architecture, "layers": layers, "heads": heads, "width": width, "context": context}
    return Case.model_validate(
        {"optimizer": "adamw" if classic else "muon", "vocabulary": 65, "gpt": shape | own | more} | outside
    )


def train(what: Case) -> dict[str, Any]:
    """Train in this process: the plan made before, the losses, and the median seconds of a step after the first."""
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
    """Token ids drawn evenly: which they are makes no difference to speed or memory."""
    return np.random.default_rng(0).integers(0, vocabulary_size, count).astype(np.uint16)


def measured(what: Case) -> dict[str, Any]:
    """Train in a process of its own, in the environment that `bard` sets, and measure that process from outside."""
    command = [sys.executable, str(Path(__file__).resolve()), what.model_dump_json()]
    out, peak = outside(command, os.environ | computing_environment(), CHECKOUT)
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer | {"measured": peak}


def outside(command: list[str], environment: dict[str, str], folder: Path) -> tuple[str, int]:
    """What a command printed, and its peak resident bytes.

    Raises:
        SystemExit: it failed; with what it said.
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
    """What a run of nanoGPT's `train.py` gave: milliseconds of the steps it printed, by number, and its peak in bytes.

    `undisturbed` leaves out the first step and those whose time includes an evaluation.
    """

    milliseconds: dict[int, float]
    undisturbed: dict[int, float]
    peak: int


def run_nanogpt(checkout: Path, data: Path, arguments: list[str]) -> NanoGPT:
    """Run a checkout's `train.py` on the CPU in the environment as it is; `data` is a folder that `write_data` made."""
    command = [sys.executable, "train.py", *arguments, "--device=cpu", "--compile=False", f"--dataset={data}"]
    printed, peak = outside(command, dict(os.environ), checkout)
    lines = re.findall(r"^iter (\d+): loss [\d.]+, time ([\d.]+)ms", printed, re.MULTILINE)
    milliseconds = {int(step): float(spent) for step, spent in lines}
    scored = {int(step) for step in re.findall(r"^step (\d+):", printed, re.MULTILINE)}
    undisturbed = {n: spent for n, spent in milliseconds.items() if n and n not in scored}
    return NanoGPT(milliseconds=milliseconds, undisturbed=undisturbed, peak=peak)


def write_data(folder: Path, train: Any, held_out: Any, tokens: list[Any]) -> None:
    """A dataset as nanoGPT's `train.py` reads it; it joins the name to its `data/`, and an absolute path stays."""
    folder.mkdir(parents=True, exist_ok=True)
    train.tofile(folder / "train.bin")
    held_out.tofile(folder / "val.bin")
    meta = {"vocab_size": len(tokens), "itos": dict(enumerate(tokens)), "stoi": {t: i for i, t in enumerate(tokens)}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def product_rate(dtype: torch.dtype) -> float:
    """Operations a second in products of 2048 x 2048 matrices, the median of five."""
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
