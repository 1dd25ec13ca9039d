"""Compare planned and measured peak memory by shape, and measure the effect of half the memory.

    python benchmarks/memory_plan.py [NAME ...] [--json]
    python benchmarks/memory_plan.py --half NAME ...

Each shape trains for a few steps in its own process (benchmarks/worker.py), which makes the plan before the training.
With --half each trains twice: without a limit, and with a `memory_limit` of half of that peak.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from worker import Case, case, measured

# The classic 10.8 M model of "Let's build GPT"; the size is that of nanoGPT's GPU preset.
LECTURE: dict[str, Any] = {"tied": False, "biases": True, "activation": "relu"}

LLAMA: dict[str, Any] = {"key_value_heads": 2, "mlp_width": 1024, "activation": "silu"}
QWEN3: dict[str, Any] = {**LLAMA, "key_value_heads": 4, "head_width": 128, "query_key_norm": True, "tied": True}

SHAPES: dict[str, Case] = {
    "modern 0.1 M": case("modern", 2, 2, 64, 64, batch=16),
    "classic 0.8 M": case("classic", 4, 4, 128, 64, batch=12),
    "modern 1.4 M": case("modern", 3, 6, 192, 128, batch=16),
    "modern 3 M, 4,412 tokens": case("modern", 3, 6, 192, 128, vocabulary=4412, batch=16),
    "classic 10.8 M": case("classic", 6, 6, 384, 256, batch=64),
    "classic 10.8 M, dropout": case("classic", 6, 6, 384, 256, batch=64, dropout=0.2),
    "lecture": case("classic", 6, 6, 384, 256, batch=64, dropout=0.2, **LECTURE),
    "modern 10.7 M": case("modern", 6, 6, 384, 256, batch=64),
    "modern 13.8 M, 4,181 tokens": case("modern", 6, 6, 384, 256, vocabulary=4181, batch=64),
    "classic 12.3 M, 4,181 tokens": case("classic", 6, 6, 384, 256, vocabulary=4181, batch=64),
    "modern 30 M": case("modern", 8, 8, 512, 512, vocabulary=8192, batch=16),
    "classic 30 M": case("classic", 8, 8, 512, 512, vocabulary=8192, batch=16),
    "modern 59 M": case("modern", 10, 10, 640, 512, vocabulary=8192, batch=8),
    "modern 124 M": case("modern", 12, 12, 768, 1024, vocabulary=25_152, batch=4),
    "classic 124 M": case("classic", 12, 12, 768, 1024, vocabulary=50_304, batch=4),
    "llama 11 M": case("llama", 6, 6, 384, 256, batch=64, **LLAMA),
    "qwen3 24 M": case("llama", 8, 8, 512, 512, vocabulary=8192, batch=8, **QWEN3),
    "lfm2 0.7 M": case("lfm2", 4, 2, 128, 256, batch=8, activation="silu"),
    "lfm2 9 M": case("lfm2", 6, 6, 384, 256, batch=64, activation="silu"),
    "lfm2 29 M": case("lfm2", 8, 8, 512, 512, vocabulary=8192, batch=16, activation="silu"),
    "classic 10.8 M within 1 GB": case("classic", 6, 6, 384, 256, batch=64, memory_limit="1GB"),
    "modern 12.3 M within 700 MB": case("modern", 6, 6, 384, 256, vocabulary=4181, batch=64, memory_limit="700MB"),
    "modern 124 M within 3 GB": case("modern", 12, 12, 768, 1024, vocabulary=25_152, batch=4, memory_limit="3GB"),
    "classic 124 M within 3 GB": case("classic", 12, 12, 768, 1024, vocabulary=50_304, batch=4, memory_limit="3GB"),
}


def main() -> None:
    """Measure the named shapes, or all of them, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {'; '.join(SHAPES)}")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each shape instead of a table")
    parser.add_argument("--half", action="store_true", help="train each again within half of its peak")
    parser.add_argument("--steps", type=int, default=0, help="of each training (default 2, with --half 10)")
    given = parser.parse_args()
    if strange := [name for name in given.names if name not in SHAPES]:
        parser.error(f"no shape {', '.join(map(repr, strange))}; shapes: {'; '.join(SHAPES)}")
    steps = given.steps or (10 if given.half else 2)
    chosen = {name: SHAPES[name].model_copy(update={"steps": steps}) for name in given.names or SHAPES}
    if given.half:
        halves(chosen)
    else:
        table(chosen, as_json=given.json)


def table(chosen: dict[str, Case], *, as_json: bool) -> None:
    """Print planned and measured peaks."""
    if not as_json:
        print(
            f"{'shape':<30}{'windows':>9}{'planned MB':>12}{'measured MB':>13}{'error':>9}   moment of the plan's peak"
        )
    errors = []
    for name, what in chosen.items():
        answer = measured(what)
        errors.append(answer["planned"] / answer["measured"] - 1)
        if as_json:
            print(json.dumps({"shape": name} | answer), flush=True)
            continue
        execution, peaks = answer["plan"]["execution"], [answer[key] / 1e6 for key in ("planned", "measured")]
        economies = ", blocks computed again" * execution["recompute"]
        economies += ", state in bf16" * (execution["optimizer_state"] == "bf16")
        print(
            f"{name:<30}{execution['micro_batch']:>9}{peaks[0]:>12,.0f}{peaks[1]:>13,.0f}"
            f"{errors[-1]:>+9.1%}   {answer['moment']}{economies}",
            flush=True,
        )
    if not as_json:
        within = sum(abs(error) <= 0.1 for error in errors)
        print(f"{within} of {len(errors)} within 10 %; largest error {max(errors, key=abs):+.1%}")


def halves(chosen: dict[str, Case]) -> None:
    """Train each shape without a limit and with half of that peak; print peaks, step seconds and loss differences."""
    print(f"{'shape':<30}{'free MB':>9}{'half MB':>9}{'then MB':>9}{'step s':>9}{'then s':>9}{'loss apart':>12}")
    for name, what in chosen.items():
        free = measured(what)
        limit = free["measured"] // 2
        try:
            within = measured(what.model_copy(update={"memory_limit": limit}))
        except SystemExit as refused:
            said = [line for line in str(refused).splitlines() if "TooLittleMemory" in line]
            if not said:
                raise
            print(f"{name:<30}{free['measured'] / 1e6:>9,.0f}{limit / 1e6:>9,.0f}   refused: {said[-1]}", flush=True)
            continue
        apart = max(abs(a - b) for a, b in zip(free["losses"], within["losses"], strict=True))
        execution = within["plan"]["execution"]
        print(
            f"{name:<30}{free['measured'] / 1e6:>9,.0f}{limit / 1e6:>9,.0f}{within['measured'] / 1e6:>9,.0f}"
            f"{free['step_seconds']:>9.2f}{within['step_seconds']:>9.2f}{apart:>12.1e}   {execution}",
            flush=True,
        )


if __name__ == "__main__":
    main()
