"""Step-3.5, and the text of Step-3.7: windows with heads and positions of their own, gated heads, clamped experts.

The layers after the last one that predict further tokens (MTP) and the part that sees are not read.
Source: StepFun 2026, "Step 3.5 Flash: Open Frontier-Level Intelligence with 11B Active Parameters", arXiv 2602.10604.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from moe_core.model.families.family import Family, NameMap
from moe_core.model.families.rope import rope_parameters
from moe_core.model.families.step3p5_keys import Step3p5Keys
from moe_core.spec import ModelSpec, MoeSpec
from moe_core.spec.attention import AttentionSpec, SlidingSpec
from moe_core.spec.gate import SigmoidGroups


class Step3p5Config(Step3p5Keys):
    """What the keys say in the words of the specification."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        # Whatever contradicts itself is said here, with the keys of the file.
        self._check_heads()
        self.expert_layers()
        self.attention_part()
        self.more_fields()
        return self

    def _check_heads(self) -> None:
        own, head_dim = self.attention_other_setting, self.head_dim
        if own is not None:
            said = {own.num_attention_groups or self.num_key_value_heads, self.num_key_value_heads}
            if len(said) > 1 or {own.head_dim or head_dim, own.true_head_dim or head_dim} != {head_dim}:
                raise ValueError(
                    "attention_other_setting may change num_attention_heads only; its groups and head_dim must be "
                    f"num_attention_groups ({self.num_key_value_heads}) and head_dim ({head_dim})"
                )
        if self.query_pre_attn_scalar not in (None, head_dim):
            raise ValueError(
                f"query_pre_attn_scalar ({self.query_pre_attn_scalar}) must be head_dim ({head_dim})"
            )
        self._check_layers()

    def _check_layers(self) -> None:
        if self.per_layer_config is None:
            return
        # transformers names only the layers that differ from the whole.
        plain = dict.fromkeys(range(self.num_hidden_layers), self.num_attention_heads)
        wanted = plain | {layer: self.sliding_heads() for layer in self.sliding_layers()}
        said = {layer: heads.num_attention_heads for layer, heads in self.per_layer_config.items()}
        found = plain | said
        if found != wanted:
            differing = {layer: wanted.get(layer) for layer in found if found[layer] != wanted.get(layer)}
            raise ValueError(
                f"per_layer_config says {said}, but layer_types and the number of heads say {differing}"
            )

    def moe_part(self) -> MoeSpec:
        """A sigmoid gate without groups, and a shared expert without a gate."""
        return MoeSpec.parse(
            {
                "moe_layers": self.expert_layers(),
                "num_experts": self.n_routed_experts,
                "top_k": self.num_experts_per_tok,
                "moe_intermediate_size": self.moe_intermediate_size,
                "num_shared_experts": 1,
                "shared_intermediate_size": self.share_expert_dim,
                "gate": SigmoidGroups.parse({"routed_scaling_factor": self.moe_router_scaling_factor}),
            }
        )

    def attention_part(self) -> AttentionSpec:
        """Normalised and gated heads; layers with a window have their own number of them, and plain positions."""
        sliding = self.sliding_layers()
        part: dict[str, Any] = {"qk_norm": "head", "head_gate": True}
        if not sliding:
            return AttentionSpec.parse(part)
        rope = self.rope_of("sliding_attention")
        if rope.rope_type != "default":
            raise ValueError(f"rope_type of sliding_attention must be 'default', not {rope.rope_type!r}")
        own = SlidingSpec.parse(
            {
                "num_attention_heads": self.sliding_heads(),
                "rope_theta": self.default_theta if rope.rope_theta is None else rope.rope_theta,
                "partial_rotary_factor": rope.to_rope(1, interleaved=False).partial_rotary_factor,
            }
        )
        return AttentionSpec.parse(
            {**part, "sliding_window": self.sliding_window, "sliding_layers": sliding, "sliding": own}
        )

    def more_fields(self) -> dict[str, Any]:
        """Norms, clamps, and the positions of layers that see everything."""
        rope = self.rope_of("full_attention")
        return {
            "family": "step3p5",
            "rope_theta": self.default_theta if rope.rope_theta is None else rope.rope_theta,
            "rope": rope.to_rope(self.max_position_embeddings, interleaved=False),
            "zero_centred_norms": True,
            "expert_clamps": self.clamps("swiglu_limits"),
            "dense_clamps": self.clamps("swiglu_limits_shared"),
        }


def _keys(spec: ModelSpec) -> dict[str, Any]:
    moe, kind = spec.moe, spec.attention
    assert moe is not None
    layers, own = range(spec.num_hidden_layers), kind.sliding
    ropes = {"full_attention": rope_parameters(spec)}
    if own is not None:
        said = {"rope_theta": own.rope_theta, "partial_rotary_factor": own.partial_rotary_factor}
        ropes["sliding_attention"] = {"rope_type": "default", **said}
    return {
        "rope_parameters": ropes,
        "layer_types": [
            "sliding_attention" if n in kind.sliding_layers else "full_attention" for n in layers
        ],
        "sliding_window": kind.sliding_window,
        "num_sliding_attention_heads": None if own is None else own.num_attention_heads,
        "mlp_layer_types": ["sparse" if spec.is_moe_layer(n) else "dense" for n in layers],
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.moe_intermediate_size,
        "share_expert_dim": moe.shared_intermediate_size or 0,
        "moe_router_scaling_factor": getattr(moe.gate, "routed_scaling_factor", 1.0),
        "swiglu_limits": list(spec.expert_clamps) or None,
        "swiglu_limits_shared": list(spec.dense_clamps) or None,
        "num_nextn_predict_layers": 0,
    }


FAMILY = Family(
    "step3p5",
    "Step3p5ForCausalLM",
    Step3p5Config,
    _keys,
    NameMap(block="moe", selection_bias="router_bias", shared="share_expert", stacked=True),
    NameMap(selection_bias="gate.e_score_correction_bias", shared="mlp.shared_experts"),
    aliases=("step3p7",),
    predicts_further=True,
    other_parts=("vision_model.", "vit_large_projector."),
    in_transformers=False,
)
