"""Measure on one GPU: losses compared with a CPU, steps and memory by shape, and the time to nanoGPT's 1.4697 nats.

    python benchmarks/gpu.py input.txt [--nanogpt PATH] [--parts laws,steps,best,nanogpt] [--out FOLDER]

`input.txt` is tiny Shakespeare. The script needs torch with CUDA, pydantic, numpy, safetensors, psutil, and only
`model/`, `bardflow/` and `recipes/best.toml` of this project. It takes about eight minutes on an H100. Without a GPU it
runs small shapes on the CPU, as a trial.
"""

import argparse
import json
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from bardflow.model.machine import Device, Execution, forget_peak, peak_bytes
from bardflow.model.networks import GPTSpec
from bardflow.model.planning import Machine, flops_per_step, foresee, settled_bytes, unlimited
from bardflow.model.scoring import score
from bardflow.model.training import Snapshot, Training, TrainingSpec, begin, load_snapshot, save_snapshot

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRIAL = DEVICE == "cpu"
CPU = Device("cpu", "f32")
HERE = {"f32": Device(DEVICE, "f32"), "bf16": Device(DEVICE, "bf16"), "f16": Device(DEVICE, "f16")}
PEAK = 989e12  # dense bf16 products of an H100 SXM (its datasheet)
TARGET = 1.4697  # nats on the last tenth: nanoGPT's README, config/train_shakespeare_char.py
CLASSIC = {"architecture": "classic", "activation": "gelu", "tied": True}
LFM2 = {"architecture": "lfm2", "activation": "silu"}
BEST = tomllib.loads(Path(__file__).resolve().parents[1].joinpath("recipes", "best.toml").read_text())
FOUND: dict[str, Any] = {}
BEGUN = time.monotonic()


def say(what: str, value: Any) -> None:
    """Print a result and add it to FOUND."""
    FOUND[what] = value
    print(f"{time.monotonic() - BEGUN:6.1f} {what}: {value}", flush=True)


def wait() -> None:
    """Wait until the GPU has finished all work."""
    if not TRIAL:
        torch.cuda.synchronize()


def gpt(layers: int, heads: int, width: int, context: int, **others: Any) -> GPTSpec:
    """Make the spec of a shape."""
    return GPTSpec(layers=layers, heads=heads, width=width, context=context, **others)


def losses(
    spec: GPTSpec, training: TrainingSpec, device: Device, tokens: Any, **execution: Any
) -> "np.ndarray[Any, Any]":
    """Train, and return the loss of each step."""
    how = Execution(**{"micro_batch": training.batch} | execution)
    run = Training(begin(spec, 65, 1), training, device, how)
    return np.array([float(step.loss) for step in run.steps(tokens, training.steps)])


def laws(tokens: Any) -> None:
    """Check that executions and devices give the same losses; each printed line ends with ok or FAIL."""
    for name, shape, optimizer in (
        ("lfm2, muon", gpt(2, 2, 64, 64, **LFM2), "muon"),
        ("modern, muon", gpt(2, 2, 64, 64), "muon"),
        ("classic, adamw", gpt(2, 2, 64, 64, **CLASSIC), "adamw"),
    ):
        training = TrainingSpec(steps=20, batch=8, optimizer=optimizer)
        on_cpu = losses(shape, training, CPU, tokens)
        for precision, most in (("f32", 1e-3), ("bf16", 2e-2), ("f16", 2e-2)):
            law(
                f"{name}, {precision}: losses beside a CPU's",
                losses(shape, training, HERE[precision], tokens),
                on_cpu,
                most,
            )
        dropping = shape.model_copy(update={"dropout": 0.2})
        whole = losses(dropping, training, HERE["f32"], tokens)
        law(
            f"{name}, dropout: two micro-batches beside one",
            losses(dropping, training, HERE["f32"], tokens, micro_batch=4),
            whole,
            1e-3,
        )
        law(
            f"{name}: recorded beside not recorded",
            losses(dropping, training, HERE["f32"], tokens, recorded=False),
            whole,
            1e-6,
        )
        law(
            f"{name}: state in bf16 beside f32",
            losses(dropping, training, HERE["f32"], tokens, optimizer_state="bf16"),
            whole,
            2e-2,
        )
        if not TRIAL:
            law(
                f"{name}: compiled beside not",
                losses(dropping, training, HERE["f32"], tokens, compiled=True),
                whole,
                1e-3,
            )
        law(
            f"{name}: recomputed beside kept",
            losses(dropping, training, HERE["f32"], tokens, recompute=True),
            whole,
            1e-3,
        )
    training = TrainingSpec(steps=12, batch=8, dropout_warmup_steps=8, average_decay=0.9)
    shape = gpt(2, 2, 64, 64, dropout=0.2)
    with tempfile.TemporaryDirectory() as kept:
        once, twice = (through_files(shape, training, tokens, ends, kept) for ends in ((12,), (5, 12)))
        apart = max(
            float((now[n] - then[n]).abs().max())
            for now, then in ((once.weights, twice.weights), (once.optimizer, twice.optimizer))
            for n in now
        )
    say(
        "two legs beside one, largest difference of a weight or of optimizer state",
        f"{apart:.1e} {'ok' if apart < 1e-4 else 'FAIL'}",
    )


