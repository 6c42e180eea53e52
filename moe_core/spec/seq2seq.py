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
    moe_layers: Annotated[tuple[LayerIndex, ...], Field(max_length=512)] = ()
    intermediate_size: Width

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
    vocab_size: Annotated[int, Field(ge=1, le=1 << 20)]
    hidden_size: Annotated[int, Field(ge=4, le=1 << 16)]
    num_heads: Annotated[int, Field(ge=1, le=1024)]
    head_dim: Annotated[int, Field(ge=1, le=1024)]
    encoder: StackSpec
    decoder: StackSpec
    # Root-mean-square without bias (T5), or layer norms with one.
    norm: Literal["rms", "layer"]
    norm_eps: Annotated[float, Field(gt=0.0, le=1e-2)]
    # On every map of attention and feed-forwards.
    bias: bool
    # A learnt bias on the scores by distance (T5), or sines added to the embedding.
    positions: Literal["relative", "sinusoidal"]
    relative_buckets: Annotated[int, Field(ge=4, le=4096)] = 32
    relative_max_distance: Annotated[int, Field(ge=4, le=1 << 20)] = 128
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 24)] = 1024
    # Embeddings times √D.
    scale_embedding: bool = False
    activation: PlainActivation = "relu"
    tie_word_embeddings: bool = True
    num_experts: Annotated[int, Field(ge=1, le=1024)]
    top_k: Annotated[int, Field(ge=1, le=2)]
    gate: Annotated[Switch | GshardTop2, Field(discriminator="kind")]
    capacity: CapacitySpec | None = None
    # Capacity counts the tokens of each sequence by itself.
    capacity_per_sequence: bool = False
    # On what experts give, for a model that learnt with so many of them left out (NLLB's masking of expert outputs).
    expert_output_scale: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    # None: experts lie in the dtype of the model.
    quantisation: ExpertQuantSpec | None = None
    # Tokens of an expert while training, as the family writes it.
    expert_capacity: Annotated[int, Field(ge=1, le=1 << 20)] = 64
    pad_token_id: TokenId
    eos_token_ids: Annotated[tuple[TokenId, ...], Field(max_length=16)] = ()
    bos_token_id: TokenId | None = None
    decoder_start_token_id: TokenId

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
