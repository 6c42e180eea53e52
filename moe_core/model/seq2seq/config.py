"""What the configurations of encoder–decoder families share: keys that change nothing here, and reading sparse layers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from moe_core.model.families.neutral import without_effect
from moe_core.spec.base import Spec

Ids = int | list[int] | None
Layers = Field(ge=1, le=512)


class Seq2SeqConfig(Spec):
    """Keys of every family; those that would change the computation have one value only."""

    model_type: str
    vocab_size: int
    d_model: int
    num_experts: int = Field(ge=1, le=1024)
    expert_capacity: int = 64
    pad_token_id: int
    eos_token_id: Ids = None
    bos_token_id: int | None = None
    tie_word_embeddings: bool = True
    router_bias: bool = False
    is_encoder_decoder: Literal[True] = True
    is_decoder: Literal[False] = False
    add_cross_attention: bool = False
    # Gates are float32 here, whatever is said.
    router_dtype: str = "float32"
    # Of no effect on the computation, or on training only.
    encoder_sparse_step: int | None = None
    decoder_sparse_step: int | None = None
    router_z_loss_coef: float = 0.0
    router_aux_loss_coef: float = 0.0
    router_ignore_padding_tokens: bool = False
    output_router_logits: bool = False
    add_router_probs: bool = False
    use_cache: bool = True
    architectures: list[str] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    transformers_version: str | None = None
    name_or_path: str | None = Field(default=None, alias="_name_or_path")

    @model_validator(mode="before")
    @classmethod
    def _says_nothing(cls, data: Any) -> Any:
        return without_effect(data, cls.model_fields)

    def eos_ids(self) -> list[int]:
        """End tokens as a list."""
        eos = self.eos_token_id
        return eos if isinstance(eos, list) else [] if eos is None else [eos]


def one_or_many(ids: tuple[int, ...]) -> int | list[int] | None:
    """End tokens as config.json has them."""
    if not ids:
        return None
    return ids[0] if len(ids) == 1 else list(ids)


def common_keys(spec: Any, dtype: str) -> dict[str, Any]:
    """The keys of a specification that all families spell alike."""
    return {
        "dtype": dtype,
        "is_encoder_decoder": True,
        "vocab_size": spec.vocab_size,
        "d_model": spec.hidden_size,
        "num_experts": spec.num_experts,
        "expert_capacity": spec.expert_capacity,
        "pad_token_id": spec.pad_token_id,
        "eos_token_id": one_or_many(spec.eos_token_ids),
        "bos_token_id": spec.bos_token_id,
        "decoder_start_token_id": spec.decoder_start_token_id,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "router_bias": spec.gate.logit_bias,
        "router_dtype": "float32",
    }
