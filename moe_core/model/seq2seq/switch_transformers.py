"""Switch Transformers: T5's encoder–decoder, every other feed-forward a mixture of which a token sees one expert.

Source: Fedus, Zoph & Shazeer 2021, "Switch Transformers", arXiv 2101.03961; names and rules as in transformers 5.23.
"""

from __future__ import annotations

from typing import Any, Literal

from moe_core.model.seq2seq.config import Layers, Seq2SeqConfig, common_keys
from moe_core.model.seq2seq.names import Names
from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.expert_kinds import PlainActivation
from moe_core.spec.gate import Switch
from moe_core.spec.seq2seq import Seq2SeqSpec, StackSpec


class SwitchConfig(Seq2SeqConfig):
    """Its own keys."""

    model_type: Literal["switch_transformers"]
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = Layers
    num_sparse_encoder_layers: int = 3
    num_decoder_layers: int | None = None
    num_sparse_decoder_layers: int = 3
    num_heads: int = 12
    router_jitter_noise: float = 0.01
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dense_act_fn: PlainActivation = "relu"
    decoder_start_token_id: int | None = None
    # Of no effect; the gated form is refused.
    is_gated_act: Literal[False] = False
    feed_forward_proj: Literal["relu"] = "relu"
    dropout_rate: float = 0.1
    initializer_factor: float = 1.0
    n_positions: int | None = None
    output_past: bool | None = None
    router_type: str | None = None

    def to_spec(self) -> Seq2SeqSpec:
        """The specification that these keys describe; experts are full by sequence at `expert_capacity` tokens."""
        num_decoder = self.num_decoder_layers or self.num_layers
        start = self.pad_token_id if self.decoder_start_token_id is None else self.decoder_start_token_id
        return Seq2SeqSpec.parse(
            {
                "family": "switch_transformers",
                "vocab_size": self.vocab_size,
                "hidden_size": self.d_model,
                "num_heads": self.num_heads,
                "head_dim": self.d_kv,
                "encoder": self._stack(self.num_layers, self.num_sparse_encoder_layers),
                "decoder": self._stack(num_decoder, self.num_sparse_decoder_layers),
                "norm": "rms",
                "norm_eps": self.layer_norm_epsilon,
                "bias": False,
                "positions": "relative",
                "relative_buckets": self.relative_attention_num_buckets,
                "relative_max_distance": self.relative_attention_max_distance,
                "activation": self.dense_act_fn,
                "tie_word_embeddings": self.tie_word_embeddings,
                "num_experts": self.num_experts,
                "top_k": 1,
                "gate": Switch(jitter=self.router_jitter_noise, logit_bias=self.router_bias),
                "capacity": capacity_of(self.expert_capacity),
                "capacity_per_sequence": True,
                "expert_capacity": self.expert_capacity,
                "pad_token_id": self.pad_token_id,
                "eos_token_ids": self.eos_ids(),
                "bos_token_id": self.bos_token_id,
                "decoder_start_token_id": start,
            }
        )

    def _stack(self, num_layers: int, num_sparse: int) -> StackSpec:
        layers = sparse_layers(num_layers, num_sparse)
        return StackSpec(num_layers=num_layers, moe_layers=layers, intermediate_size=self.d_ff)


def capacity_of(num_tokens: int) -> CapacitySpec:
    """A number of tokens that does not hang on how many there are: the share beside it is next to nothing."""
    return CapacitySpec(train_factor=1e-9, eval_factor=1e-9, min_tokens=num_tokens)


def sparse_layers(num_layers: int, num_sparse: int) -> tuple[int, ...]:
    """Which layers hold experts, as transformers counts them (its edge cases too)."""
    step = num_layers // num_sparse if num_sparse > 0 else num_layers
    return tuple(at for at in range(num_layers) if step > 0 and (at % step == 1 or step == 1))


def keys_of(spec: Seq2SeqSpec, dtype: str) -> dict[str, Any]:
    """config.json as transformers reads it."""
    return {
        **common_keys(spec, dtype),
        "model_type": "switch_transformers",
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        "d_kv": spec.head_dim,
        "d_ff": spec.encoder.intermediate_size,
        "num_layers": spec.encoder.num_layers,
        "num_sparse_encoder_layers": _num_sparse(spec.encoder),
        "num_decoder_layers": spec.decoder.num_layers,
        "num_sparse_decoder_layers": _num_sparse(spec.decoder),
        "num_heads": spec.num_heads,
        "router_jitter_noise": getattr(spec.gate, "jitter", 0.0),
        "relative_attention_num_buckets": spec.relative_buckets,
        "relative_attention_max_distance": spec.relative_max_distance,
        "layer_norm_epsilon": spec.norm_eps,
        "dense_act_fn": spec.activation,
    }


def _num_sparse(stack: StackSpec) -> int:
    """A number of sparse layers that means these very layers; -1, which means none, where there is no such number."""
    numbers = range(stack.num_layers + 1)
    return next((n for n in numbers if sparse_layers(stack.num_layers, n) == stack.moe_layers), -1)


NAMES = Names(
    embedding="shared",
    layer="{side}.block.{at}.",
    attention={"self": "layer.0.SelfAttention.", "cross": "layer.1.EncDecAttention."},
    maps={"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"},
    norms={
        "encoder": {"self_norm": "layer.0.layer_norm", "mlp_norm": "layer.1.layer_norm"},
        "decoder": {
            "self_norm": "layer.0.layer_norm",
            "cross_norm": "layer.1.layer_norm",
            "mlp_norm": "layer.2.layer_norm",
        },
    },
    mlp={"encoder": "layer.1.mlp.", "decoder": "layer.2.mlp."},
    up="wi",
    down="wo",
    last_norm="{side}.final_layer_norm",
    relative_bias="{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
)
