"""The cost model is exact: every figure equals what the built model measures."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe_core.model import Decoder
from moe_core.model.families import slots_of
from moe_core.model.init import random_decoder
from moe_core.spec import LayoutSpec, ModelSpec, cost_of
from moe_core.spec.cost import ParamCounts
from tests.moe_core.tiny import tiny_llama, tiny_mixtral, tiny_turnout

SPECS = [tiny_llama(), tiny_llama(tie_word_embeddings=False), tiny_mixtral(), tiny_turnout()]

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
def test_bytes_equal_the_tensors(spec: ModelSpec) -> None:
    num_values = sum(p.numel() for p in Decoder(spec).parameters())
    assert cost_of(spec).bytes["fp32"] == 4 * num_values
    assert cost_of(spec).bytes["bf16"] == 2 * num_values


def test_quantised_bytes_count_scales_by_hand() -> None:
    # One linear row of 48 values: 48 int8 + one fp16 scale; of 64: 32 bytes of int4 + one scale.
    spec = tiny_llama(num_hidden_layers=1)
    kept = 2 * (97 * 48 + 3 * 48)
    qkv_rows, out_row = (6 + 2 + 2) * 16, 96
    int8 = kept + qkv_rows * (48 + 2) + 48 * (out_row + 2) + 2 * 64 * (48 + 2) + 48 * (64 + 2)
    int4 = kept + qkv_rows * (24 + 2) + 48 * (out_row // 2 + 2) + 2 * 64 * (24 + 2) + 48 * (32 + 2)
    assert cost_of(spec).bytes["int8"] == int8
    assert cost_of(spec).bytes["int4"] == int4


def test_the_cache_holds_keys_and_values_of_every_layer() -> None:
    assert cost_of(tiny_llama()).kv_bytes_per_token == 2 * 3 * 2 * 16 * 2
