"""Laws of the architectures and of the folders they are exported to."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from bardflow.model.networks.convolution import ShortConvolution
from bardflow.model.networks.cpu_kernels import RotaryEmbedding
from bardflow.model.networks.dropout import Dropout
from bardflow.model.networks.gpt import build, count_parameters, working_copy
from bardflow.model.networks.modern import rotary_tables
from bardflow.model.networks.network import GPT
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.training.checkpoints import NotAModel, load_model, save_model
from tests.conftest import ARCHITECTURES, RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")

ACTIVATIONS = ("gelu", "gelu_new", "relu", "relu2", "silu")
EXPORTS = [
    *(GPTSpec(architecture="modern", layers=2, heads=2, width=16, context=12, activation=a) for a in ACTIVATIONS),
    *(GPTSpec(architecture="classic", layers=2, heads=2, width=16, context=12, activation=a) for a in ACTIVATIONS),
    GPTSpec(architecture="classic", layers=2, heads=4, width=16, context=12, biases=True),
    GPTSpec(architecture="classic", layers=1, heads=2, width=16, context=12, tied=True, dropout=0.1),
    GPTSpec(architecture="classic", layers=1, heads=1, width=16, context=12, biases=True, tied=True),
    GPTSpec(architecture="modern", layers=1, heads=4, width=24, context=12, dropout=0.2),
    GPTSpec(architecture="llama", layers=2, heads=4, width=16, context=12, activation="silu", mlp_width=24),
    GPTSpec(architecture="llama", layers=1, heads=4, width=16, context=12, key_value_heads=2, tied=True, dropout=0.1),
    GPTSpec(architecture="llama", layers=1, heads=2, width=16, context=12, biases=True, rotary_base=1e6),
    GPTSpec(architecture="lfm2", layers=3, heads=2, width=16, context=12, activation="silu", mlp_width=24),
    GPTSpec(architecture="lfm2", layers=2, heads=3, width=24, context=12, activation="silu", dropout=0.1),
    GPTSpec(
        architecture="llama",
        layers=2,
        heads=3,
        width=16,
        context=12,
        key_value_heads=1,
        head_width=6,
        query_key_norm=True,
        norm_epsilon=1e-5,
    ),
]


@st.composite
def gpt_specs(draw: st.DrawFn) -> GPTSpec:
    """Any small shape of any architecture."""
    architecture = draw(st.sampled_from(ARCHITECTURES))
    heads = draw(st.integers(1, 4))
    free, llama = architecture in ("classic", "llama"), architecture == "llama"
    biases = free and draw(st.booleans())
    return GPTSpec(
        architecture=architecture,
        layers=draw(st.integers(2 if architecture == "lfm2" else 1, 3)),
        heads=heads,
        width=heads * draw(st.sampled_from([8, 10])),
        context=draw(st.integers(2, 20)),
        activation="silu" if architecture == "lfm2" else draw(st.sampled_from(ACTIVATIONS)),
        biases=biases,
        tied=free and draw(st.booleans()),
        key_value_heads=draw(st.sampled_from([None, *(n for n in range(1, heads + 1) if heads % n == 0)]))
        if llama
        else None,
        head_width=draw(st.sampled_from([None, 2, 12])) if llama else None,
        mlp_width=draw(st.sampled_from([None, 7])) if architecture in ("llama", "lfm2") else None,
        query_key_norm=llama and not biases and draw(st.booleans()),
    )


def lively(spec: GPTSpec, vocabulary_size: int, seed: int = 0, strength: float = 0.2) -> GPT:
    """A model none of whose parameters is at its first value: fresh heads and biases are zero and would hide faults."""
    generator = torch.Generator().manual_seed(seed)
    gpt = build(spec, vocabulary_size).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * strength)
    return gpt


@settings(max_examples=40)
@given(gpt_specs(), st.data(), st.sampled_from(["f32", "bf16"]))
def test_a_future_token_never_changes_a_past_logit(spec: GPTSpec, data: st.DataObject, precision: str) -> None:
    gpt = lively(spec, 11)
    now = data.draw(st.integers(0, spec.context - 2))
    ids_BT = torch.randint(0, 11, (2, spec.context), generator=torch.Generator().manual_seed(now))
    other_BT = ids_BT.clone()
    other_BT[:, now + 1 :] = (other_BT[:, now + 1 :] + 1) % 11
    with torch.no_grad():
        working = working_copy(gpt, torch.bfloat16 if precision == "bf16" else torch.float32)
        before_BTV, after_BTV = (working.hidden(ids).float() @ gpt.head.weight.T for ids in (ids_BT, other_BT))
    torch.testing.assert_close(before_BTV[:, : now + 1], after_BTV[:, : now + 1], rtol=0, atol=0)
    assert not torch.equal(before_BTV[:, now + 1 :], after_BTV[:, now + 1 :])


@settings(max_examples=20)
@given(gpt_specs(), st.data())
def test_every_past_token_can_change_the_last_logit(spec: GPTSpec, data: st.DataObject) -> None:
    gpt = lively(spec, 11)
    past = data.draw(st.integers(0, spec.context - 1))
    ids_BT = torch.randint(0, 11, (1, spec.context), generator=torch.Generator().manual_seed(past))
    other_BT = ids_BT.clone()
    other_BT[:, past] = (other_BT[:, past] + 1) % 11
    with torch.no_grad():
        assert not torch.equal(gpt(ids_BT)[:, -1], gpt(other_BT)[:, -1])


def test_bf16_attention_on_a_cpu_is_f32_attention_rounded() -> None:
    for spec in EXPORTS:
        gpt = lively(spec, 23)
        ids_BT = torch.randint(0, 23, (3, 12), generator=torch.Generator().manual_seed(1))
        exact_BTV = gpt(ids_BT)
        rounded_BTV = working_copy(gpt, torch.bfloat16).hidden(ids_BT).float() @ gpt.head.weight.T
        # bf16 keeps 8 bits: 1/256 of the logits' size, some of it added up over the layers. Over 80 seeds the root mean
        # square was at most 0.029 of the logits'.
        assert (exact_BTV - rounded_BTV.float()).square().mean() < 0.05**2 * exact_BTV.square().mean()


@pytest.mark.parametrize("T", [5, 128, 129, 300])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dropped", [0.0, 0.3])
def test_bf16_on_a_cpu_gives_the_outputs_and_gradients_of_f32_rounded(
    architecture: str, T: int, dropped: float
) -> None:
    # Attention's queries are taken in pieces of 128, so T is on both sides of one and of two.
    spec = GPTSpec.model_validate(
        {"architecture": architecture, "layers": 2, "heads": 3, "width": 48, "context": 300}
        | {"activation": "silu" if architecture == "lfm2" else "relu2"}
    )
    gpt = build(spec, 23)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    ids_BT = torch.randint(0, 23, (2, T), generator=generator)
    asked_BTC = torch.randn(2, T, 48, generator=generator)
    found: dict[torch.dtype, tuple[torch.Tensor, ...]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        working = working_copy(gpt, dtype)
        hidden_BTC = working.hidden(ids_BT, Dropout(dropped, seed=1, step=2) if dropped else None)
        inputs = [p for name, p in working.named_parameters() if name != "head.weight"]
        found[dtype] = (hidden_BTC, *torch.autograd.grad(hidden_BTC, inputs, asked_BTC.to(dtype)))
    for exact, rounded in zip(found[torch.float32], found[torch.bfloat16], strict=True):
        assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_short_convolution_is_torchs_with_the_same_gradients(T: int, kernel: int, dtype: torch.dtype) -> None:
    convolution = ShortConvolution(6, kernel)
    generator = torch.Generator().manual_seed(T)
    with torch.no_grad():
        convolution.weight.copy_(torch.randn(6, 1, kernel, generator=generator))
    x_BTC, asked_BTC = torch.randn(2, 3, T, 6, generator=generator)
    inputs = x_BTC.clone().requires_grad_(), convolution.weight
    padded_BCT = torch.nn.functional.pad(inputs[0].transpose(1, 2), (kernel - 1, 0))
    theirs_BTC = torch.nn.functional.conv1d(padded_BCT, convolution.weight, groups=6).transpose(1, 2)
    ours_BTC = convolution(inputs[0].to(dtype))
    allowed = 1e-5 if dtype == torch.float32 else 0.03
    pairs = [(theirs_BTC, ours_BTC)]
    theirs, ours = (torch.autograd.grad(y_BTC, inputs, asked_BTC.to(y_BTC.dtype)) for y_BTC in pairs[0])
    for expected, found in [*pairs, *zip(theirs, ours, strict=True)]:
        torch.testing.assert_close(found.float(), expected, rtol=allowed, atol=allowed * 3)


def test_an_lfm2_with_gates_is_refused(tmp_path: Path) -> None:
    spec = next(spec for spec in EXPORTS if spec.architecture == "lfm2")
    save_model(lively(spec, 5), tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.conv.in_proj.bias"][3] = 0.5
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(NotAModel, match=r"model\.layers\.0\.conv\.in_proj\.bias has values that"):
        load_model(tmp_path)


def test_rotary_attention_sees_only_the_distance_between_positions() -> None:
    cosine_TD, sine_TD = rotary_tables(32, 8)
    query_D, key_D = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double()
    rotary = RotaryEmbedding(cosine_TD.double(), sine_TD.double())
    queries_TD, keys_TD = rotary.rotate(query_D.expand(32, 8)), rotary.rotate(key_D.expand(32, 8))
    scores_TT = queries_TD @ keys_TD.T
    for distance in range(-31, 32):
        diagonal = scores_TT.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocabulary_size", [2, 65, 300])
def test_the_first_guess_of_a_modern_gpt_is_uniform(vocabulary_size: int) -> None:
    gpt = build(GPTSpec(layers=2, heads=2, width=16, context=8), vocabulary_size)
    ids_BT = torch.randint(0, vocabulary_size, (4, 8))
    nats = torch.nn.functional.cross_entropy(gpt(ids_BT).flatten(0, 1), ids_BT.flatten())
    assert math.isclose(float(nats.detach()), math.log(vocabulary_size), rel_tol=1e-6)


def test_the_first_guess_of_a_classic_gpt_is_nearly_uniform() -> None:
    gpt = build(GPTSpec(architecture="classic", activation="gelu"), 65)
    ids_BT = torch.randint(0, 65, (8, 64), generator=torch.Generator().manual_seed(0))
    nats = torch.nn.functional.cross_entropy(gpt(ids_BT).flatten(0, 1), ids_BT.roll(-1, 1).flatten())
    assert abs(float(nats.detach()) - math.log(65)) < 0.1


def test_a_tied_table_counts_once() -> None:
    shape = {"architecture": "classic", "layers": 1, "heads": 1, "width": 8, "context": 4}
    tied, apart = (GPTSpec.model_validate({**shape, "tied": tied}) for tied in (True, False))
    # A block: 3 + 1 + 4 + 4 square matrices and 2 LayerNorms; then the last LayerNorm.
    blocks = 12 * 8 * 8 + 2 * 8 + 8
    assert count_parameters(build(tied, 10)) == (10 * 8 + 4 * 8 + blocks, 10 * 8 + 4 * 8)
    assert count_parameters(build(apart, 10)) == (2 * 10 * 8 + 4 * 8 + blocks, 2 * 10 * 8 + 4 * 8)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"width": 30, "heads": 4}, "width 30 is not divisible by heads 4"),
        ({"width": 9, "heads": 3}, "even width/heads, but 9/3 is odd"),
        ({"biases": True}, "no biases"),
        ({"tied": True}, "its head is its own"),
        ({"layer": 3}, "Extra inputs"),
        ({"mlp_width": 32}, "mlp_width belongs to architecture llama and lfm2, but the architecture is modern"),
        ({"architecture": "llama", "heads": 4, "key_value_heads": 3}, "4 is not divisible by key_value_heads 3"),
        ({"architecture": "llama", "biases": True, "query_key_norm": True}, "not both"),
        ({"architecture": "llama", "head_width": 3}, "3 is odd"),
        ({"architecture": "lfm2", "layers": 1}, "needs 2 layers or more"),
        ({"architecture": "lfm2"}, "set biases and tied to false and activation to silu"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        GPTSpec.model_validate(fields)


@pytest.mark.parametrize(
    "spec",
    [
        *(pytest.param(spec, id="-".join(str(v) for v in spec.model_dump().values())) for spec in EXPORTS),
        *(pytest.param(recipe.gpt, id=name) for name, recipe in RECIPES.items()),
    ],
)
def test_transformers_opens_an_export_and_computes_the_same_logits(
    spec: GPTSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM

    # In wide and deep models large changes would make logits of hundreds, whose f32 steps exceed any bound.
    gpt = lively(spec, 37, strength=0.2 if spec.width <= 32 else 0.02)
    save_model(gpt, tmp_path)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, trust_remote_code=False)
    assert not any(report.values()), report
    if spec.architecture != "lfm2":  # whose gates and projections of convolutions are constants in the export
        assert sum(p.numel() for p in theirs.parameters() if p.dim() == 2) == sum(
            p.numel() for p in gpt.parameters() if p.dim() == 2
        )
    ids_BT = torch.randint(0, 37, (3, spec.context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours_BTV, theirs_BTV = gpt(ids_BT), theirs.eval()(ids_BT).logits
    assert ours_BTV.std() > 0.1
    assert (ours_BTV - theirs_BTV).abs().max() < 1e-4
    if spec.architecture == "lfm2" and spec.context < 64:  # its cache in transformers has the convolutions' last values
        told_BT = theirs.generate(ids_BT[:, :3], max_new_tokens=spec.context - 3, do_sample=False, pad_token_id=0)
        with torch.no_grad():
            again_BT = torch.cat((ids_BT[:, :3], gpt(told_BT)[:, 2:-1].argmax(-1)), dim=1)
        assert torch.equal(told_BT, again_BT)


@pytest.mark.parametrize("spec", EXPORTS, ids=lambda s: "-".join(str(v) for v in s.model_dump().values()))
def test_a_model_that_was_saved_and_loaded_is_the_same_to_the_bit(spec: GPTSpec, tmp_path: Path) -> None:
    gpt = lively(spec, 37)
    save_model(gpt, tmp_path)
    loaded = load_model(tmp_path).eval()
    for name, parameter in gpt.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
    assert (loaded.context, loaded.heads, loaded.dropout) == (gpt.context, gpt.heads, gpt.dropout)
    ids_BT = torch.randint(0, 37, (3, spec.context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(gpt(ids_BT), loaded(ids_BT))
    again = tmp_path / "again"
    again.mkdir()
    save_model(loaded, again)
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_loading_a_model_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    save_model(lively(EXPORTS[0], 5), tmp_path)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_model(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(NotAModel, match=r"it has no config\.json"):
        load_model(tmp_path / "nowhere")
    save_model(lively(EXPORTS[0], 5), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotAModel, match=r"it has no model\.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', but gpt2, nanochat, llama, qwen2, qwen3 or lfm2 is expected"),
        ({"hidden_act": "mish"}, "mish"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
    ],
)
def test_a_model_of_another_kind_is_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    save_model(lively(EXPORTS[0], 5), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(NotAModel, match=said):
        load_model(tmp_path)


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    save_model(lively(EXPORTS[0], 5), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickled")
    with pytest.raises(NotAModel, match="holds no model"):
        load_model(tmp_path)
