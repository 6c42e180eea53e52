"""What a decoder is made of: every number bounded, before anything is allocated."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moe_core.sentences import CORE
from moe_core.spec.attention import AttentionSpec, Kept, RopeSpec
from moe_core.spec.base import LayerIndex, Spec
from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.clamps import Clamps, clamps_complaint
from moe_core.spec.expert_kinds import ExpertKinds, Width, balance_costs, complaint_of, widest
from moe_core.spec.gate import GateSpec, SigmoidGroups, Soft, SoftmaxTopk, check_gate
from moe_core.spec.gate_tensors import GateTensor, gate_tensors
from moe_core.spec.likeness import fits_mixtral
from moe_core.spec.quantisation import ExpertQuantSpec
from moe_core.spec.temperature import TemperatureSpec
from moe_core.spec.twins import TwinsSpec

Family = Literal[
    "llama",
    "mixtral",
    "turnout_moe",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek_v3",
    "deepseek_v2",
    "gpt_oss",
    "glam_moe",
    "palm_moe",
    "step3p5",
]
# What stands between gate and up in a feed-forward. "clamped" is gpt-oss's (up + 1) · gate · sigmoid(alpha · gate).
Activation = Literal["silu", "gelu", "clamped"]
TokenId = Annotated[int, Field(ge=0, lt=1 << 20)]


class MoeSpec(Spec):
    """Which layers hold experts, how many, and how tokens are sent to them."""

    moe_layers: Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=512)]
    """Numbers of the layers that hold experts, ascending."""
    num_experts: Annotated[int, Field(ge=1, le=1024)]
    """Routed experts in each of them."""
    top_k: Annotated[int, Field(ge=1, le=64)]
    """How many of them a token sees."""
    moe_intermediate_size: Width
    """Width of a routed expert; of the widest where they differ."""
    num_shared_experts: Annotated[int, Field(ge=0, le=1)] = 0
    """1 for an expert that every token sees beside the routed ones."""
    shared_intermediate_size: Width | None = None
    """Width of the shared expert."""
    shared_gate: bool = False
    """The shared expert's output is weighed by the sigmoid of a map of the hidden state (Qwen2-MoE)."""
    norm_topk_prob: bool = True
    """Whether the weights of the chosen are made to sum to one."""
    temperature: Annotated[float, Field(ge=1e-3, le=100.0)] = 1.0
    """Divides the logits of every gate."""
    temperature_schedule: TemperatureSpec | None = None
    """Instead of `temperature`, where it moves while the gate learns."""
    gate: GateSpec = SoftmaxTopk()
    """How tokens find their experts."""
    capacity: CapacitySpec | None = None
    """How many tokens an expert may take; null: none is ever full."""
    twins: TwinsSpec | None = None
    """Experts of which each token sees one; null: every token sees all."""
    quantisation: ExpertQuantSpec | None = None
    """How experts are packed; null: they lie in the dtype of the model."""
    attention_quantisation: ExpertQuantSpec | None = None
    """The same for the maps around attention, in a model whose experts are packed."""
    head_quantisation: ExpertQuantSpec | None = None
    """The same for the output map, in a model whose experts are packed."""
    expert_bias: bool = False
    """A bias on every map of the experts."""
    expert_kinds: ExpertKinds | None = None
    """What each expert is, where they are not all swiglu of `moe_intermediate_size`; that is then the widest of them."""
    free_expert_cost: Annotated[float, Field(gt=0.0, le=10.0)] = 0.75
    """What a token on an expert without a feed-forward counts for when loads are evened; others count by their FLOPs."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(CORE.say("top_k_over_experts", top_k=self.top_k, num_experts=self.num_experts))
        check_gate(self.gate, self.capacity, self.num_experts, self.top_k)
        self._check_kinds()
        if self.quantisation is None and (self.attention_quantisation or self.head_quantisation):
            raise ValueError(
                "attention_quantisation and head_quantisation are for models whose experts are packed; give quantisation too"
            )
        self._check_twins()
        if self.temperature_schedule is not None and self.temperature != 1.0:
            raise ValueError("give temperature or temperature_schedule, not both")
        if list(self.moe_layers) != sorted(set(self.moe_layers)):
            raise ValueError(CORE.say("layers_unordered"))
        if self.num_shared_experts and self.shared_intermediate_size is None:
            raise ValueError("shared_intermediate_size is needed when num_shared_experts is 1")
        if not self.num_shared_experts and self.shared_intermediate_size is not None:
            raise ValueError("shared_intermediate_size must be null when num_shared_experts is 0")
        if self.shared_gate and not self.num_shared_experts:
            raise ValueError("shared_gate must be false when num_shared_experts is 0")
        return self

    def _check_twins(self) -> None:
        if self.twins is None:
            return
        gate = self.gate
        if isinstance(gate, Soft):
            raise ValueError(
                "gate 'soft' mixes every token into the slots of every expert, and none sees one of two twins; leave twins "
                "out, or choose a gate that sends tokens to experts"
            )
        groups = (gate.num_groups, gate.topk_group) if isinstance(gate, SigmoidGroups) else (1, 1)
        complaint = self.twins.complaint(self.num_experts, self.top_k, *groups)
        if complaint:
            raise ValueError(complaint)

    def _check_kinds(self) -> None:
        if self.expert_kinds is None:
            return
        complaint = complaint_of(self.expert_kinds, self.num_experts)
        if complaint:
            raise ValueError(complaint)
        if self.moe_intermediate_size != widest(self.expert_kinds):
            raise ValueError(
                f"moe_intermediate_size ({self.moe_intermediate_size}) must be the width of the widest of expert_kinds "
                f"({widest(self.expert_kinds)})"
            )
        if self.quantisation is not None or self.expert_bias or self.twins is not None:
            raise ValueError(
                "experts of different kinds have no biases, no twins and are not packed in few bits"
            )

    def balance_costs(self, hidden_size: int) -> tuple[float, ...] | None:
        """What a token on each expert counts for when loads are evened; None where all are alike."""
        if self.expert_kinds is None:
            return None
        return balance_costs(self.expert_kinds, hidden_size, self.free_expert_cost)

    @property
    def num_places(self) -> int:
        """The most experts that one token may have: the width of every table of choices."""
        return self.gate.num_places(self.num_experts, self.top_k)

    @property
    def leaves_places_empty(self) -> bool:
        """Whether a token that is served may have fewer experts than places."""
        limited = self.capacity is not None and self.capacity.eval_factor is not None
        return self.gate.leaves_places_empty or limited

    @property
    def weights_sum_to_one(self) -> bool:
        """Whether the weights of a token's experts always sum to one (as long as no expert is full)."""
        return self.gate.sums_to_one(self.norm_topk_prob)

    def temperature_at(self, step: int | None = None) -> float:
        """What divides the logits: at a step of training, or (None) where training stands."""
        schedule = self.temperature_schedule
        if schedule is None:
            return self.temperature
        return schedule.now if step is None else schedule.at(step)

    def gate_tensors(self, hidden_size: int, vocab_size: int) -> tuple[GateTensor, ...]:
        """The tensors of one layer's gate."""
        sizes = {"num_experts": self.num_experts, "top_k": self.top_k}
        return gate_tensors(self.gate, self.capacity, **sizes, hidden_size=hidden_size, vocab_size=vocab_size)


