"""The cost model is exact: every figure equals what the built model measures."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe_core.checkpoint.inspect import inspect_dir
from moe_core.checkpoint.store import save
from moe_core.model import Decoder
from moe_core.model.families import slots_of
from moe_core.model.init import random_decoder
from moe_core.operations.quantise import quantise
from moe_core.spec import LayoutSpec, ModelSpec, cost_of
from moe_core.spec.cost import ParamCounts
from moe_core.spec.operations import QuantiseSpec
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.tiny import FAMILIES, tiny_family, tiny_llama, tiny_mixtral, tiny_turnout

SPECS = [
    tiny_llama(),
    tiny_llama(tie_word_embeddings=False),
    tiny_mixtral(),
    tiny_turnout(),
    *map(tiny_family, FAMILIES),
]

SMOLLM2 = ModelSpec(
    family="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=8192, rope_theta=100_000.0,
    tie_word_embeddings=True,
)  # fmt: skip


def measured_parts(model: Decoder) -> Counter[str]:
    """Parameters by part, counted on the tensors themselves."""
    parameters = dict(model.named_parameters())
    counts: Counter[str] = Counter()
    for slot in slots_of(model.spec):
        counts[slot.part] += slot.of(parameters[slot.parameter]).numel()
    return counts


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.family}-{spec.tie_word_embeddings}")
def test_every_part_equals_the_built_model(spec: ModelSpec) -> None:
    model = Decoder(spec)
    measured = measured_parts(model)
    expected = asdict(cost_of(spec).params)
    assert {part: measured.get(part, 0) for part in expected} == expected
    assert cost_of(spec).total == sum(p.numel() for p in model.parameters())


def test_smollm2_has_its_published_size() -> None:
    cost = cost_of(SMOLLM2)
    assert cost.params == ParamCounts(
        embedding=28_311_552, attention=26_542_080, router=0, experts=0, shared_experts=0,
        dense_mlp=79_626_240, norms=35_136, head=0,
    )  # fmt: skip
    assert cost.total == cost.active_per_token == 134_515_008


def test_smollm2_with_eight_experts_in_every_layer() -> None:
    cost = cost_of(LayoutSpec(moe_layers=tuple(range(30)), num_experts=8, top_k=2).applied_to(SMOLLM2))
    assert cost.params.experts == 8 * 79_626_240
    assert cost.total == 134_515_008 + 7 * 79_626_240 + 30 * 8 * 576
    assert cost.active_per_token == 134_515_008 + 79_626_240 + 30 * 8 * 576


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.family}-{spec.tie_word_embeddings}")
def test_flops_equal_what_torch_counts(spec: ModelSpec) -> None:
    # One token: torch counts every product of the forward pass. It sees into attention only when that is plain maths.
    model = random_decoder(spec, seed=0)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.tensor([[3]]))
    assert counter.get_total_flops() == cost_of(spec).flops_per_token(context_tokens=1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.family}-{spec.tie_word_embeddings}")
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_bytes_equal_what_a_saved_model_holds(
    spec: ModelSpec, precision: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    saved = save(random_decoder(spec, seed=0, dtype=dtype), tmp_path / "model")
    assert cost_of(spec).bytes[precision] == inspect_dir(saved)["bytes_total"]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("spec", [tiny_mixtral(), tiny_turnout()], ids=lambda spec: spec.family)
def test_packed_bytes_equal_what_quantising_makes(spec: ModelSpec, bits: Literal[4, 8]) -> None:
    model = random_decoder(spec, seed=0, dtype=torch.bfloat16)
    packed, report = quantise(model, QuantiseSpec(quantisation=ExpertQuantSpec(bits=bits)))
    assert cost_of(spec).bytes[f"int{bits}"] == report["bytes_total"]
    assert cost_of(packed.spec).bytes["bf16"] == report["bytes_total"]


@pytest.mark.parametrize("group_size", [32, 64])
def test_an_asymmetric_packing_counts_its_zero_points(group_size: Literal[32, 64]) -> None:
    quantisation = ExpertQuantSpec(bits=4, group_size=group_size, symmetric=False)
    model = random_decoder(tiny_mixtral(), seed=0, dtype=torch.bfloat16)
    packed, report = quantise(model, QuantiseSpec(quantisation=quantisation))
    assert cost_of(packed.spec).bytes["bf16"] == report["bytes_total"]


def test_a_dense_model_has_nothing_to_pack() -> None:
    cost = cost_of(tiny_llama())
    assert cost.bytes["int8"] == cost.bytes["int4"] == cost.bytes["bf16"]


def test_a_window_bounds_what_attention_costs() -> None:
    # Layers 0 and 2 of three see 5 tokens; a position costs 2 · 4 heads · (16 + 16).
    cost = cost_of(tiny_family("gpt_oss"))
    assert cost.flops_per_token(9) - cost.flops_per_token(5) == 4 * 256
    assert cost.flops_per_token(5) - cost.flops_per_token(4) == 3 * 256


def test_a_latent_is_all_that_is_kept() -> None:
    # A latent of 16 and a rotary key of 8, three layers, two bytes each.
    assert cost_of(tiny_family("deepseek_v3")).kv_bytes_per_token == 3 * (16 + 8) * 2


def test_the_cache_holds_keys_and_values_of_every_layer() -> None:
    assert cost_of(tiny_llama()).kv_bytes_per_token == 2 * 3 * 2 * 16 * 2
