"""Show where a training step takes its time: by kernel, and the rate of each matrix product in its own shape.

    python benchmarks/kernels.py [RECIPE] [--precision f32] [--vocabulary 65] [--steps 10] [--products 12]

RECIPE is as in time_to_loss.py: `small`, or with overrides `best:batch=8`. The tokens are random. A step is measured
first, and then profiled, so times in the tables include the profiler. FLOPs of the whole step are counted as in
nanoGPT, 6 N + 12 L C T per token, without the optimizer's; those of a product are 2 M K N.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from time_to_loss import chosen
from torch.profiler import ProfilerActivity, profile
from worker import product_rate, random_tokens

from bardflow.home import computing_environment
from bardflow.model.machine import device as devices
from bardflow.model.planning import Machine, flops_per_token, unlimited
from bardflow.model.training import Training, begin

WARM = 10


def rows_of(events: Any, steps: int) -> list[tuple[str, float, float]]:
    """Return each kernel's name, milliseconds a step and calls a step, the slowest first."""
    found = [(event.key, event.self_cpu_time_total / 1000 / steps, event.count / steps) for event in events]
    return sorted(found, key=lambda row: -row[1])


def products_of(events: Any, steps: int) -> list[tuple[str, float, float, float]]:
    """Return each product's shapes, milliseconds and calls a step, and operations per second, the slowest first."""
    times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for event in events:
        if event.key in ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm") and event.flops:
            matrices = [shape for shape in event.input_shapes if len(shape) >= 2][-2:]
            name = f"{event.key.removeprefix('aten::')} {' x '.join(str(tuple(shape)) for shape in matrices)}"
            for i, value in enumerate((event.self_cpu_time_total, event.count, event.flops)):
                times[name][i] += value
    rows = [(name, us / 1000 / steps, n / steps, flops / us * 1e6) for name, (us, n, flops) in times.items()]
    return sorted(rows, key=lambda row: -row[1])


def main() -> None:
    """Measure and profile in a process with the environment that `bard` sets, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="small", metavar="RECIPE")
    parser.add_argument("--precision", choices=["auto", "f32", "bf16"], default="auto")
    parser.add_argument("--vocabulary", type=int, default=65)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--products", type=int, default=12, help="lines of each table")
    given = parser.parse_args()
    wanted = computing_environment()
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        raise SystemExit(subprocess.run([sys.executable, *sys.argv], env=os.environ | wanted).returncode)
    recipe = chosen(given.recipe)
    gpt, spec = recipe.gpt, recipe.training
    device = devices.choose(given.precision)
    execution = unlimited(gpt, given.vocabulary, spec, Machine.here(device, base=0))
    training = Training(begin(gpt, given.vocabulary, spec.seed), spec, device, execution)
    tokens = random_tokens(given.vocabulary, (spec.batch + 2) * gpt.context * 4)
    seconds, begun = [], time.perf_counter()
    for _ in training.steps(tokens, WARM + given.steps):
        seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    step = statistics.median(seconds[WARM:])
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as profiled:
        for _ in training.steps(tokens, WARM + 2 * given.steps):
            pass
    peak = product_rate(device.dtype)
    rate = spec.batch * gpt.context * flops_per_token(gpt, given.vocabulary) / step
    print(
        f"{given.recipe}, {device.precision}, {torch.get_num_threads()} threads: {1000 * step:.1f} ms a step, "
        f"{rate / 1e9:,.0f} GFLOP/s, {rate / peak:.0%} of 2048 x 2048 products ({peak / 1e9:,.0f})"
    )
    rows = rows_of(profiled.key_averages(), given.steps)
    whole = sum(row[1] for row in rows)
    print(f"\n{'kernel':<44}{'ms':>8}{'share':>8}{'calls':>8}")
    for name, ms, calls in rows[: given.products]:
        print(f"{name[:43]:<44}{ms:>8.2f}{ms / whole:>8.1%}{calls:>8.0f}")
    print(f"{'all':<44}{whole:>8.2f}")
    print(f"\n{'product':<44}{'ms':>8}{'calls':>8}{'GFLOP/s':>9}{'share':>8}")
    for name, ms, calls, flops in products_of(profiled.key_averages(group_by_input_shape=True), given.steps)[
        : given.products
    ]:
        print(f"{name[:43]:<44}{ms:>8.2f}{calls:>8.0f}{flops / 1e9:>9,.0f}{flops / peak:>8.0%}")


if __name__ == "__main__":
    main()
