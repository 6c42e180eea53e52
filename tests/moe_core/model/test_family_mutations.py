"""Each peculiarity of a family is seen by the comparison with transformers: left out, the logits are far off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moe_core
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.model import Decoder
from moe_core.model.layers import RmsNorm, ZeroCentredRmsNorm

pytest.importorskip("transformers")

from tests.moe_core.model.hf_families import CASES, reference
from tests.moe_core.model.test_family_parity import IDS, TOLERANCE, relative

YARN = "deepseek_v3, yarn, no low rank of queries"
BIASES = "qwen3_moe, sparse steps, biases"


def no_sinks(model: Decoder) -> None:
    for block in model.layers:
        block.attention.sinks_H = None


def no_window(model: Decoder) -> None:
    for block in model.layers:
        block.attention.window = None


def no_yarn(model: Decoder) -> None:
    plain = model.spec.rope.model_copy(update={"kind": "plain"})
    model.spec = model.spec.model_copy(update={"rope": plain})


def plain_positions(model: Decoder) -> None:
    no_yarn(model)


def other_ends(model: Decoder) -> None:
    rope = model.spec.rope
    changed = rope.model_copy(update={"truncate": not rope.truncate})
    model.spec = model.spec.model_copy(update={"rope": changed})


def no_softmax_factor(model: Decoder) -> None:
    for block in model.layers:
        block.attention.rule = replace(block.attention.rule, scale=model.spec.head_dim**-0.5)


def not_interleaved(model: Decoder) -> None:
    rope = model.spec.rope.model_copy(update={"interleaved": not model.spec.rope.interleaved})
    model.spec = model.spec.model_copy(update={"rope": rope})


def no_router_bias(model: Decoder) -> None:
    for moe in model.moe_layers():
        moe.router.bias.zero_()


def no_correction_bias(model: Decoder) -> None:
    for moe in model.moe_layers():
        moe.router.selection_bias.zero_()


def gate_with(**changes: object) -> Callable[[Decoder], None]:
    def changed(model: Decoder) -> None:
        for moe in model.moe_layers():
            gate = moe.router.moe.gate.model_copy(update=changes)
            moe.router.moe = moe.router.moe.model_copy(update={"gate": gate})

    return changed


def other_norm(model: Decoder) -> None:
    for moe in model.moe_layers():
        turned = not moe.router.moe.norm_topk_prob
        moe.router.moe = moe.router.moe.model_copy(update={"norm_topk_prob": turned})


def no_shared_expert(model: Decoder) -> None:
    for moe in model.moe_layers():
        moe.shared_expert = None


def no_shared_gate(model: Decoder) -> None:
    for moe in model.moe_layers():
        moe.shared_gate = None


def no_qkv_bias(model: Decoder) -> None:
    for block in model.layers:
        block.attention.qkv_proj.bias = None


def no_qk_norm(model: Decoder) -> None:
    for block in model.layers:
        block.attention.q_norm = block.attention.k_norm = None


def no_clipping(model: Decoder) -> None:
    for block in model.layers:
        block.attention.kind = block.attention.kind.model_copy(update={"clip_qkv": None})


def no_expert_bias(model: Decoder) -> None:
    for moe in model.moe_layers():
        moe.experts.gate_up_bias_E2F.zero_()
        moe.experts.down_bias_ED.zero_()


def no_clamp(model: Decoder) -> None:
    for moe in model.moe_layers():
        moe.experts.gating = replace(moe.experts.gating, limit=1e4)


def norms_without_one(model: Decoder) -> None:
    for module in model.modules():
        if isinstance(module, ZeroCentredRmsNorm):
            module.__class__ = RmsNorm


def no_head_gate(model: Decoder) -> None:
    for block in model.layers:
        block.attention.g_proj = None


def one_expert_clamp(model: Decoder, layer: int) -> None:
    model.layers[layer].mlp.experts.gating = replace(model.layers[layer].mlp.experts.gating, limit=1e4)


def no_expert_clamp(model: Decoder) -> None:
    one_expert_clamp(model, 1)


def no_last_expert_clamp(model: Decoder) -> None:
    one_expert_clamp(model, 3)


def no_shared_clamp(model: Decoder) -> None:
    shared = model.layers[2].mlp.shared_expert
    shared.gating = replace(shared.gating, limit=1e4)


def no_dense_clamp(model: Decoder) -> None:
    model.layers[0].mlp.gating = replace(model.layers[0].mlp.gating, limit=1e4)


def clamp_before_silu(model: Decoder) -> None:
    experts = model.layers[1].mlp.experts
    limit, within = experts.gating.limit, Gating.__call__

    class Before(Gating):
        def __call__(self, gate_TF: torch.Tensor, up_TF: torch.Tensor) -> torch.Tensor:
            return within(PLAIN, gate_TF.clamp(max=limit), up_TF.clamp(-limit, limit))

    experts.gating = Before("clamped_silu", limit=limit)


def whole_heads_turn(model: Decoder) -> None:
    rope = model.spec.rope.model_copy(update={"partial_rotary_factor": 1.0})
    model.spec = model.spec.model_copy(update={"rope": rope})


def sliding_with(**changes: object) -> Callable[[Decoder], None]:
    def changed(model: Decoder) -> None:
        own = model.spec.attention.sliding
        assert own is not None
        sliding = own.model_copy(update=changes)
        attention = model.spec.attention.model_copy(update={"sliding": sliding})
        model.spec = model.spec.model_copy(update={"attention": attention})

    return changed


def same_positions_everywhere(model: Decoder) -> None:
    attention = model.spec.attention.model_copy(update={"sliding": None})
    model.spec = model.spec.model_copy(update={"attention": attention})


RELEASED = "step3p5, stretched, as released"
MUTATIONS: list[tuple[str, Callable[[Decoder], None]]] = [
    ("gpt_oss", no_sinks), ("gpt_oss", no_window), ("gpt_oss", no_yarn), ("gpt_oss", other_ends),
    ("gpt_oss", no_router_bias), ("gpt_oss", no_expert_bias), ("gpt_oss", no_clamp), ("gpt_oss", no_qkv_bias),
    ("deepseek_v3", no_correction_bias), ("deepseek_v3", not_interleaved), ("deepseek_v3", no_shared_expert),
    ("deepseek_v3", gate_with(num_groups=1, topk_group=1)),
    ("deepseek_v3", gate_with(routed_scaling_factor=1.0)), ("deepseek_v3", other_norm),
    ("llama, stretched", plain_positions), ("mixtral, stretched", plain_positions), (YARN, no_yarn), (YARN, no_softmax_factor), (YARN, no_correction_bias),
    ("deepseek_v2", gate_with(routed_scaling_factor=1.0)), ("deepseek_v2", gate_with(scores="sigmoid")),
    ("deepseek_v2, groups, yarn", gate_with(num_groups=1, topk_group=1)), ("deepseek_v2, groups, yarn", no_yarn),
    ("deepseek_v2, groups, yarn", gate_with(group_score="two_best")), ("deepseek_v2", no_shared_expert),
    ("qwen2_moe", no_shared_gate), ("qwen2_moe", no_shared_expert), ("qwen2_moe", no_qkv_bias),
    ("qwen3_moe", no_qk_norm), (BIASES, no_qkv_bias), (BIASES, other_norm),
    ("step3p5", norms_without_one), ("step3p5", no_head_gate), ("step3p5", no_qk_norm), ("step3p5", no_window),
    ("step3p5", no_expert_clamp), ("step3p5", no_last_expert_clamp), ("step3p5", clamp_before_silu),
    ("step3p5", no_shared_clamp), ("step3p5", no_dense_clamp), ("step3p5", whole_heads_turn),
    ("step3p5", sliding_with(rope_theta=5000.0)), ("step3p5", sliding_with(partial_rotary_factor=1.0)),
    ("step3p5", same_positions_everywhere), ("step3p5", no_correction_bias), ("step3p5", no_shared_expert),
    ("step3p5", gate_with(routed_scaling_factor=1.0)), ("step3p5", other_norm), (RELEASED, plain_positions),
    (RELEASED, norms_without_one), (RELEASED, no_expert_clamp),
    ("olmoe", no_qk_norm), ("olmoe", other_norm), ("olmoe, clipped", no_clipping), ("mixtral", other_norm),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("case", "mutation"), MUTATIONS, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_left_out_shows(case: str, mutation: Callable[[Decoder], None], tmp_path: Path) -> None:
    theirs = reference(case)
    theirs.save_pretrained(tmp_path)
    ours, logits = moe_core.load(tmp_path), theirs(IDS).logits
    assert relative(ours(IDS), logits) <= TOLERANCE
    mutation(ours)
    assert relative(ours(IDS), logits) > 1000 * TOLERANCE


def test_every_family_is_mutated() -> None:
    assert {case.split(",")[0] for case in CASES} == {case.split(",")[0] for case, _ in MUTATIONS}