class ModelSpec(Spec):
    """The shape of one decoder; a family is a corner of this space with a name and a spelling of its own."""

    family: Family
    """Whose spelling its files have."""
    vocab_size: Annotated[int, Field(ge=1, le=1 << 20)]
    """Entries of the vocabulary."""
    hidden_size: Annotated[int, Field(ge=2, le=1 << 16)]
    """Width of the residual stream."""
    intermediate_size: Width
    """Width of a dense feed-forward."""
    num_hidden_layers: Annotated[int, Field(ge=1, le=512)]
    """Layers."""
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)]
    """Query heads of a layer."""
    num_key_value_heads: Annotated[int, Field(ge=1, le=1024)]
    """Heads of keys and values, which query heads share."""
    head_dim: Annotated[int, Field(ge=2, le=1024)]
    """Width of a query and of a key."""
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 24)]
    """The longest text, in tokens."""
    rms_norm_eps: Annotated[float, Field(gt=0.0, le=1e-2)] = 1e-5
    """What norms add below their root."""
    rope_theta: Annotated[float, Field(ge=1.0, le=1e9)] = 10_000.0
    """Base of the rotary frequencies."""
    rope: RopeSpec = RopeSpec()
    """How rotary frequencies are stretched."""
    attention: AttentionSpec = AttentionSpec()
    """What attention does beside the usual."""
    activation: Activation = "silu"
    """What stands between gate and up in a feed-forward."""
    swiglu_alpha: Annotated[float, Field(gt=0.0, le=100.0)] = 1.702
    """Of the clamped activation: what the gate is multiplied by inside the sigmoid."""
    swiglu_limit: Annotated[float, Field(gt=0.0, le=1e4)] = 7.0
    """Of the clamped activation: the bound on gate and up."""
    expert_clamps: Clamps = ()
    """Of the silu activation in experts, one bound a layer; () for none."""
    dense_clamps: Clamps = ()
    """The same in shared experts and dense feed-forwards."""
    zero_centred_norms: bool = False
    """Norms multiply by 1 + weight."""
    parallel_blocks: bool = False
    """Attention and feed-forward read the same normed input and are added together."""
    tie_word_embeddings: bool = False
    """Whether the output map is the embedding."""
    bos_token_id: TokenId | None = None
    """The token that begins a text."""
    eos_token_ids: Annotated[tuple[TokenId, ...], Field(max_length=16)] = ()
    """Tokens that end one."""
    moe: MoeSpec | None = None
    """Its experts; null for a dense model."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        own = self.attention.sliding
        for heads in (self.num_attention_heads, *(() if own is None else (own.num_attention_heads,))):
            if heads % self.num_key_value_heads:
                raise ValueError(
                    f"num_attention_heads ({heads}) must be divisible by "
                    f"num_key_value_heads ({self.num_key_value_heads})"
                )
        self._check_attention()
        self._check_packing()
        self._check_clamps()
        for token in (*self.eos_token_ids, *(() if self.bos_token_id is None else (self.bos_token_id,))):
            if token >= self.vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        self._check_family()
        return self

    def _check_family(self) -> None:
        if (self.family == "llama") != (self.moe is None):
            raise ValueError(f"family {self.family!r} {'must not' if self.moe else 'must'} have a moe part")
        if self.moe is None:
            return
        _check_layers("moe", self.moe.moe_layers, self.num_hidden_layers)
        if self.family == "mixtral" and not fits_mixtral(self):
            raise ValueError(
                "family 'mixtral' has experts of the full width in every layer, no shared expert, "
                "renormalised softmax top-k without capacity and temperature 1; use family 'turnout_moe'"
            )

    def _check_attention(self) -> None:
        _check_layers("sliding", self.attention.sliding_layers, self.num_hidden_layers)
        self._check_rotary()
        mla = self.attention.mla
        if mla is None:
            return
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError("latent attention has as many key-value heads as query heads")
        if self.zero_centred_norms:
            raise ValueError("latent attention has norms of its own, so zero_centred_norms must be false")
        if self.head_dim != mla.qk_nope_head_dim + mla.qk_rope_head_dim:
            raise ValueError(
                f"head_dim ({self.head_dim}) must be qk_nope_head_dim + qk_rope_head_dim "
                f"({mla.qk_nope_head_dim} + {mla.qk_rope_head_dim})"
            )

    def _check_packing(self) -> None:
        moe, kind = self.moe, self.attention
        if moe is None:
            return
        if moe.attention_quantisation is not None and (kind.mla is not None or kind.head_gate):
            raise ValueError(
                "attention_quantisation is not known for latent attention and gated heads; leave it null"
            )
        if moe.head_quantisation is not None and self.tie_word_embeddings:
            raise ValueError(
                "a packed head is no embedding: tie_word_embeddings must be false with head_quantisation"
            )

    def _check_rotary(self) -> None:
        if self.attention.mla is not None and self.rope.partial_rotary_factor != 1.0:
            raise ValueError("partial_rotary_factor must be 1 in latent attention, which has a rotary part")
        for turning in (self.rotary_dim, self.sliding_rotary_dim):
            if turning < 2 or turning % 2:
                raise ValueError(
                    f"head_dim ({self.head_dim}) has {turning} rotary values; they must be even, and at least 2"
                )

    def _check_clamps(self) -> None:
        for name in ("expert_clamps", "dense_clamps"):
            complaint = clamps_complaint(name, getattr(self, name), self.num_hidden_layers, self.activation)
            if complaint:
                raise ValueError(complaint)
        if self.expert_clamps and self.moe is not None and self.moe.expert_kinds is not None:
            raise ValueError("experts of different kinds have no expert_clamps")

    @property
    def rotary_dim(self) -> int:
        """How many values of each head carry positions."""
        mla = self.attention.mla
        return int(self.head_dim * self.rope.partial_rotary_factor) if mla is None else mla.qk_rope_head_dim

    @property
    def sliding_rotary_dim(self) -> int:
        """The same in the layers that see a window."""
        own = self.attention.sliding
        return self.rotary_dim if own is None else int(self.head_dim * own.partial_rotary_factor)

    @property
    def value_dim(self) -> int:
        """Width of one head's value."""
        mla = self.attention.mla
        return self.head_dim if mla is None else mla.v_head_dim

    @property
    def kept(self) -> Kept:
        """What a cache keeps of one token in one layer."""
        mla = self.attention.mla
        if mla is not None:
            return Kept(1, mla.kv_lora_rank + mla.qk_rope_head_dim, mla.kv_lora_rank, shares_keys=True)
        return Kept(self.num_key_value_heads, self.head_dim, self.head_dim)

    def num_heads_of(self, layer: int) -> int:
        """Query heads of a layer."""
        own = self.attention.sliding
        if own is None or layer not in self.attention.sliding_layers:
            return self.num_attention_heads
        return own.num_attention_heads

    def expert_clamp(self, layer: int) -> float:
        """The bound on the gating of a layer's experts; 0 for none."""
        return self.expert_clamps[layer] if self.expert_clamps else 0.0

    def dense_clamp(self, layer: int) -> float:
        """The bound on the gating of a layer's dense feed-forward or shared expert; 0 for none."""
        return self.dense_clamps[layer] if self.dense_clamps else 0.0

    def is_moe_layer(self, layer: int) -> bool:
        """True when the layer holds experts."""
        return self.moe is not None and layer in self.moe.moe_layers


def _check_layers(kind: str, layers: tuple[int, ...], num_layers: int) -> None:
    if layers and layers[-1] >= num_layers:
        raise ValueError(f"{kind} layer {layers[-1]} is outside the {num_layers} layers")