def law(what: str, these: Any, those: Any, most: float) -> None:
    """Print the largest difference between the losses of two runs."""
    apart = float(abs(these - those).max())
    say(what, f"{apart:.1e} {'ok' if apart < most else 'FAIL'}")


def through_files(shape: GPTSpec, training: TrainingSpec, tokens: Any, ends: tuple[int, ...], kept: str) -> Snapshot:
    """Train in legs, with a checkpoint on disk after each, and return the last state."""
    snapshot = begin(shape, 65, 1)
    for until in ends:
        run = Training(snapshot, training, HERE["bf16"], Execution(micro_batch=8))
        for _ in run.steps(tokens, until):
            pass
        folder = Path(tempfile.mkdtemp(dir=kept))
        save_snapshot(run.state(), folder)
        snapshot = load_snapshot(folder)
    return snapshot


SHAPES = {
    "lfm2 8.9M": (gpt(6, 6, 384, 256, **LFM2), 65, 64, "muon"),
    "modern 10.7M": (gpt(6, 6, 384, 256), 65, 64, "muon"),
    "classic 10.8M": (gpt(6, 6, 384, 256, **CLASSIC), 65, 64, "adamw"),
    "classic 10.8M, dropout": (gpt(6, 6, 384, 256, dropout=0.2, **CLASSIC), 65, 64, "adamw"),
    "best's shape": (GPTSpec(**BEST["gpt"]), 65, BEST["training"]["batch"], "muon"),
    "modern 124M": (gpt(12, 12, 768, 1024), 50304, 32, "muon"),
    "classic 124M": (gpt(12, 12, 768, 1024, **CLASSIC), 50304, 32, "adamw"),
}
IN_TRIAL = {
    "lfm2 tiny": (gpt(2, 2, 64, 64, **LFM2), 65, 8, "muon"),
    "modern tiny": (gpt(2, 2, 64, 64), 65, 8, "muon"),
}


def steps(out: Path, ways: list[dict[str, Any]]) -> None:
    """Measure milliseconds, tokens/s and MFU of steps, and planned and peak memory, by shape and execution."""
    for name, (shape, vocabulary, batch, optimizer) in (IN_TRIAL if TRIAL else SHAPES).items():
        training = TrainingSpec(steps=1000, batch=batch, optimizer=optimizer)
        device = HERE["bf16"]
        machine = Machine.here(device, settled_bytes(device))
        fastest = unlimited(shape, vocabulary, training, machine)
        drawn = np.random.default_rng(0).integers(0, vocabulary, (batch + 2) * shape.context).astype(np.uint16)
        for way in ways:
            plan = foresee(shape, vocabulary, training, fastest.model_copy(update=way), machine)
            forget_peak(device)
            begun = time.monotonic()
            run = Training(begin(shape, vocabulary, 1), training, device, plan.execution)
            taken = run.steps(drawn, 1000)
            for _ in range(6):
                next(taken)
            wait()
            ready, count = time.monotonic() - begun, 40 if vocabulary < 1000 else 12
            begun = time.perf_counter()
            for _ in range(count):
                next(taken)
            host = (time.perf_counter() - begun) / count
            wait()
            seconds = (time.perf_counter() - begun) / count
            measured = peak_bytes(device)
            say(
                f"{name} {way}",
                f"{seconds * 1e3:.2f} ms a step (host {host * 1e3:.2f}; ready after {ready:.1f} s), "
                f"{1 / seconds:.0f} steps/s, {batch * shape.context / seconds:,.0f} tokens/s, "
                f"MFU {flops_per_step(shape, vocabulary, training) / seconds / PEAK:.1%}; memory planned "
                f"{plan.peak.total / 1e9:.2f} GB, measured {measured / 1e9:.2f} "
                f"({plan.peak.total / measured - 1:+.0%})",
            )
            if not TRIAL:
                watch(f"{name} {way}", taken, out)
            taken.close()
            del run, taken


