"""The shape of an encoder–decoder with experts: Switch Transformers (T5) and NLLB-MoE (GShard) are corners of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moe_core.spec.base import LayerIndex, Spec
from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.expert_kinds import MlpExpert, PlainActivation, Width
from moe_core.spec.gate import GshardTop2, Switch
from moe_core.spec.model import MoeSpec, TokenId
from moe_core.spec.quantisation import ExpertQuantSpec

Seq2SeqFamily = Literal["switch_transformers", "nllb_moe"]
Count = Annotated[int, Field(ge=1, le=512)]


class StackSpec(Spec):
    """Encoder or decoder: its layers, which of them hold experts, and the width of every feed-forward in it."""

    num_layers: Count
    """Layers of the stack."""
    moe_layers: Annotated[tuple[LayerIndex, ...], Field(max_length=512)] = ()
    """Numbers of its layers that hold experts, ascending."""
    intermediate_size: Width
    """Width of every feed-forward, experts included."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.moe_layers) != sorted(set(self.moe_layers)):
            raise ValueError("moe_layers must be ascending and without repeats")
        if self.moe_layers and self.moe_layers[-1] >= self.num_layers:
            raise ValueError(f"moe layer {self.moe_layers[-1]} is outside the {self.num_layers} layers")
        return self


class Seq2SeqSpec(Spec):
    """One encoder–decoder: plain feed-forwards, cross attention, one gate for all expert layers."""

    family: Seq2SeqFamily
    """Whose checkpoints it reads and writes."""
    vocab_size: Annotated[int, Field(ge=1, le=1 << 20)]
    """Entries of the vocabulary, the same on both sides."""
    hidden_size: Annotated[int, Field(ge=4, le=1 << 16)]
    """Width of the residual stream."""
    num_heads: Annotated[int, Field(ge=1, le=1024)]
    """Heads of every attention."""
    head_dim: Annotated[int, Field(ge=1, le=1024)]
    """Numbers of a head."""
    encoder: StackSpec
    """What reads."""
    decoder: StackSpec
    """What writes."""
    norm: Literal["rms", "layer"]
    """Root-mean-square without bias (T5), or layer norms with one."""
    norm_eps: Annotated[float, Field(gt=0.0, le=1e-2)]
    """Added to the variance before its root is taken."""
    bias: bool
    """Biases on every map of attention and feed-forwards."""
    positions: Literal["relative", "sinusoidal"]
    """A learnt bias on the scores by distance (T5), or sines added to the embedding."""
    relative_buckets: Annotated[int, Field(ge=4, le=4096)] = 32
    """Of "relative": how many distances are told apart."""
    relative_max_distance: Annotated[int, Field(ge=4, le=1 << 20)] = 128
    """Of "relative": distances from here on are one."""
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 24)] = 1024
    """Of "sinusoidal": positions that there are sines for."""
    scale_embedding: bool = False
    """Embeddings times √D."""
    activation: PlainActivation = "relu"
    """Between the two maps of a feed-forward."""
    tie_word_embeddings: bool = True
    """The output map is the embedding."""
    num_experts: Annotated[int, Field(ge=1, le=1024)]
    """Experts of every layer that holds any."""
    top_k: Annotated[int, Field(ge=1, le=2)]
    """Experts of a token."""
    gate: Annotated[Switch | GshardTop2, Field(discriminator="kind")]
    """How tokens find their experts, in all expert layers."""
    capacity: CapacitySpec | None = None
    """How full experts may be; null: as full as they get."""
    capacity_per_sequence: bool = False
    """Capacity counts the tokens of each sequence by itself."""
    expert_output_scale: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """On what experts give, for a model that learnt with so many of them left out (NLLB's masking of expert outputs)."""
    quantisation: ExpertQuantSpec | None = None
    """How experts are packed; null: they lie in the dtype of the model."""
    expert_capacity: Annotated[int, Field(ge=1, le=1 << 20)] = 64
    """Tokens of an expert while training, as the family writes it."""
    pad_token_id: TokenId
    """The token of padding."""
    eos_token_ids: Annotated[tuple[TokenId, ...], Field(max_length=16)] = ()
    """Tokens that end an answer."""
    bos_token_id: TokenId | None = None
    """The token that begins a text; null for none."""
    decoder_start_token_id: TokenId
    """What the decoder is given first."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for token in (self.pad_token_id, self.decoder_start_token_id, *self.eos_token_ids):
            if token >= self.vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        if self.hidden_size % 2 and self.positions == "sinusoidal":
            raise ValueError(f"hidden_size ({self.hidden_size}) must be even for sinusoidal positions")
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance ({self.relative_max_distance}) must exceed half of relative_buckets "
                f"({self.relative_buckets})"
            )
        for stack in (self.encoder, self.decoder):
            if stack.moe_layers:
                self.moe_of(stack)
        return self

    def moe_of(self, stack: StackSpec) -> MoeSpec:
        """The expert part of one stack."""
        return MoeSpec(
            moe_layers=stack.moe_layers,
            num_experts=self.num_experts,
            top_k=self.top_k,
            moe_intermediate_size=stack.intermediate_size,
            gate=self.gate,
            capacity=self.capacity,
            expert_kinds=(self.expert_of(stack),) * self.num_experts,
        )

    def expert_of(self, stack: StackSpec) -> MlpExpert:
        """What every expert of a stack is."""
        return MlpExpert(width=stack.intermediate_size, activation=self.activation, bias=self.bias)
