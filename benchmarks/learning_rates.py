"""Whether learning rates carry over between widths by the rule of the scaling ladder, or by luck.

    python benchmarks/learning_rates.py --text PATH [--steps 300] [--widths 64 128 288]

The recipe `small` at each width of the ladder, with its learning rates by `tasks.ladder.learning_rate_factor`, then
with one of its two rates (AdamW's, of the tables; Muon's, of the matrices) a quarter, a half, twice and four times as
high. Printed: bits per character of the held-out tenth as characters, and how far the rule is from the lowest. A seed
alone brings 0.8 % at 300 steps (`benchmarks/luck.py`).
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
    """Train every width at every scale of each rate and print the bits."""
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
