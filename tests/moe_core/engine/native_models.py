"""Models that the native step computes, one for each part that it knows, and engines over them."""

from __future__ import annotations

import pytest
import torch

from moe_core.engine.engine import Engine
from moe_core.kernels import dispatch
from moe_core.kernels.cpu.attach import attach
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations.quantise import quantise
from moe_core.spec import ModelSpec
from moe_core.spec.operations import QuantiseSpec
from tests.moe_core.engine.conftest import MOE, TINY, serve_spec
from tests.moe_core.tiny import tiny_family, tiny_llama, tiny_turnout


def _turnout(**changes: object) -> ModelSpec:
    return ModelSpec.parse({**tiny_turnout().model_dump(), **changes})


def _gated(gate: dict[str, object], **changes: object) -> ModelSpec:
    moe = {"num_experts": 8, "top_k": 3, "gate": gate, **changes}
    return _turnout(moe={**tiny_turnout().model_dump()["moe"], **moe})


WINDOW = {"sliding_window": 8, "sliding_layers": [1]}
OWN_WINDOW = {"num_attention_heads": 8, "rope_theta": 100.0, "partial_rotary_factor": 0.5}
SPECS = {
    "dense": tiny_llama(),
    "mixtral": ModelSpec.parse({"family": "mixtral", "moe": MOE, **TINY}),
    "shared expert, dense layer": tiny_turnout(),
    "head norms, odd sizes": ModelSpec.parse(
        {
            **TINY, "family": "qwen3_moe", "hidden_size": 33, "head_dim": 10, "attention": {"qk_norm": "head"},
            "moe": {
                "moe_layers": [0, 2], "num_experts": 7, "top_k": 3, "moe_intermediate_size": 19,
                "norm_topk_prob": False,
            },
        }
    ),
    "sinks, windows, biases, clamps": tiny_family("gpt_oss"),
    "windows with heads and positions of their own": _turnout(
        attention={**WINDOW, "sliding": OWN_WINDOW, "sinks": True}
    ),
    "gated heads": _turnout(attention={**WINDOW, "head_gate": True}),
    "norms around zero, half of a head turns": _turnout(
        zero_centred_norms=True, attention={"qk_norm": "head"}, rope={"partial_rotary_factor": 0.5}
    ),
    "pairs side by side, bounds": _turnout(
        rope={"interleaved": True}, expert_clamps=[0.5, 0.0, 0.0], dense_clamps=[0.4, 0.5, 0.0]
    ),
    "norms of whole projections, clipped": tiny_family("olmoe"),
    "gelu": tiny_family("glam_moe"),
    "blocks side by side": tiny_family("palm_moe"),
    "weighed shared expert": tiny_family("qwen2_moe"),
    "sigmoid of the best groups": _gated(
        {"kind": "sigmoid_groups", "num_groups": 4, "topk_group": 2, "routed_scaling_factor": 2.5}, temperature=0.8
    ),
    "softmax of the best groups, as they are": _gated(
        {"kind": "sigmoid_groups", "num_groups": 4, "topk_group": 2, "scores": "softmax", "group_score": "best",
         "selection_bias": False, "routed_scaling_factor": 4.0}, norm_topk_prob=False,
    ),
    "root of a softplus": _gated({"kind": "sigmoid_groups", "scores": "sqrtsoftplus", "logit_bias": True}),
    "softmax whose choice is biased": _gated({"kind": "softmax_topk", "selection_bias": True}),
    "softmax whose choice is biased, as it is": _gated(
        {"kind": "softmax_topk", "selection_bias": True}, norm_topk_prob=False
    ),
    "step3p5": tiny_family("step3p5"),
    "latents": tiny_family("deepseek_v3"),
    "latents without one for queries": tiny_family("deepseek_v2"),
}  # fmt: skip
# Gates of our own family, with fields beside their defaults.
GATES = {
    "top_p": _gated({"kind": "top_p", "p": 0.6}, temperature=1.7),
    "top_p, as it is": _gated({"kind": "top_p", "selection_bias": True}, norm_topk_prob=False),
    "sparsemax": _gated({"kind": "sparsemax", "logit_bias": True}),
    "sparsemax, as it is": _gated({"kind": "sparsemax", "selection_bias": True}, norm_topk_prob=False),
    "switch": _gated({"kind": "switch"}, top_k=1),
    "gshard_top2": _gated({"kind": "gshard_top2"}, top_k=2),
    "noisy_topk": _gated({"kind": "noisy_topk"}),
    "sinkhorn": _gated({"kind": "sinkhorn", "selection_bias": True}),
    "quantile": _gated({"kind": "quantile"}),
    "base": _gated({"kind": "base"}, top_k=1),
    "hash": _gated({"kind": "hash"}),
    "hash, learned weights": _gated({"kind": "hash", "weights": "learned"}),
    "hierarchical": _gated(
        {"kind": "hierarchical", "num_domains": 2, "groups_per_domain": 2}, temperature=0.6
    ),
}


def build(spec: ModelSpec, bits: tuple[int | None, ...] | None = None) -> Decoder:
    model = random_decoder(spec, seed=4, std=0.3, dtype=torch.bfloat16).eval()
    # Gates begin with biases of zero.
    for layer in model.moe_layers():
        for name, tensor in layer.router.tensors.items():
            if name.endswith("bias"):
                tensor.data.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(layer.layer))
    if bits is not None:
        names = ("quantisation", "attention", "head")
        packing = {
            name: {"bits": own, "group_size": 32}
            for name, own in zip(names, bits, strict=True)
            # Gated heads and latents have maps that cannot be packed.
            if own and not (name == "attention" and (spec.attention.head_gate or spec.attention.mla))
        }
        model, _ = quantise(model, QuantiseSpec.parse({"kind": "quantise", **packing}))
        model.eval()
    return model


def engine_of(model: Decoder, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Engine:
    monkeypatch.setattr(dispatch, "_KERNELS", list(dispatch._KERNELS))
    attach(model, 1)
    return Engine(serve_spec(**changes), model)
