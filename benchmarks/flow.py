"""Measure the overhead of a flow: `bard train` on a corpus, compared with the training loop alone.

    python benchmarks/flow.py --text PATH [--recipe small] [--steps 3600] [--rounds 1]

`--text` is tiny Shakespeare's input.txt. The flow starts with an empty home, so it fetches, cleans, learns a
vocabulary, writes shards, trains, scores after each leg, evaluates, measures baselines and writes a report. Its time
includes the start of Python and of Prefect's temporary server. The bare loop is only `model.training` on the same
tokens. Flow and loop take turns, each in its own process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import time_to_loss
from worker import CHECKOUT


def flow_seconds(text: Path, recipe: str, steps: int) -> float:
    """Measure the wall time of `bard train` with an empty home, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        mirror = Path(folder) / "mirror" / "tiny-shakespeare"
        mirror.mkdir(parents=True)
        (mirror / "input.txt").symlink_to(text.resolve())
        environment = os.environ | {"BARDFLOW_HOME": f"{folder}/home", "CORPORA_MIRROR": str(mirror.parent)}
        begun = time.monotonic()
        subprocess.run(
            [Path(sys.executable).with_name("bard"), "train", "tiny-shakespeare", "--recipe", recipe,
             "--set", f"steps={steps}", "--set", "patience=null"],
            cwd=CHECKOUT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return time.monotonic() - begun


def main() -> None:
    """Run flow and loop in turn and print the seconds, and how far the flow is above 1.05 of the loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="tiny Shakespeare's input.txt")
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    beyond = []
    for number in range(given.rounds):
        flow = flow_seconds(given.text, given.recipe, given.steps)
        side = f"{given.recipe}:steps={given.steps},patience=null"
        bare = time_to_loss.run(side, ["--text", str(given.text.resolve()), "--evaluations", "1"])["points"][-1][0]
        beyond.append(flow - 1.05 * bare)
        print(f"round {number + 1}: flow {flow:.1f} s, bare loop {bare:.1f} s, flow - 1.05 x loop {beyond[-1]:.1f} s")
    print(f"median of flow - 1.05 x loop: {statistics.median(beyond):.1f} s")


if __name__ == "__main__":
    main()