def watch(what: str, taken: Iterator[Any], out: Path) -> None:
    """Print how often a step waits for the GPU and the time of its kernels, and write a table of them."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as waited:
        warnings.simplefilter("always")
        next(taken)
    torch.cuda.set_sync_debug_mode("default")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        next(taken)
        wait()
    kernels = [e for e in profiled.events() or [] if e.device_type == torch.autograd.DeviceType.CUDA]
    waits, busy = sum("synchroniz" in str(w.message) for w in waited), sum(e.device_time for e in kernels) / 1e3
    say(f"{what}: waits for the card", f"{waits}; {len(kernels)} kernels, {busy:.2f} ms")
    table = profiled.key_averages().table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=110)
    (out / f"{re.sub('[^a-z0-9]+', '_', what.lower())}.txt").write_text(table)


def best(train: Any, validation: Any, way: dict[str, Any]) -> None:
    """Measure the seconds of steps until recipe `best` reaches the target."""
    training = TrainingSpec(**BEST["training"] | {"patience": None} | ({"batch": 2} if TRIAL else {}))
    steps = 10 if TRIAL else training.steps
    shape, begun, spent, reached = GPTSpec(**BEST["gpt"]), time.perf_counter(), 0.0, None
    run = Training(
        begin(shape, 65, training.seed), training, HERE["bf16"], Execution(micro_batch=training.batch, **way)
    )
    for step in run.steps(train, steps):
        if step.number % max(1, steps // 40) == 0:
            wait()
            spent += time.perf_counter() - begun
            with run.averaged():
                nats = score(run.gpt, validation, before=train[-1:], device=HERE["f32"]).nats_per_token
            reached = reached or (spent if nats <= TARGET else None)
            say(f"best {way}, step {step.number:,}", f"{spent:.2f} s, {nats:.4f} nats")
            begun = time.perf_counter()
    say(f"best {way}: seconds of steps to {TARGET}", reached)


def nanogpt(checkout: Path, train: Any, validation: Any, characters: list[str], iterations: int) -> None:
    """Run the checkout's train.py on its preset, compiled; print milliseconds per iteration and validation losses."""
    with tempfile.TemporaryDirectory() as folder:
        train.tofile(f"{folder}/train.bin")
        validation.tofile(f"{folder}/val.bin")
        meta = {"vocab_size": 65, "itos": dict(enumerate(characters)), "stoi": {c: i for i, c in enumerate(characters)}}
        Path(folder, "meta.pkl").write_bytes(pickle.dumps(meta))
        ran = subprocess.run(
            [
                sys.executable, "train.py", "config/train_shakespeare_char.py", f"--dataset={folder}",
                f"--out_dir={folder}/out", f"--max_iters={iterations}", "--eval_iters=50", "--log_interval=1",
            ],
            cwd=checkout, capture_output=True, text=True,
        )  # fmt: skip
    timed = [float(x) for x in re.findall(r"^iter \d+: .*time ([\d.]+)ms", ran.stdout, re.MULTILINE)]
    if len(timed) < 4:
        say("nanoGPT", ran.stderr[-500:])
        return
    say(
        "nanoGPT compiled",
        f"median {statistics.median(timed[2:]):.2f} ms; val {re.findall(r'val loss ([0-9.]+)', ran.stdout)}",
    )


def main() -> None:
    """Run the selected parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--nanogpt-iterations", type=int, default=2000)
    parser.add_argument("--parts", default="laws,steps,best,nanogpt")
    parser.add_argument("--ways", type=json.loads, default=[{}], help="execution fields to compare, a list in JSON")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    raw = given.text.read_text()
    characters = sorted(set(raw))
    place = {character: number for number, character in enumerate(characters)}
    ids = np.array([place[c] for c in raw], np.uint16)
    train, validation = ids[:1_003_854], ids[1_003_854:]
    parts = given.parts.split(",")
    say("device", torch.cuda.get_device_name() if not TRIAL else "cpu, a trial")
    if "laws" in parts:
        laws(train)
    if "steps" in parts:
        steps(given.out, given.ways)
    if "best" in parts:
        for way in given.ways:
            best(train, validation if not TRIAL else validation[:2000], way)
    if "nanogpt" in parts and given.nanogpt and not TRIAL:
        nanogpt(given.nanogpt, train, validation, characters, given.nanogpt_iterations)
    (given.out / "gpu.json").write_text(json.dumps(FOUND, indent=1, default=str))


if __name__ == "__main__":
    main()
