"""Test whether the scaling ladder's rule for learning rates holds at other widths.

    python benchmarks/learning_rates.py --text PATH [--steps 300] [--widths 64 128 288]

Trains the recipe `small` at each width of the ladder, with learning rates from `tasks.ladder.learning_rate_factor`.
Then one of its two rates (AdamW's for the tables, Muon's for the matrices) is multiplied by 1/4, 1/2, 2 and 4. Prints
the bits per character of the validation set (the last tenth, one token for each character), and the rule's excess over
the lowest. Seeds alone differ by 0.8 % at 300 steps (`benchmarks/luck.py`).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from luck import charged
from time_to_loss import chosen

from bardflow.flows.scaling_ladder import of_size
from bardflow.model.scoring import total
from bardflow.tasks.ladder import RUNGS

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
RATES = {"AdamW": "learning_rate", "Muon": "muon_learning_rate"}


def main() -> None:
    """Train each width with each scale of both rates, and print the bits per character."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 288])
    given = parser.parse_args()
    text, base = given.text.read_text(encoding="utf-8"), chosen(f"small:steps={given.steps}")
    print(f"{'width':>6}  {'rate':<6}" + "".join(f"{f'x {scale:g}':>10}" for scale in SCALES) + "   the rule's loss")
    for layers, width in (shape for shape in RUNGS if shape[1] in given.widths):
        by_rule = of_size(base, layers, width)
        middle = None
        for name, field in RATES.items():
            bits = []
            for scale in SCALES:
                if scale == 1 and middle is not None:
                    bits.append(middle)
                    continue
                rate = getattr(by_rule.training, field) * scale
                changed = by_rule.model_copy(update={"training": by_rule.training.model_copy(update={field: rate})})
                nats = charged(changed, text, 1)
                bits.append(total(nats).bits_per(len(nats)))
            middle = bits[SCALES.index(1)]
            lost = middle / min(bits) - 1
            print(f"{width:>6}  {name:<6}" + "".join(f"{b:>10.4f}" for b in bits) + f"   {lost:.2%}", flush=True)


if __name__ == "__main__":
    main()
