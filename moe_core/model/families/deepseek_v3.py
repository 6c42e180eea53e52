"""DeepSeek-V3 and what has its shape (Kimi-K2): latent attention, sigmoid gates in groups, shared experts.

The layers after the last one that predict further tokens (MTP) are not read.
Source: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", arXiv 2412.19437; Kimi Team 2025, "Kimi K2", arXiv 2507.20534.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from moe_core.model.families.family import Family, NameMap
from moe_core.model.families.schemas import DecoderConfig
from moe_core.model.families.two_names import one_name
from moe_core.spec import ModelSpec, MoeSpec
from moe_core.spec.attention import AttentionSpec, MlaSpec
from moe_core.spec.gate import SigmoidGroups


class DeepseekV3Config(DecoderConfig):
    """DeepSeek-V3's keys with the defaults of transformers."""

    num_hidden_layers: int = Field(ge=1, le=512)
    max_position_embeddings: int = 4096
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 256
    n_shared_experts: int = Field(default=1, ge=1, le=64)
    num_experts_per_tok: int = 8
    first_k_dense_replace: int = Field(default=3, ge=0)
    n_group: int | None = 8
    topk_group: int | None = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    rope_interleave: bool = True
    # One value only.
    attention_bias: Literal[False] = False
    hidden_act: Literal["silu"] = "silu"
    sliding_window: None = None
    moe_layer_freq: Literal[1] = 1
    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    # Of no effect on the computation.
    qk_head_dim: int | None = None
    num_nextn_predict_layers: int | None = None
    num_mtp_layers: int | None = None
    ep_size: int | None = None
    seq_aux: bool | None = None
    aux_loss_alpha: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _experts(cls, data: Any) -> Any:
        return one_name(data, "n_routed_experts", "num_local_experts")

    def interleaved(self) -> bool:
        """Rotary pairs stand side by side in the released weights."""
        return self.rope_interleave

    def moe_part(self) -> MoeSpec:
        """Experts from layer `first_k_dense_replace` on; the shared ones are one of their joint width."""
        return MoeSpec.parse(
            {
                "moe_layers": tuple(range(self.first_k_dense_replace, self.num_hidden_layers)),
                "num_experts": self.n_routed_experts,
                "top_k": self.num_experts_per_tok,
                "moe_intermediate_size": self.moe_intermediate_size,
                "num_shared_experts": 1,
                "shared_intermediate_size": self.n_shared_experts * self.moe_intermediate_size,
                "norm_topk_prob": self.norm_topk_prob,
                "gate": self.gate_part(),
            }
        )

    def gate_part(self) -> SigmoidGroups:
        """Sigmoid scores, and groups worth their two best experts."""
        return SigmoidGroups.parse(
            {
                "num_groups": self.n_group or 1,
                "topk_group": self.topk_group or 1,
                "routed_scaling_factor": self.routed_scaling_factor,
            }
        )

    def attention_part(self) -> AttentionSpec:
        """Latent attention; transformers' head_dim is that of the rotary part."""
        names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        return AttentionSpec(mla=MlaSpec.parse({name: getattr(self, name) for name in names}))

    def more_fields(self) -> dict[str, Any]:
        """A head's query is wider than its rotary part; Kimi-K2 is the same family under another name."""
        return {"family": "deepseek_v3", "head_dim": self.qk_nope_head_dim + self.qk_rope_head_dim}


def deepseek_keys(spec: ModelSpec) -> dict[str, Any]:
    """The keys of DeepseekV3Config."""
    moe, mla = spec.moe, spec.attention.mla
    assert moe is not None and mla is not None and isinstance(moe.gate, SigmoidGroups)
    return {
        **mla.model_dump(),
        "head_dim": mla.qk_rope_head_dim,
        "rope_interleave": spec.rope.interleaved,
        "moe_intermediate_size": moe.moe_intermediate_size,
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": (moe.shared_intermediate_size or 0) // moe.moe_intermediate_size,
        "num_experts_per_tok": moe.top_k,
        "first_k_dense_replace": moe.moe_layers[0],
        "n_group": moe.gate.num_groups,
        "topk_group": moe.gate.topk_group,
        "norm_topk_prob": moe.norm_topk_prob,
        "routed_scaling_factor": moe.gate.routed_scaling_factor,
        "num_nextn_predict_layers": 0,
    }


FAMILY = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    DeepseekV3Config,
    deepseek_keys,
    NameMap(selection_bias="gate.e_score_correction_bias", shared="mlp.shared_experts"),
    aliases=("kimi_k2",),
    predicts_further=True,
    latent_attention=True,
)
