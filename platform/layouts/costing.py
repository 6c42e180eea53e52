"""What a layout costs, beside the dense model that it is laid over. All figures are moe_core's."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from layouts.services import checked_spec
from moe_core.spec import LayoutSpec, ModelSpec, cost_of
from moe_core.spec.gate import SoftmaxTopk
from registry.block import shape_of
from registry.describe import CONTEXT_TOKENS
from registry.kinds import experts_of
from registry.models import ModelVersion


def preview(base: ModelVersion, spec: Any, context_tokens: int = CONTEXT_TOKENS) -> dict[str, Any]:
    """Return costs of the dense model and of the mixture, the shape of both, and what to mind."""
    layout = checked_spec(base, spec)
    dense = ModelSpec.parse(base.spec)
    mixture = layout.applied_to(dense)
    return {
        "family": mixture.family,
        "layout": layout.model_dump(mode="json"),
        "dense": cost_of(dense).as_dict(context_tokens),
        "mixture": cost_of(mixture).as_dict(context_tokens),
        "shape": shape_of(mixture),
        "experts": [asdict(run) for run in experts_of(mixture)],
        "advice": advice(dense, layout),
    }


def advice(dense: ModelSpec, layout: LayoutSpec) -> list[dict[str, Any]]:
    """Return what experience says about such a layout: codes with their numbers, the gravest first.

    Sources: sparse upcycling (Komatsuzaki 2022), Mixtral (2024), DeepSeekMoE (2024), GShard (2020).
    """
    width, gate = layout.expert_width(dense), layout.gate
    found: list[dict[str, Any]] = []
    if gate.sees_the_batch:
        found.append({"code": "sees_the_batch", "state": "caution", "gate": gate.kind})
    if isinstance(gate, SoftmaxTopk) and layout.top_k == 1 and gate.sums_to_one(layout.norm_topk_prob):
        found.append({"code": "deaf_gate", "state": "caution"})
    if layout.num_experts == 1:
        found.append({"code": "one_expert", "state": "danger"})
    elif layout.top_k == layout.num_experts:
        found.append({"code": "all_experts", "state": "caution", "top_k": layout.top_k})
    if layout.expert_kinds is not None:
        found.append({"code": "mixed_kinds", "state": "off"})
    elif width != dense.intermediate_size:
        found.append(
            {"code": "cut_experts", "state": "caution", "width": width, "dense_width": dense.intermediate_size}
        )
    if layout.num_experts > 64:
        found.append({"code": "many_experts", "state": "caution", "num_experts": layout.num_experts})
    if 1 < layout.num_experts < 4:
        found.append({"code": "few_experts", "state": "caution", "num_experts": layout.num_experts})
    if layout.top_k == 1 and not any(one["code"] == "deaf_gate" for one in found):
        found.append({"code": "top_one", "state": "caution"})
    if 0 in layout.moe_layers and layout.num_experts > 1:
        found.append({"code": "first_layer", "state": "off"})
    if width % 64:
        found.append({"code": "odd_width", "state": "off", "width": width})
    if not gate.sums_to_one(layout.norm_topk_prob) and isinstance(gate, SoftmaxTopk):
        found.append({"code": "not_renormalised", "state": "off"})
    return found
