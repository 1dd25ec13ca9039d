"""Measure the training time to the final loss of nanoGPT's CPU preset, on tiny Shakespeare.

    python benchmarks/time_to_loss.py --text PATH [--nanogpt PATH] [--rounds 3] [SIDE ...]

A SIDE is a recipe, with or without overrides: `sprint`, `small:steps=900`. With --nanogpt, the checkout's `train.py`
runs its CPU preset; without it, our recipe `classic`, the same preset, is the reference. In each round the sides take
turns, each in its own process. Seconds are of training only, without evaluation. Losses are on the whole validation set
in disjoint windows, in nats per character.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from worker import product_rate, run_nanogpt, write_data

from bardflow.home import computing_environment
from bardflow.model.machine import device as devices
from bardflow.model.networks import BLOCK_NAMES, ClassicGPT, GPTSpec
from bardflow.model.planning import Machine, flops_per_token, unlimited
from bardflow.model.scoring import score
from bardflow.model.training import Training, begin
from bardflow.tasks.recipes import Recipe, overrides_from, recipe

TRAINED = 0.9
PRESET = [
    "config/train_shakespeare_char.py", "--eval_iters=20", "--block_size=64", "--batch_size=12", "--n_layer=4",
    "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0",
]  # fmt: skip
CPU = devices.Device("cpu", "f32")


def tokens_of(text: str) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", list[str]]:
    """Return training and validation set as ids of characters, split as in nanoGPT, and the characters."""
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    ids = np.array([number[character] for character in text], np.uint16)
    cut = int(len(text) * TRAINED)
    return ids[:cut], ids[cut:], characters


def chosen(side: str) -> Recipe:
    """Read a recipe from `name` or `name:field=value,…`."""
    name, _, changes = side.partition(":")
    given = dict(change.split("=", 1) for change in changes.split(",") if change)
    return recipe(name, overrides_from({field: json.loads(value) for field, value in given.items()}))


def train_ours(side: str, text: Path, evaluations: int) -> dict[str, Any]:
    """Train a recipe and score it `evaluations` times; return losses by training seconds, rates and peak memory."""
    train, held_out, characters = tokens_of(text.read_text(encoding="utf-8"))
    chosen_recipe = chosen(side)
    gpt, spec = chosen_recipe.gpt, chosen_recipe.training
    device = devices.choose(spec.precision)
    machine = Machine.here(device, base=0)
    training = Training(
        begin(gpt, len(characters), spec.seed), spec, device, unlimited(gpt, len(characters), spec, machine)
    )
    every = max(1, spec.steps // evaluations)
    seconds, points = 0.0, []
    begun = time.perf_counter()
    for step in training.steps(train, spec.steps):
        if step.number % every == 0 or step.number == spec.steps:
            float(step.loss)
            seconds += time.perf_counter() - begun
            in_f32 = devices.Device(device.name, "f32")
            with training.averaged():
                nats = score(training.gpt, held_out, before=train[-1:], device=in_f32).nats_per_token
            points.append((seconds, nats))
            begun = time.perf_counter()
    tokens = spec.steps * spec.batch * gpt.context
    return {
        "points": points,
        "tokens_per_second": tokens / seconds,
        "flops_per_second": tokens * flops_per_token(gpt, len(characters)) / seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def train_nanogpt(checkout: Path, text: Path) -> dict[str, Any]:
    """Run the checkout's train.py, read the step times that it prints, and score its last checkpoint."""
    train, held_out, characters = tokens_of(text.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        write_data(data, train, held_out, characters)
        ran = run_nanogpt(checkout, data, [*PRESET, f"--out_dir={out}", "--always_save_checkpoint=True"])
        checkpoint = torch.load(out / "ckpt.pt", weights_only=True)
    # It prints every tenth step. Left out: times that include an evaluation, and the first, which includes the start.
    seconds = statistics.mean(ran.undisturbed.values()) * checkpoint["iter_num"]
    weights = {
        name: weight.t() if any(f".{theirs}.weight" in name for theirs in BLOCK_NAMES.values()) and weight.dim() == 2
        else weight
        for name, weight in checkpoint["model"].items()
    }  # fmt: skip
    spec = GPTSpec(architecture="classic", layers=4, heads=4, width=128, context=64, activation="gelu", tied=True)
    gpt = ClassicGPT(spec, len(characters))
    # Its head is tied, and it has no biases, for which transformers' files have zeros.
    ours = gpt.to_transformers()[1]
    gpt.load_transformers({n: torch.zeros_like(w) if n.endswith(".bias") else weights[n] for n, w in ours.items()})
    nats = score(gpt, held_out, before=train[-1:], device=CPU).nats_per_token
    tokens = checkpoint["iter_num"] * 12 * 64
    return {
        "points": [(seconds / 1000, nats)],
        "tokens_per_second": tokens / seconds * 1000,
        "flops_per_second": tokens * flops_per_token(spec, len(characters)) / seconds * 1000,
        "peak_bytes": ran.peak,
    }


def run(side: str, arguments: list[str]) -> dict[str, Any]:
    """Run one side in its own process; nanoGPT in the unchanged environment, ours in the one that `bard` sets."""
    environment = dict(os.environ) if side == "nanogpt" else os.environ | computing_environment()
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *arguments, "--child", side],
        stdout=subprocess.PIPE, text=True, check=True, env=environment,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Run all sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="*", default=["sprint", "small"], metavar="SIDE")
    parser.add_argument("--text", type=Path, required=True, help="tiny Shakespeare's input.txt")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=10, help="scores on the way of each of our sides")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        if given.child == "nanogpt":
            print(json.dumps(train_nanogpt(given.nanogpt.resolve(), given.text)))
        elif given.child == "rates":
            # Without instructions for it, a product in bf16 takes a minute.
            types = [torch.float32, *[torch.bfloat16] * devices.bf16_is_fast("cpu")]
            print(json.dumps({str(dtype).removeprefix("torch."): product_rate(dtype) for dtype in types}))
        else:
            print(json.dumps(train_ours(given.child, given.text, given.evaluations)))
        return
    if not given.text.is_file():
        parser.error(f"--text {given.text} is not a file; give the path of tiny Shakespeare's input.txt")
    if given.nanogpt and not (given.nanogpt / "train.py").is_file():
        parser.error(f"--nanogpt {given.nanogpt} has no train.py; give a checkout of github.com/karpathy/nanoGPT")
    reference = "nanogpt" if given.nanogpt else "classic"
    for side in given.sides:
        chosen(side)
    rounds = []
    common = ["--text", str(given.text.resolve()), "--evaluations", str(given.evaluations)]
    if given.nanogpt:
        common += ["--nanogpt", str(given.nanogpt.resolve())]
    for number in range(given.rounds):
        rates = run("rates", common)
        said = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in rates.items())
        print(f"round {number + 1}: products of 2048 x 2048: {said} GFLOP/s")
        answers = {side: run(side, common) for side in (reference, *given.sides)}
        finish, mark = answers[reference]["points"][-1]
        for side, answer in answers.items():
            reached = next((s for s, nats in answer["points"] if nats <= mark), None)
            shares = ", ".join(f"{answer['flops_per_second'] / rate:.0%} of {name}" for name, rate in rates.items())
            by_then = [nats for s, nats in answer["points"] if s <= finish]
            answer |= {"ratio": finish / reached if reached else None, "then": by_then[-1] if by_then else None}
            print(
                f"  {side:<28} {answer['points'][-1][0]:7.1f} s to {answer['points'][-1][1]:.4f}; "
                f"the mark {mark:.4f} after "
                f"{f'{reached:.1f} s, 1/{finish / reached:.1f}' if reached else 'more than that'}; at {finish:.1f} s "
                f"{f'{by_then[-1]:.4f}' if by_then else 'none yet'}; {answer['tokens_per_second']:,.0f} tokens/s, "
                f"{answer['flops_per_second'] / 1e9:,.0f} GFLOP/s ({shares}); "
                f"peak {answer['peak_bytes'] / 1e6:,.0f} MB",
                flush=True,
            )
        rounds.append(answers)
    for side in given.sides:
        ratios = [answers[side]["ratio"] or 0.0 for answers in rounds]
        then = [answers[side]["then"] for answers in rounds if answers[side]["then"] is not None]
        print(
            f"median {side}: the mark {statistics.median(ratios):.1f} x sooner than {reference}"
            + (f"; at its finish {statistics.median(then):.4f} nats per character" if then else "")
        )


if __name__ == "__main__":
    main()
