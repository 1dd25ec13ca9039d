"""Compare the tokens per second of sampling with a key-value cache and without.

Run it from the checkout. Each row of the table takes about `2 * rounds * seconds` plus the time to read the prompts:

    .venv/bin/python benchmarks/sampling.py
    .venv/bin/python benchmarks/sampling.py --shapes 3x192x128 6x384x256 --batches 1 8 --rounds 5
    .venv/bin/python benchmarks/sampling.py --shapes 12x768x1024 --batches 8 --rounds 3 --seconds 0.1

A shape is layers x width x context. Weights are random, and prompts are half a context long. Without a cache, the whole
window is read again for each token; with one, only when the window is full. Both sides take turns within each round and
generate the same number of tokens, as many as fit into `--seconds` without a cache, at least one. If the tokens differ,
a message says so. The ratio is the median over the rounds of (seconds without) / (seconds with).
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bardflow.model.machine import device
from bardflow.model.networks import GPT, GPTSpec, build
from bardflow.model.sampling import SamplingSpec, sample_rows


def main() -> None:
    """Measure the selected models and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["3x192x128", "6x384x256", "12x768x1024"])
    parser.add_argument("--architectures", nargs="+", default=["modern"], choices=["modern", "classic"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of drawing without a cache in a round")
    asked = parser.parse_args()
    place = device.choose("f32")
    print(
        f"{place.name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {asked.vocabulary:,} tokens known"
    )
    print(
        f"{'model':<22} {'batch':>5} {'drawn':>6} {'cached tok/s':>13} {'recomputed tok/s':>17} {'ratio':>7}  of rounds"
    )
    for architecture, shape, batch in itertools.product(asked.architectures, asked.shapes, asked.batches):
        gpt = model_of(architecture, shape, asked.vocabulary).to(place.name)
        steps, cached, recomputed = measured(gpt, batch, asked.rounds, asked.seconds, place)
        ratios = [slow / fast for fast, slow in zip(cached, recomputed, strict=True)]
        fast, slow = (steps * batch / statistics.median(seconds) for seconds in (cached, recomputed))
        print(
            f"{architecture + ' ' + shape:<22} {batch:>5} {steps:>6} {fast:>13,.0f} {slow:>17,.1f} "
            f"{statistics.median(ratios):>7.1f}  {min(ratios):.1f} to {max(ratios):.1f}",
            flush=True,
        )


def model_of(architecture: str, shape: str, vocabulary_size: int) -> GPT:
    """Make a model with random weights, with 64 channels per head, or 32 below a width of 384."""
    layers, width, context = (int(part) for part in shape.split("x"))
    heads = width // (64 if width >= 384 else 32)
    spec = {"architecture": architecture, "layers": layers, "width": width, "heads": heads, "context": context}
    torch.manual_seed(0)
    gpt = build(GPTSpec.model_validate(spec), vocabulary_size)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)  # a new head is all zeros
    return gpt


def measured(
    gpt: GPT, batch: int, rounds: int, seconds: float, place: device.Device
) -> tuple[int, list[float], list[float]]:
    """Return the tokens per row and round, and the seconds of each round with a cache and without."""
    prompts = [[(7 * row + i) % 97 for i in range(gpt.context // 2)] for row in range(batch)]
    sides = [sample_rows(gpt, prompts, SamplingSpec(), place, cached=cached) for cached in (True, False)]
    next(sides[0])  # reads the prompts; the side without a cache reads them for each token
    started = perf_counter()
    next(sides[1])
    steps = max(1, int(seconds / (perf_counter() - started)))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        texts: list[list[list[int]]] = [[], []]
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            taken, texts[side] = timed(sides[side], steps)
            times[side].append(taken)
        if texts[0] != texts[1]:
            # Rounding alone causes this about once in 100,000 tokens.
            print(f"round {turn}: the two sides drew different tokens", file=sys.stderr)
    return steps, *times


def timed(tokens: Iterator[list[int]], steps: int) -> tuple[float, list[list[int]]]:
    """Generate `steps` tokens for each row; return the seconds and the tokens."""
    started = perf_counter()
    drawn = list(itertools.islice(tokens, steps))
    return perf_counter() - started, drawn


if __name__ == "__main__":
    main()
