"""NLLB-MoE, the GShard-shaped member: every fourth feed-forward a mixture, two experts a token, maps with biases.

transformers 5.23 runs the first two experts of each layer alone: `NllbMoeExperts.forward` makes a one-hot of what is one-hot
already, so that "not the first choice" is taken for expert 0 and "the first choice" for expert 1. What is computed here is
the paper's rule, and that of transformers 4; the tests hold transformers' own layers to it with that one function put right.

Source: NLLB Team 2022, "No Language Left Behind", arXiv 2207.04672, section 6.2; Lepikhin et al. 2020, "GShard", arXiv
2006.16668.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from moe_core.model.seq2seq.config import Layers, Seq2SeqConfig, common_keys
from moe_core.model.seq2seq.names import Names
from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.expert_kinds import PlainActivation
from moe_core.spec.gate import GshardTop2
from moe_core.spec.seq2seq import Seq2SeqSpec, StackSpec


class NllbConfig(Seq2SeqConfig):
    """Its own keys. A capacity in evaluation below all tokens is refused unless weights are made to sum to one before it."""

    model_type: Literal["nllb-moe"]
    num_experts: int = Field(default=128, ge=2, le=1024)
    encoder_layers: int = Layers
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = Field(default=16, ge=1, le=1024)
    decoder_layers: int = Layers
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = Field(default=16, ge=1, le=1024)
    encoder_sparse_step: int = Field(default=4, ge=0, le=512)
    decoder_sparse_step: int = Field(default=4, ge=0, le=512)
    max_position_embeddings: int = 1024
    scale_embedding: bool = True
    activation_function: PlainActivation = "relu"
    moe_eval_capacity_token_fraction: float = Field(default=1.0, gt=0.0)
    moe_token_dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    normalize_router_prob_before_dropping: bool = False
    batch_prioritized_routing: bool = False
    second_expert_policy: Literal["all"] = "all"
    decoder_start_token_id: int = 2
    # Of no effect on the computation.
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    router_type: str | None = None
    # Of generation, which is greedy here.
    max_length: int | None = None
    # The encoder's, said again.
    num_hidden_layers: int | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        heads = self.encoder_attention_heads
        if heads != self.decoder_attention_heads:
            raise ValueError(
                f"encoder_attention_heads ({heads}) and decoder_attention_heads ({self.decoder_attention_heads}) differ"
            )
        if self.num_hidden_layers not in (None, self.encoder_layers):
            raise ValueError(
                f"num_hidden_layers ({self.num_hidden_layers}) must be encoder_layers ({self.encoder_layers}), or left out"
            )
        if self.d_model % heads:
            raise ValueError(
                f"d_model ({self.d_model}) must be divisible by encoder_attention_heads ({heads})"
            )
        limited = self.moe_eval_capacity_token_fraction < 1.0
        if limited and (self.batch_prioritized_routing or not self.normalize_router_prob_before_dropping):
            raise ValueError(
                f"moe_eval_capacity_token_fraction ({self.moe_eval_capacity_token_fraction}) below 1 needs "
                "normalize_router_prob_before_dropping and no batch_prioritized_routing"
            )
        return self

    def to_spec(self) -> Seq2SeqSpec:
        """The specification that these keys describe; no expert is full unless the fraction of tokens is below one."""
        return Seq2SeqSpec.parse(
            {
                "family": "nllb_moe",
                "vocab_size": self.vocab_size,
                "hidden_size": self.d_model,
                "num_heads": self.encoder_attention_heads,
                "head_dim": self.d_model // self.encoder_attention_heads,
                "encoder": _stack(self.encoder_layers, self.encoder_sparse_step, self.encoder_ffn_dim),
                "decoder": _stack(self.decoder_layers, self.decoder_sparse_step, self.decoder_ffn_dim),
                "norm": "layer",
                "norm_eps": 1e-5,
                "bias": True,
                "positions": "sinusoidal",
                "max_position_embeddings": self.max_position_embeddings,
                "scale_embedding": self.scale_embedding,
                "activation": self.activation_function,
                "tie_word_embeddings": self.tie_word_embeddings,
                "num_experts": self.num_experts,
                "top_k": 2,
                "gate": GshardTop2(random_second=False, logit_bias=self.router_bias),
                "capacity": self._capacity(),
                "expert_output_scale": 1.0 - self.moe_token_dropout,
                "expert_capacity": self.expert_capacity,
                "pad_token_id": self.pad_token_id,
                "eos_token_ids": self.eos_ids(),
                "bos_token_id": self.bos_token_id,
                "decoder_start_token_id": self.decoder_start_token_id,
            }
        )

    def _capacity(self) -> CapacitySpec | None:
        fraction = self.moe_eval_capacity_token_fraction
        if fraction >= 1.0:
            return None
        # The fraction is of all tokens; a factor is of the fair share of T · 2 / E.
        return CapacitySpec(train_factor=None, eval_factor=fraction * self.num_experts / 2)


def _stack(num_layers: int, step: int, width: int) -> StackSpec:
    layers = tuple(at for at in range(num_layers) if step > 0 and (at + 1) % step == 0)
    return StackSpec(num_layers=num_layers, moe_layers=layers, intermediate_size=width)


def _step(stack: StackSpec) -> int:
    """The step that means these very layers; 0 means none."""
    steps = range(1, stack.num_layers + 1)
    return next((s for s in steps if _stack(stack.num_layers, s, 1).moe_layers == stack.moe_layers), 0)


def keys_of(spec: Seq2SeqSpec, dtype: str) -> dict[str, Any]:
    """config.json as transformers reads it."""
    limit = None if spec.capacity is None else spec.capacity.eval_factor
    return {
        **common_keys(spec, dtype),
        "model_type": "nllb-moe",
        "architectures": ["NllbMoeForConditionalGeneration"],
        "encoder_layers": spec.encoder.num_layers,
        "encoder_ffn_dim": spec.encoder.intermediate_size,
        "encoder_attention_heads": spec.num_heads,
        "decoder_layers": spec.decoder.num_layers,
        "decoder_ffn_dim": spec.decoder.intermediate_size,
        "decoder_attention_heads": spec.num_heads,
        "encoder_sparse_step": _step(spec.encoder),
        "decoder_sparse_step": _step(spec.decoder),
        "max_position_embeddings": spec.max_position_embeddings,
        "scale_embedding": spec.scale_embedding,
        "activation_function": spec.activation,
        "moe_token_dropout": 1.0 - spec.expert_output_scale,
        "moe_eval_capacity_token_fraction": 1.0 if limit is None else limit * 2 / spec.num_experts,
        "normalize_router_prob_before_dropping": limit is not None,
        "second_expert_policy": "all",
    }


_ATTENTION = {"self": "self_attn.", "cross": "cross_attention."}
_NORMS = {"self_norm": "self_attn_layer_norm", "mlp_norm": "ff_layer_norm"}
NAMES = Names(
    embedding="model.shared",
    layer="model.{side}.layers.{at}.",
    attention=_ATTENTION,
    maps={"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"},
    norms={"encoder": _NORMS, "decoder": {**_NORMS, "cross_norm": "cross_attention_layer_norm"}},
    mlp={"encoder": "ffn.", "decoder": "ffn."},
    up="fc1",
    down="fc2",
    last_norm="model.{side}.layer_norm",
    relative_bias=None,
)
