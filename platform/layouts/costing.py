"""What a layout costs, beside the dense model that it is laid over. All figures are moe_core's."""

from __future__ import annotations

from typing import Any

from layouts.services import checked_spec
from moe_core.spec import LayoutSpec, ModelSpec, cost_of
from registry.describe import CONTEXT_TOKENS
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
        "shape": shape_of(dense, layout),
        "advice": advice(dense, layout),
    }


def shape_of(dense: ModelSpec, layout: LayoutSpec) -> dict[str, Any]:
    """Return the numbers that the diagram of the decoder block shows."""
    width = layout.expert_width(dense)
    shared = (layout.shared_intermediate_size or dense.intermediate_size) if layout.num_shared_experts else 0
    return {
        "num_layers": dense.num_hidden_layers,
        "num_moe_layers": len(layout.moe_layers),
        "hidden_size": dense.hidden_size,
        "dense_width": dense.intermediate_size,
        "expert_width": width,
        "shared_width": shared,
        "num_experts": layout.num_experts,
        "top_k": layout.top_k,
        "num_shared_experts": layout.num_shared_experts,
    }


def advice(dense: ModelSpec, layout: LayoutSpec) -> list[dict[str, Any]]:
    """Return what experience says about such a layout: codes with their numbers, the gravest first.

    Sources: sparse upcycling (Komatsuzaki 2022), Mixtral (2024), DeepSeekMoE (2024), GShard (2020).
    """
    width = layout.expert_width(dense)
    found: list[dict[str, Any]] = []
    if layout.num_experts == 1:
        found.append({"code": "one_expert", "state": "danger"})
    elif layout.top_k == layout.num_experts:
        found.append({"code": "all_experts", "state": "caution", "top_k": layout.top_k})
    if width != dense.intermediate_size:
        found.append(
            {"code": "cut_experts", "state": "caution", "width": width, "dense_width": dense.intermediate_size}
        )
    if layout.num_experts > 64:
        found.append({"code": "many_experts", "state": "caution", "num_experts": layout.num_experts})
    if 1 < layout.num_experts < 4:
        found.append({"code": "few_experts", "state": "caution", "num_experts": layout.num_experts})
    if layout.top_k == 1:
        found.append({"code": "top_one", "state": "caution"})
    if 0 in layout.moe_layers and layout.num_experts > 1:
        found.append({"code": "first_layer", "state": "off"})
    if width % 64:
        found.append({"code": "odd_width", "state": "off", "width": width})
    if not layout.norm_topk_prob:
        found.append({"code": "not_renormalised", "state": "off"})
    return found
