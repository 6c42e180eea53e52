"""Packed experts: exact codes, counted bytes, a bounded error, and a way through the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import moe_core
from moe_core.checkpoint.inspect import inspect_dir
from moe_core.errors import FormatError, SpecError
from moe_core.experts import PackedExperts
from moe_core.kernels.packing import Packed, dequantise, quantise_torch
from moe_core.kernels.packing import quantise as packed_of
from moe_core.model import Decoder
from moe_core.operations.passes import compare
from moe_core.operations.quantise import quantise
from moe_core.spec.operations import DequantiseSpec, QuantiseSpec
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.operations.models import IDS, distance, mixture, some_prompts

Way = Callable[[Tensor, ExpertQuantSpec], Packed]
KINDS = [
    ExpertQuantSpec(bits=bits, group_size=group, symmetric=symmetric)
    for bits in (8, 4)
    for group in (64, 128)
    for symmetric in (True, False)
] + [ExpertQuantSpec(bits=4, group_size=32, super_group_size=256)]


def named(spec: ExpertQuantSpec) -> str:
    of = f"-of-{spec.super_group_size}" if spec.super_group_size else ""
    return f"{spec.bits}-bit-{spec.group_size}{of}-{'symmetric' if spec.symmetric else 'asymmetric'}"


def wide(seed: int = 5, **moe: Any) -> Decoder:
    return mixture(seed, moe_intermediate_size=256, **moe)


def packed(model: Decoder, **fields: Any) -> tuple[Decoder, dict[str, Any]]:
    return quantise(model, QuantiseSpec(quantisation=ExpertQuantSpec(**fields)))


def by_hand(row: list[float], stored: Packed, spec: ExpertQuantSpec) -> list[float]:
    """A row rounded to the nearest codes of its stored scales and zero points, one number at a time."""
    out = []
    for place, value in enumerate(row):
        group = place // spec.group_size
        scale = float(stored.scales[group])
        zero = 2 ** (spec.bits - 1) if stored.zeros is None else int(stored.zeros[group])
        code = min(2**spec.bits - 1, max(0, round(value / scale) + zero)) if scale else zero
        out.append((code - zero) * scale)
    return out


def row_of(stored: Packed, row: int) -> Packed:
    zeros = None if stored.zeros is None else stored.zeros[row]
    return Packed(stored.codes[row], stored.scales[row], zeros)


@pytest.mark.parametrize("way", [packed_of, quantise_torch], ids=["kernel", "torch"])
@pytest.mark.parametrize("spec", KINDS, ids=named)
def test_codes_are_those_of_a_loop_over_numbers(spec: ExpertQuantSpec, way: Way) -> None:
    # 150 is no multiple of the group; 151 is odd, so the last byte is half full.
    for width in (150, 151):
        weight = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
        stored = way(weight, spec)
        rows = [row_of(stored, row) for row in range(3)]
        theirs = torch.tensor([by_hand(w, r, spec) for w, r in zip(weight.tolist(), rows, strict=True)])
        ours = dequantise(stored, width, spec, torch.float32)
        # A value half-way between two codes may fall to either in float32 and float64.
        assert float(((ours - theirs).abs() > 1e-5).float().mean()) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", KINDS, ids=named)
def test_the_kernel_rounds_as_torch_does(spec: ExpertQuantSpec, dtype: torch.dtype) -> None:
    for shape in ((1, 1), (3, 31), (37, 151), (2, 5, 200)):
        generator = torch.Generator().manual_seed(shape[-1])
        # Between NaN: whatever reads past the end of its rows finds no finite error.
        around = torch.full((math.prod(shape) + 128,), torch.nan, dtype=dtype)
        weight = around[64:-64].copy_(torch.randn(math.prod(shape), generator=generator) * 0.05).view(shape)
        weight[0] = 0.0
        ours, theirs = packed_of(weight, spec), quantise_torch(weight, spec)
        lost = [error_of(weight, packed, spec) for packed in (ours, theirs)]
        assert lost[0] == pytest.approx(lost[1], rel=1e-3, abs=1e-9)
        # Two scales may leave the same error up to the order of a sum.
        assert float((ours.codes == theirs.codes).float().mean()) > 0.98
        assert not ours.scales[0].any()


def error_of(weight: Tensor, packed: Packed, spec: ExpertQuantSpec) -> float:
    wide = dequantise(packed, weight.shape[-1], spec, torch.float32)
    return float((wide - weight.float()).norm())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_four_bits_lose_less_than_by_the_range_of_a_group(group: int, symmetric: bool) -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(3))
    spec = ExpertQuantSpec.parse({"bits": 4, "group_size": group, "symmetric": symmetric})
    grouped = weight.unflatten(-1, (-1, group))
    scale = grouped.abs().amax(-1, keepdim=True) / 7
    by_range = float(((grouped / scale).round() * scale - grouped).norm())
    for way in (packed_of, quantise_torch):
        # By the range of the group, symmetric as it was: 0.84, 0.84 and 0.82 of it, with zero points 0.80 to 0.81.
        assert error_of(weight, way(weight, spec), spec) < 0.85 * by_range


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 140), st.floats(1e-3, 1e3))
def test_no_weight_moves_by_more_than_its_scale_allows(
    spec: ExpertQuantSpec, width: int, size: float
) -> None:
    weight = size * torch.randn(2, width, generator=torch.Generator().manual_seed(width))
    stored = packed_of(weight, spec)
    moved = (dequantise(stored, width, spec, torch.float32) - weight).abs()
    step = stored.scales.float().repeat_interleave(spec.group_size, -1)[:, :width]
    # The zero point is rounded too: half a step more at the ends of an asymmetric range; float16 rounds the scale. In 4 bits
    # the largest weights may be cut off, where it serves the others.
    cut = 0.0 if spec.bits == 8 else 2.5 if spec.symmetric else 4.5
    most = (0.5 if spec.symmetric else 1.0) + cut + 2.0**spec.bits * 2**-11
    assert bool((moved <= step.abs() * most + 1e-6).all())


@pytest.mark.parametrize("spec", KINDS, ids=named)
def test_zeros_stay_zero_and_nothing_is_divided_by_them(spec: ExpertQuantSpec) -> None:
    assert torch.equal(
        dequantise(packed_of(torch.zeros(2, 70), spec), 70, spec, torch.float32), torch.zeros(2, 70)
    )


@pytest.mark.parametrize("spec", KINDS, ids=named)
def test_a_packed_model_computes_what_its_widened_weights_compute(spec: ExpertQuantSpec) -> None:
    model = wide()
    small, report = quantise(model, QuantiseSpec(quantisation=spec))
    widened = mixture(5, moe_intermediate_size=256)
    with torch.no_grad():
        for theirs, ours in zip(widened.moe_layers(), small.moe_layers(), strict=True):
            assert isinstance(ours.experts, PackedExperts)
            everyone = torch.arange(4)
            theirs.experts.gate_up_E2FD.copy_(ours.experts.widened("gate_up", everyone, torch.float32))
            theirs.experts.down_EDF.copy_(ours.experts.widened("down", everyone, torch.float32))
        assert torch.equal(small(IDS), widened(IDS))
    assert distance(model, small) < (0.06 if spec.bits == 8 else 0.6)
    json.dumps(report)


@pytest.mark.parametrize("spec", KINDS, ids=named)
def test_the_error_is_that_of_rounding_normal_weights(spec: ExpertQuantSpec) -> None:
    _, report = quantise(wide(), QuantiseSpec(quantisation=spec))
    for layer in report["error"]:
        low, high = (0.004, 0.012) if spec.bits == 8 else (0.07, 0.13)
        assert low < layer["gate_up"] < high
        assert low < layer["down"] < high


@pytest.mark.parametrize(
    ("fields", "bits"),
    [
        ({"bits": 4, "group_size": 128, "symmetric": True}, 4 + 16 / 128),
        ({"bits": 4, "group_size": 64, "symmetric": True}, 4 + 16 / 64),
        ({"bits": 4, "group_size": 64, "symmetric": False}, 4 + 24 / 64),
        ({"bits": 8, "group_size": 128, "symmetric": True}, 8 + 16 / 128),
    ],
)
def test_bytes_are_counted_as_stored(fields: dict[str, Any], bits: float) -> None:
    from moe_core.model.init import random_decoder
    from moe_core.spec import ModelSpec
    from tests.moe_core.tiny import tiny_llama

    moe = {"moe_layers": (0, 2), "num_experts": 4, "top_k": 2, "moe_intermediate_size": 256}
    dense = tiny_llama(hidden_size=128)
    model = random_decoder(ModelSpec.parse({**dense.model_dump(), "family": "turnout_moe", "moe": moe}), 1)
    small, report = packed(model, **fields)
    assert report["bits_per_weight"] == pytest.approx(bits)
    assert report["saved"] == pytest.approx(1 - bits / 16)
    if fields["bits"] == 4:
        assert report["saved"] >= 0.70
    held = sum(
        tensor.numel() * tensor.element_size()
        for layer in small.moe_layers()
        for tensor in (*layer.experts.parameters(), *layer.experts.buffers())
    )
    assert report["expert_bytes"] == held
    assert report["not_packed"] == []


def test_an_expert_that_was_left_out_is_named() -> None:
    from moe_core.operations.quantise import bytes_report

    assert bytes_report(wide())["not_packed"] == [
        f"layers.{layer}.mlp.experts.{name}" for layer in (0, 2) for name in ("gate_up_E2FD", "down_EDF")
    ]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_model_survives_the_disk_bit_for_bit(bits: int, symmetric: bool, tmp_path: Path) -> None:
    small, report = packed(
        wide(num_shared_experts=1, shared_intermediate_size=24), bits=bits, symmetric=symmetric
    )
    moe_core.save(small, tmp_path / "m")
    back = moe_core.load(tmp_path / "m")
    assert back.spec == small.spec
    assert back.state_dict().keys() == small.state_dict().keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(back.state_dict().values(), small.state_dict().values(), strict=True)
    )
    with torch.no_grad():
        assert torch.equal(back(IDS), small(IDS))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["expert_quantisation"] == {"bits": bits, "group_size": 128, "symmetric": symmetric}
    told = inspect_dir(tmp_path / "m")
    assert told["params_by_dtype"][f"INT{bits}"] == 2 * 4 * 3 * 48 * 256
    assert told["bytes"]["experts"] == report["expert_bytes"]


EVERYWHERE = QuantiseSpec.parse(
    {
        "kind": "quantise",
        "quantisation": {"bits": 4, "group_size": 64},
        "attention": {"bits": 8, "group_size": 32},
        "head": {"bits": 8, "group_size": 64, "symmetric": False},
    }
)


def test_attention_and_head_are_packed_where_wanted_and_their_errors_told() -> None:
    model, prompts = wide(), some_prompts()
    small, report = quantise(model, EVERYWHERE, prompts)
    assert not small.spec.tie_word_embeddings
    assert torch.equal(small.embed_tokens.weight, model.embed_tokens.weight)
    assert [layer["layer"] for layer in report["attention_error"]] == [0, 1, 2]
    assert all(
        0.003 < layer[name] < 0.012 for layer in report["attention_error"] for name in ("qkv_proj", "o_proj")
    )
    assert 0.002 < report["head_error"] < 0.012
    # One step at the head alone: what it costs is what its weights lost.
    wide_head = small.lm_head.widened(torch.float32)
    exact = model.head_weight_VD.detach()
    assert report["head_error"] == pytest.approx(float((wide_head - exact).norm() / exact.norm()), rel=1e-5)
    experts_only, less = quantise(model, QuantiseSpec(quantisation=EVERYWHERE.quantisation), prompts)
    assert max(report["kl"].values()) < 3 * max(less["kl"].values())
    assert report["bytes_total"] < less["bytes_total"] + 97 * 48 * 4
    assert distance(experts_only, small) < 0.1


def test_a_model_packed_everywhere_survives_the_disk_and_the_way_back(tmp_path: Path) -> None:
    small, report = quantise(wide(), EVERYWHERE)
    moe_core.save(small, tmp_path / "m")
    back = moe_core.load(tmp_path / "m")
    assert back.spec == small.spec
    with torch.no_grad():
        assert torch.equal(back(IDS), small(IDS))
    told = inspect_dir(tmp_path / "m")
    assert told["bytes_total"] == report["bytes_total"]
    spec = small.spec
    rows = (2 * spec.num_attention_heads + 2 * spec.num_key_value_heads) * spec.head_dim
    assert told["params_by_dtype"]["INT8"] == 3 * rows * spec.hidden_size + 97 * spec.hidden_size
    from moe_core.operations.quantise import dequantise as unpacked
    from moe_core.spec import cost_of

    assert cost_of(small.spec).bytes["fp32"] == report["bytes_total"]
    floats, _ = unpacked(small, DequantiseSpec())
    with torch.no_grad():
        assert torch.equal(floats(IDS), small(IDS))
    assert floats.spec.moe.attention_quantisation is None


def test_what_cannot_be_packed_is_refused() -> None:
    from moe_core.model.init import random_decoder
    from tests.moe_core.tiny import tiny_family

    latent = random_decoder(tiny_family("deepseek_v3"), 1)
    with pytest.raises(SpecError, match="latent attention.*cannot be packed"):
        quantise(latent, EVERYWHERE)
    with pytest.raises(SpecError, match="whose experts are packed"):
        wide(head_quantisation={"bits": 8})


def test_codes_of_another_dtype_are_refused(tmp_path: Path) -> None:
    from moe_core.checkpoint.safetensors import SafetensorsFile, write_safetensors

    small, _ = packed(wide(), bits=8)
    moe_core.save(small, tmp_path / "m")
    path = tmp_path / "m" / "experts-0.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {name: file.tensor(name) for name in file.header.tensors}
    name = next(name for name in tensors if name.endswith(".codes"))
    write_safetensors(path, {**tensors, name: tensors[name].view(torch.int8)})
    with pytest.raises(FormatError, match="has dtype I8; it must be U8"):
        moe_core.load(tmp_path / "m")


def test_loss_and_divergence_are_told_per_domain_and_grow_as_bits_go() -> None:
    model, prompts = wide(), some_prompts()
    kl = {}
    for bits in (8, 4):
        small, report = quantise(model, QuantiseSpec(quantisation=ExpertQuantSpec(bits=bits)), prompts)
        assert report["kl"] == compare(model, small, prompts)["kl"]
        assert report["loss_change"].keys() == {"law", "code"}
        kl[bits] = max(report["kl"].values())
    assert 0.0 < kl[8] < 0.01 < kl[4] < 1.0


def test_no_tokens_and_a_lone_expert_are_no_trouble() -> None:
    small, _ = packed(wide(num_experts=1, top_k=1), bits=4)
    layer = next(iter(small.moe_layers()))
    assert layer(torch.zeros(0, 48), None).shape == (0, 48)
    assert layer(torch.randn(3, 48), None).isfinite().all()


def test_a_packed_model_cannot_be_packed_again() -> None:
    small, _ = packed(wide(), bits=8)
    with pytest.raises(SpecError, match="packed in 8 bits"):
        packed(small, bits=4)


def test_other_activations_and_biases_are_packed_too() -> None:
    from moe_core.model.init import random_decoder
    from tests.moe_core.operations.models import mixture_spec
    from tests.moe_core.tiny import STD

    spec = mixture_spec(moe_intermediate_size=256).model_copy(update={"activation": "gelu"})
    model = random_decoder(spec, 5, STD)
    assert distance(model, packed(model, bits=8)[0]) < 0.06
    model = wide(expert_bias=True)
    small, report = packed(model, bits=8)
    assert distance(model, small) < 0.06
    assert report["not_packed"] == []
    with torch.no_grad():
        for layer in small.moe_layers():
            layer.experts.down_bias_ED.zero_()
    assert distance(model, small) > 0.06


def test_an_empty_place_takes_no_expert() -> None:
    small, _ = packed(wide(gate={"kind": "top_p", "p": 0.3}, top_k=3), bits=8)
    with torch.no_grad():
        assert small(IDS).isfinite().all()
