"""Measure the difference between trainings with different seeds, and the verdicts on it.

    python benchmarks/luck.py --text PATH [--seeds 5] [SIDE ...]

A SIDE is a recipe, with or without overrides (`small`, `small:steps=700`). Each is trained with seeds 1, 2, ... on the
first nine tenths of the text, one token for each character, and scored on the rest. Prints each side's mean and
standard deviation in bits per character (`tasks.champion.LUCK` is the relative standard deviation), the verdicts of all
pairs of seeds of a side, and of each seed of a side against each seed of the next.
"""

import argparse
import itertools
import statistics
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from time_to_loss import chosen, tokens_of

from bardflow.model.machine import device as devices
from bardflow.model.planning import Machine, unlimited
from bardflow.model.scoring import Charges, charges, compare, total
from bardflow.model.training import Training, begin
from bardflow.tasks.champion import LUCK
from bardflow.tasks.recipes import Recipe


def charged(recipe: Recipe, text: str, seed: int) -> Charges:
    """Train the recipe with the seed, and return the loss of each character of the last tenth, in nats."""
    train, held_out, characters = tokens_of(text)
    spec = recipe.training.model_copy(update={"seed": seed})
    device = devices.choose(spec.precision)
    machine = Machine.here(device, base=0)
    size = len(characters)
    training = Training(begin(recipe.gpt, size, seed), spec, device, unlimited(recipe.gpt, size, spec, machine))
    for _ in training.steps(train, spec.steps):
        pass
    with training.averaged():
        return charges(training.gpt, held_out, before=train[-1:], device=devices.Device(device.name, "f32"))


def main() -> None:
    """Train each side with each seed and print the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("sides", nargs="*", default=["tiny", "small"], metavar="SIDE")
    given = parser.parse_args()
    text = given.text.read_text(encoding="utf-8")
    reached: dict[str, list[Charges]] = {}
    for side in given.sides:
        reached[side] = [charged(chosen(side), text, seed) for seed in range(1, given.seeds + 1)]
        bits = [total(one).bits_per(len(one)) for one in reached[side]]
        mean, spread = statistics.mean(bits), statistics.stdev(bits)
        print(f"{side}: {mean:.4f} bits per character, standard deviation {spread:.4f}, a share of {spread / mean:.5f}")
        pairs = [compare(a, b, luck=LUCK * mean) for a, b in itertools.combinations(reached[side], 2)]
        print(f"  {len(pairs)} pairs of seeds: {dict(Counter(pair.verdict for pair in pairs))}")
        bare = [compare(a, b, luck=0) for a, b in itertools.combinations(reached[side], 2)]
        print(
            f"  the same pairs without the luck of a seed: {dict(Counter(pair.verdict for pair in bare))}", flush=True
        )
    for one, other in itertools.pairwise(given.sides):
        mean = statistics.mean(total(c).bits_per(len(c)) for c in reached[one])
        pairs = [compare(b, a, luck=LUCK * mean) for a, b in itertools.product(reached[one], reached[other])]
        print(f"{other} against {one}: {dict(Counter(pair.verdict for pair in pairs))}")


if __name__ == "__main__":
    main()
