"""How far a plan's peak memory is from the measured one, shape by shape.

    python benchmarks/memory_plan.py [NAME ...] [--json]

Each shape trains a few steps in a process of its own, as a leg does: read a checkpoint, take steps, score, keep a
checkpoint. The plan is made in that process before the training, and the peak is measured from outside, by
`/usr/bin/time -v` where there is one and else by the kernel's count for the ended child (ru_maxrss).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
TIME = Path("/usr/bin/time")
STEPS = 2


def modern(layers: int, heads: int, width: int, context: int, **more: Any) -> dict[str, Any]:
    return {"architecture": "modern", "layers": layers, "heads": heads, "width": width, "context": context} | more


def classic(layers: int, heads: int, width: int, context: int, **more: Any) -> dict[str, Any]:
    return modern(layers, heads, width, context, activation="gelu", tied=True) | more | {"architecture": "classic"}


# name: (shape, vocabulary, batch, optimizer, memory limit or None)
SHAPES: dict[str, tuple[dict[str, Any], int, int, str, str | None]] = {
    "modern 0.1 M": (modern(2, 2, 64, 64), 65, 16, "muon", None),
    "classic 0.8 M": (classic(4, 4, 128, 64), 65, 12, "adamw", None),
    "modern 1.4 M": (modern(3, 6, 192, 128), 65, 16, "muon", None),
    "modern 3 M, 4,412 tokens": (modern(3, 6, 192, 128), 4412, 16, "muon", None),
    "classic 10.8 M": (classic(6, 6, 384, 256, tied=False, biases=True), 65, 64, "adamw", None),
    "classic 10.8 M, dropout": (
        classic(6, 6, 384, 256, tied=False, biases=True, activation="relu", dropout=0.2), 65, 64, "adamw", None,
    ),
    "modern 10.7 M": (modern(6, 6, 384, 256), 65, 64, "muon", None),
    "modern 13.8 M, 4,181 tokens": (modern(6, 6, 384, 256), 4181, 64, "muon", None),
    "classic 12.3 M, 4,181 tokens": (classic(6, 6, 384, 256), 4181, 64, "adamw", None),
    "modern 30 M": (modern(8, 8, 512, 512), 8192, 16, "muon", None),
    "classic 30 M": (classic(8, 8, 512, 512, tied=True), 8192, 16, "adamw", None),
    "modern 59 M": (modern(10, 10, 640, 512), 8192, 8, "muon", None),
    "modern 124 M": (modern(12, 12, 768, 1024), 25_152, 4, "muon", None),
    "classic 124 M": (classic(12, 12, 768, 1024), 50_304, 4, "adamw", None),
    "classic 124 M within 2 GB": (classic(12, 12, 768, 1024), 50_304, 4, "adamw", "2GB"),
}  # fmt: skip


def child(name: str) -> None:
    """Train one shape and print its plan and the steps' losses as JSON."""
    import numpy as np

    from model import device as devices
    from model.folder import load_snapshot, save_snapshot
    from model.memory import limit_bytes
    from model.plan import Machine, choose
    from model.probe import settled_bytes
    from model.scoring import score
    from model.spec import GPTSpec
    from model.training import Training, TrainingSpec, begin

    shape, size, batch, optimizer, limit = SHAPES[name]
    gpt = GPTSpec.model_validate(shape)
    spec = TrainingSpec.model_validate({"steps": STEPS, "batch": batch, "optimizer": optimizer})
    device = devices.choose(spec.precision)
    machine = Machine.model_validate(
        {"device": device.name, "precision": device.precision, "base": settled_bytes(device)}
    )
    plan = choose(gpt, size, spec, machine, None if limit is None else limit_bytes(limit, device))
    tokens = np.random.default_rng(0).integers(0, size, (batch + 2) * gpt.context).astype(np.uint32)
    with tempfile.TemporaryDirectory() as folder:
        save_snapshot(begin(gpt, size, spec.seed), Path(folder))
        training = Training(load_snapshot(Path(folder)), spec, device, plan.execution)
        losses = [float(step.loss) for step in training.steps(tokens, STEPS)]
        score(training.gpt, tokens[: 2 * gpt.context], before=0, device=devices.Device(device.name, "f32"))
        save_snapshot(training.state(), Path(folder))
    print(json.dumps({"plan": plan.model_dump(), "moment": plan.moment, "losses": losses}))


def measured(name: str) -> dict[str, Any]:
    """Run one shape in a process of its own and measure that process from outside."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    if TIME.exists():
        done = subprocess.run([str(TIME), "-v", *command], capture_output=True, text=True, env=environment)
        found = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
        code, out, err, peak = done.returncode, done.stdout, done.stderr, int(found[1]) * 1024 if found else 0
    else:
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(command, stdout=said, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = code = os.waitstatus_to_exitcode(status)
            said.seek(0)
            out, err, peak = said.read(), "", usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if code:
        raise SystemExit(f"{name!r} ended with {code}:\n{err}")
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer | {"measured": peak}


def main() -> None:
    """Measure the named shapes, or all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {'; '.join(SHAPES)}")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each shape instead of a table")
    parser.add_argument("--child", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    if strange := [name for name in given.names if name not in SHAPES]:
        parser.error(f"no shape {', '.join(map(repr, strange))}; shapes: {'; '.join(SHAPES)}")
    if not given.json:
        print(
            f"{'shape':<30}{'windows':>9}{'planned MB':>12}{'measured MB':>13}{'error':>9}   moment of the plan's peak"
        )
    errors = []
    for name in given.names or SHAPES:
        answer = measured(name)
        plan = answer["plan"]
        planned = sum(plan["moments"][answer["moment"]].values())
        errors.append(planned / answer["measured"] - 1)
        if given.json:
            print(json.dumps({"shape": name, "planned": planned} | answer), flush=True)
            continue
        print(
            f"{name:<30}{plan['execution']['micro_batch']:>9}{planned / 1e6:>12,.0f}{answer['measured'] / 1e6:>13,.0f}"
            f"{errors[-1]:>+9.1%}   {answer['moment']}",
            flush=True,
        )
    if not given.json:
        within = sum(abs(error) <= 0.1 for error in errors)
        print(f"{within} of {len(errors)} within 10 %; largest error {max(errors, key=abs):+.1%}")


if __name__ == "__main__":
    main()
