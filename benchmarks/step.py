"""Compare a training step of bardflow and nanoGPT at one size: tokens per second, FLOPs and peak memory.

    python benchmarks/step.py [--nanogpt PATH] [--size 10.8M] [--dropout 0.2] [--memory-limit 1GB] [--rounds 3]

The sides train on the same number of windows of random tokens per step. They take turns, each in its own process, whose
peak is measured from outside (benchmarks/worker.py). `classic` is nanoGPT's model, `modern` is ours with as many layers
and the same width. Both use the precision that a run would choose. FLOPs are counted as in nanoGPT, 6 N + 12 L C T per
token. Rates of 2048 x 2048 products and of the linear layers' products alone, forward and backward, show what this
machine's library reaches.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from worker import Case, case, measured, product_rate, random_tokens, run_nanogpt, write_data

from bardflow.model.machine import device as devices
from bardflow.model.planning import flops_per_token

# name: (layers, heads, width, context, vocabulary, windows a step)
SIZES = {
    "10.8M": (6, 6, 384, 256, 65, 64),  # config/train_shakespeare_char.py
    "12.3M": (6, 6, 384, 256, 4181, 64),
    "124M": (12, 12, 768, 1024, 50_304, 4),  # GPT-2
}
STEPS = 5


def nanogpt(checkout: Path, size: str, dropout: float) -> dict[str, Any]:
    """Measure the step seconds and peak memory of the checkout's train.py."""
    layers, heads, width, context, vocabulary, batch = SIZES[size]
    tokens = random_tokens(vocabulary, (batch + 2) * context)
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        write_data(data, tokens, tokens, list(range(vocabulary)))
        run = run_nanogpt(
            checkout,
            data,
            [
                "config/train_shakespeare_char.py", f"--n_layer={layers}", f"--n_head={heads}", f"--n_embd={width}",
                f"--block_size={context}", f"--batch_size={batch}", f"--dropout={dropout}", f"--out_dir={out}",
                f"--max_iters={STEPS - 1}", "--log_interval=1", "--eval_iters=1", "--eval_interval=1000",
            ],
        )  # fmt: skip
    return {"step_seconds": statistics.median(run.undisturbed.values()) / 1000, "measured": run.peak}


def ours(architecture: str, size: str, dropout: float, memory_limit: str | None) -> Case:
    """Make the case of that size for one of our architectures."""
    layers, heads, width, context, vocabulary, batch = SIZES[size]
    what = case(
        architecture, layers, heads, width, context, vocabulary=vocabulary, batch=batch, dropout=dropout,
        memory_limit=memory_limit,
    )  # fmt: skip
    return what.model_copy(update={"steps": STEPS})


def own_products_rate(size: str, dtype: torch.dtype) -> float:
    """Measure operations per second of the linear layers' products, forward and both backward, on 4,096 tokens.

    Each layer has its own inputs and gradients, as in a step, so none is in a cache from the layer before.
    """
    layers, _, width, _, _, _ = SIZES[size]
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers
    drawn = [
        tuple(torch.randn(size).to(dtype) for size in ((rows, columns), (4096, columns), (4096, rows)))
        for rows, columns in shapes
    ]
    rates = []
    for _ in range(6):
        begun = time.perf_counter()
        for w, x, _ in drawn:
            x @ w.t()
        for w, x, g in reversed(drawn):
            g @ w
            g.t() @ x
        rates.append(3 * 2 * 4096 * layers * 12 * width**2 / (time.perf_counter() - begun))
    return statistics.median(rates[1:])


def main() -> None:
    """Run all sides in turn and print each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--size", choices=[*SIZES], default="10.8M")
    parser.add_argument("--dropout", type=float, default=0.2, help="nanoGPT's GPU preset has 0.2")
    parser.add_argument("--memory-limit", help="of our sides, such as 1GB")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.nanogpt and not (given.nanogpt / "train.py").is_file():
        parser.error(f"--nanogpt {given.nanogpt} has no train.py; give a checkout of github.com/karpathy/nanoGPT")
    cases = {name: ours(name, given.size, given.dropout, given.memory_limit) for name in ("classic", "modern")}
    _, _, _, context, vocabulary, batch = SIZES[given.size]
    per_token = {name: flops_per_token(what.gpt, vocabulary) for name, what in cases.items()}
    per_token["nanogpt"] = per_token["classic"]
    device = devices.choose("auto")
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(given.rounds):
        rates = product_rate(device.dtype), own_products_rate(given.size, device.dtype)
        square, own = (rate / 1e9 for rate in rates)
        print(
            f"round {number + 1}: GFLOP/s of products in {device.precision}: 2048 x 2048 {square:,.0f}, "
            f"the layers' own {own:,.0f}"
        )
        answers = {} if given.nanogpt is None else {"nanogpt": nanogpt(given.nanogpt, given.size, given.dropout)}
        answers |= {name: measured(what) for name, what in cases.items()}
        for name, answer in answers.items():
            answer["rate"] = batch * context / answer["step_seconds"]
            answer["share"] = answer["rate"] * per_token[name] / rates[0]
            answer["own"] = answer["rate"] * per_token[name] / rates[1]
            print(
                f"  {name:<10}{answer['step_seconds']:>8.2f} s a step, {answer['rate']:>9,.0f} tokens/s, "
                f"{answer['rate'] * per_token[name] / 1e9:>6,.0f} GFLOP/s; peak {answer['measured'] / 1e6:,.0f} MB",
                flush=True,
            )
        rounds.append(answers)
    for name in rounds[0]:
        median = {
            key: statistics.median(answers[name][key] for answers in rounds)
            for key in ("rate", "share", "own", "measured")
        }
        beside = ""
        if given.nanogpt and name != "nanogpt":
            ratio = statistics.median(answers[name]["rate"] / answers["nanogpt"]["rate"] for answers in rounds)
            beside = f"{ratio:.2f} x nanoGPT's tokens; "
        print(
            f"median {name:<10}{beside}{median['rate']:,.0f} tokens/s; {median['share']:.0%} of 2048 x 2048, "
            f"{median['own']:.0%} of the layers' own; peak {median['measured'] / 1e6:,.0f} MB"
        )


if __name__ == "__main__":
    main()
