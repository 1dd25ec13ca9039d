"""Graphics cards: which device is taken, steps as a card computes them (most of it on a CPU too), and hashed bits."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bardflow.model.machine import Device, Execution
from bardflow.model.machine.device import NoSuchDevice, bf16_is_fast, choose, cuda_is_usable, has_kernels
from bardflow.model.networks import Bits, GPTSpec, head_loss
from bardflow.model.networks.bits import drawn, drawn_one_by_one
from bardflow.model.training import Training, TrainingSpec, begin
from tests.conftest import SMALL_NETWORKS
from tests.test_training import CLASSIC, CPU, MODERN, VOCABULARY, WHOLE, run, some_text, through_files

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("name", ["tpu", "cuda:7", "CPU"])
def test_a_device_that_is_not_here_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARDFLOW_DEVICE", name)
    with pytest.raises(NoSuchDevice, match=rf"BARDFLOW_DEVICE is '{name}', but this machine has .*cpu; unset it or"):
        choose("auto")


def test_the_device_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARDFLOW_DEVICE", "cpu")
    assert choose("f32") == Device("cpu", "f32")
    assert choose("bf16") == Device("cpu", "bf16")
    assert choose("auto") == Device("cpu", "bf16" if bf16_is_fast("cpu") else "f32")


@pytest.mark.parametrize(
    ("capability", "architectures", "has"),
    [
        ((9, 0), ["sm_80", "sm_90", "sm_100"], True),
        ((8, 6), ["sm_80", "sm_90"], True),  # the same major version, a larger minor one
        ((8, 0), ["sm_86", "sm_90"], False),
        ((6, 1), ["sm_75", "sm_80", "sm_90"], False),  # a GTX 1080 and today's builds
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),  # intermediate code is compiled for later GPUs
        ((9, 0), ["compute_100"], False),
        ((10, 3), ["sm_100a"], False),
        ((10, 0), ["sm_100a"], True),
        ((10, 3), ["sm_100f"], True),
        ((9, 0), [], False),
    ],
)
def test_a_card_needs_kernels_for_its_compute_capability(
    capability: tuple[int, int], architectures: list[str], has: bool
) -> None:
    assert has_kernels(capability, architectures) == has


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((6, 1), "f32"), ((7, 0), "f16"), ((7, 5), "f16"), ((8, 0), "bf16"), ((12, 0), "bf16")],
)
def test_a_card_gets_the_precision_that_it_multiplies_in_hardware(
    capability: tuple[int, int], precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bardflow.model.machine.device.cuda_is_usable", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setenv("BARDFLOW_DEVICE", "cuda")
    assert choose("auto") == Device("cuda", precision)
    assert choose("f32").precision == "f32"


@pytest.mark.parametrize("gpt", SMALL_NETWORKS, ids=lambda gpt: gpt.architecture)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_f16_trains_as_f32_does(gpt: GPTSpec, optimizer: Any) -> None:
    spec = TrainingSpec(steps=12, batch=8, optimizer=optimizer, warmup_steps=2)
    losses: dict[Any, list[float]] = {}
    for precision in ("f32", "f16"):
        device = Device("cpu", precision)
        training = Training(begin(gpt, VOCABULARY, 1), spec, device, Execution(micro_batch=3, recompute=True))
        losses[precision] = [float(step.loss) for step in training.steps(some_text(), 12)]
    np.testing.assert_allclose(losses["f16"], losses["f32"], rtol=5e-3)


def test_gradients_that_f16_would_round_to_zero_are_enlarged() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_BTC, weight_VC = torch.randn(2, 8, 16, generator=generator), torch.randn(23, 16, generator=generator) * 0.1
    targets_BT = torch.randint(0, 23, (2, 8), generator=generator)

    def gradients(dtype: torch.dtype, enlarged: float) -> tuple[Tensor, Tensor]:
        head_VC = weight_VC.clone().requires_grad_()
        _, dhidden_BTC = head_loss(
            hidden_BTC.to(dtype), head_VC, targets_BT, charged=10**7, tokens=16, enlarged=enlarged
        )
        assert head_VC.grad is not None
        return dhidden_BTC.float() / enlarged, head_VC.grad / enlarged

    for exact, lost, kept in zip(
        gradients(torch.float32, 1.0), gradients(torch.float16, 1.0), gradients(torch.float16, 2.0**17), strict=True
    ):
        assert (lost - exact).norm() > 0.3 * exact.norm()
        assert (kept - exact).norm() < 0.01 * exact.norm()


def test_a_card_without_kernels_is_not_chosen_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = {"is_available": True, "get_device_capability": (6, 1), "get_arch_list": ["sm_75", "sm_80"]}
    for name, value in (cuda | {"get_device_name": "NVIDIA GeForce GTX 1080"}).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    cuda_is_usable.cache_clear()
    try:
        assert choose("f32").name != "cuda"
        (line,) = caplog.messages
        assert "NVIDIA GeForce GTX 1080 has compute capability 6.1" in line and "sm_75, sm_80 only" in line
        monkeypatch.setenv("BARDFLOW_DEVICE", "cuda")
        with pytest.raises(NoSuchDevice):
            choose("f32")
    finally:
        cuda_is_usable.cache_clear()


class LikeACard(Device):
    """The CPU, used as a graphics card is: everything that differs between steps lies in tensors, bits are hashed."""

    is_card = True


@pytest.mark.parametrize("gpt", [MODERN, CLASSIC])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_step_as_on_a_graphics_card_is_a_step_on_a_cpu(gpt: GPTSpec, optimizer: Any, precision: Any) -> None:
    first = begin(gpt, VOCABULARY, 1)
    spec = TrainingSpec(steps=6, batch=40, optimizer=optimizer, logit_scale=1.2, input_noise=0.1)
    losses = [
        [float(s.loss) for s in Training(first, spec, device, WHOLE).steps(some_text(), 6)]
        for device in (Device("cpu", precision), LikeACard("cpu", precision))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("gpt", [MODERN, CLASSIC])
def test_dropout_on_a_graphics_card_does_not_depend_on_the_micro_batch(gpt: GPTSpec) -> None:
    first, spec = begin(gpt.model_copy(update={"dropout": 0.3}), VOCABULARY, 1), TrainingSpec(steps=6, batch=8)
    ways = (WHOLE, Execution(micro_batch=3, loss_tokens=13, recompute=True))
    losses = [
        [float(s.loss) for s in Training(first, spec, LikeACard("cpu", "f32"), way).steps(some_text(), 6)]
        for way in ways
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_legs_as_on_a_graphics_card_are_one(optimizer: Any) -> None:
    spec, device = TrainingSpec(steps=6, batch=8, optimizer=optimizer), LikeACard("cpu", "f32")
    first = begin(MODERN.model_copy(update={"dropout": 0.2}), VOCABULARY, 1)
    for resting in ("f32", "bf16"):
        how = Execution(micro_batch=8, optimizer_state=resting)
        undisturbed = run(first, spec, 6, device, how)
        resumed = through_files(run(through_files(run(first, spec, 2, device, how)), spec, 6, device, how))
        for name, tensor in undisturbed.weights.items():
            assert torch.equal(tensor, resumed.weights[name]), name


def test_hashed_bits_are_a_function_of_seed_step_and_place_alone() -> None:
    def bits(seed: int, step: int, place: str) -> Tensor:
        return Bits(seed, torch.tensor(step), place).next(64, 1001)

    these = bits(1, 2, "here")
    assert torch.equal(these, bits(1, 2, "here"))
    together = Bits(1, torch.tensor(2), "here")
    assert torch.equal(these, torch.cat([together.next(rows, 1001) for rows in (1, 40, 23)]))
    for others in (bits(0, 2, "here"), bits(1, 3, "here"), bits(1, 2, "there"), these.roll(1, 0), these.roll(1, 1)):
        # Of two independent numbers each bit is the same in half of the cases; 64,064 x 16 cases, 5 deviations.
        alike = sum(int((~(these ^ others) >> bit & 1).sum()) for bit in range(16)) / (16 * these.numel())
        assert abs(alike - 0.5) < 5 * 0.5 / (16 * these.numel()) ** 0.5


def test_hashed_bits_are_evenly_distributed() -> None:
    numbers = Bits(3, torch.tensor(4), "here").next(100, 10_001).numpy().astype(np.int64) + 2**15
    expected = numbers.size / 256
    for byte in (numbers >> 8, numbers & 255):
        squares = float(((np.bincount(byte.ravel(), minlength=256) - expected) ** 2 / expected).sum())
        assert 150 < squares < 380  # chi squared of 255 degrees: 255 and 5 deviations of 22.6


def test_bits_one_by_one_are_the_same_bits() -> None:
    state = torch.tensor(-(2**62) - 12345)
    assert torch.equal(drawn_one_by_one(state, 7, 13), drawn(state, 7, 13).to(torch.int64))


@needs_cuda
def test_a_graphics_card_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BARDFLOW_DEVICE", raising=False)
    assert choose("auto").name == "cuda"
    assert choose("f32") == Device("cuda", "f32")


@needs_cuda
@pytest.mark.parametrize("gpt", [MODERN, CLASSIC])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_on_a_graphics_card_is_a_step_on_a_cpu(gpt: GPTSpec, optimizer: Any) -> None:
    first, spec = begin(gpt, VOCABULARY, 1), TrainingSpec(steps=5, batch=8, optimizer=optimizer)
    losses = {
        device: [float(s.loss) for s in Training(first, spec, device, WHOLE).steps(some_text(), 5)]
        for device in (CPU, Device("cuda", "f32"), Device("cuda", "bf16"))
    }
    assert losses[Device("cuda", "f32")] == pytest.approx(losses[CPU], rel=1e-2)
    assert losses[Device("cuda", "bf16")] == pytest.approx(losses[CPU], rel=5e-2)


@needs_cuda
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_legs_on_a_graphics_card_nearly_equal_one(optimizer: Any, precision: Any) -> None:
    spec = TrainingSpec(steps=8, batch=8, optimizer=optimizer)
    first, device = begin(MODERN.model_copy(update={"dropout": 0.2}), VOCABULARY, 1), Device("cuda", precision)
    undisturbed = run(first, spec, 8, device)
    resumed = through_files(run(through_files(run(first, spec, 3, device)), spec, 8, device))
    assert undisturbed.optimizer.keys() == resumed.optimizer.keys()
    # Sums on a graphics card are not taken in a fixed order.
    for name, tensor in undisturbed.weights.items():
        torch.testing.assert_close(tensor, resumed.weights[name], rtol=1e-2, atol=1e-3)


@needs_cuda
def test_a_leg_from_a_graphics_card_goes_on_on_a_cpu() -> None:
    spec = TrainingSpec(steps=6, batch=8)
    leg = through_files(run(begin(MODERN, VOCABULARY, 1), spec, 3, Device("cuda", "f32")))
    assert run(leg, spec, 6).step == 6
    back = through_files(run(begin(MODERN, VOCABULARY, 1), spec, 3))
    assert run(back, spec, 6, Device("cuda", "bf16")).step == 6
