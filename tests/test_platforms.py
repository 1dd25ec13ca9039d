"""Other machines than those the tests run on: Apple's GPUs, which have no numbers of 64 bits, and Windows."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from bardflow.model.leg import point
from bardflow.model.machine import device as devices
from bardflow.model.machine.execution import Execution
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.sampling import SamplingSpec, sample_watched
from bardflow.model.scoring.held_out import charges_both_ways, guesses, score
from bardflow.model.training.loop import Training, begin
from bardflow.model.training.spec import TrainingSpec
from tests.conftest import ARCHITECTURES, CHECKOUT

REFUSED = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use float32 "
    "instead."
)


class NoDoubles(TorchFunctionMode):
    """Takes every tensor for one on Apple's GPU, but those that came from `cpu()` and what is made of these alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not (kwargs or {}).get("non_blocking"), "it would read the CPU's memory when that may be freed already"
        out = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            out = out.clone()  # on a CPU it is the tensor itself
        given = [a for a in args if isinstance(a, torch.Tensor)]
        on_cpu = func is torch.Tensor.cpu or (given and all(getattr(a, "on_cpu", False) for a in given))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor):
                if on_cpu:
                    tensor.on_cpu = True  # type: ignore[attr-defined]
                elif tensor.dtype == torch.float64:
                    raise TypeError(REFUSED)
        return out


def test_the_mimic_refuses_what_apples_gpus_refuse_and_nothing_else() -> None:
    with NoDoubles():
        ones = torch.ones(3)
        assert ones.cpu().double().mean().item() == 1
        for wrong in (ones.double, lambda: ones.to(torch.float64), lambda: torch.zeros(2, dtype=torch.float64)):
            with pytest.raises(TypeError, match="doesn't support float64"):
                wrong()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_model_is_trained_scored_and_sampled_without_numbers_of_64_bits(
    architecture: Any, optimizer: Any, precision: Any
) -> None:
    gpt = GPTSpec(architecture=architecture, layers=2, heads=2, width=16, context=8, dropout=0.1, activation="silu")
    spec = TrainingSpec(steps=4, batch=4, optimizer=optimizer, input_noise=0.1)
    tokens = (np.arange(300) ** 2 % 23).astype(np.uint16)
    here = devices.Device("cpu", precision)
    with NoDoubles():
        execution = Execution(micro_batch=2, recompute=True, loss_tokens=16, optimizer_state="bf16")
        training = Training(begin(gpt, 23, 1), spec, here, execution)
        steps = list(training.steps(tokens, 4))
        line = point(steps[-1], [step.loss for step in steps], 1.0)
        exact = devices.Device("cpu", "f32")
        held_out = score(training.gpt, tokens, before=tokens[:1], device=exact, execution=execution)
        disjoint, sliding = charges_both_ways(training.gpt, tokens, before=tokens[:1], device=exact)
        assert len(guesses(training.gpt, tokens[:20], before=tokens[:1], device=exact, likeliest=3)) == 20
        drawing = sample_watched(training.gpt, [1, 2], SamplingSpec(), exact, likeliest=3)
        assert len([next(drawing) for _ in range(20)]) == 20
    assert line.step == 4 and 2 < line.train_nats < 5
    assert np.isclose(disjoint.sum(), held_out.nats, rtol=1e-4) and len(sliding) == len(tokens)


WINDOWS = """
import sys
sys.platform = "win32"
sys.modules["fcntl"] = None
sys.argv = ["bard", "train"]
from bardflow.__main__ import main
main()
"""


def test_on_windows_bard_ends_with_a_sentence() -> None:
    said = subprocess.run([sys.executable, "-c", WINDOWS], capture_output=True, text=True, cwd=CHECKOUT)
    assert said.returncode == 1 and said.stdout == ""
    assert said.stderr.startswith("bard: bardflow runs on Linux and macOS") and said.stderr.count("\n") == 1


def test_bard_is_a_module_too() -> None:
    said = subprocess.run([sys.executable, "-m", "bardflow", "--help"], capture_output=True, text=True, cwd=CHECKOUT)
    assert said.returncode == 0 and "train" in said.stdout and "python -m bardflow" not in said.stderr
