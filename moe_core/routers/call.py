"""What a gate may see besides its own tensors.

T tokens, D model width, E experts, K top_k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.errors import SpecError

# The tensors of one gate by the names of moe_core.spec.gate_tensors.
GateWeights = Mapping[str, Tensor]


@dataclass(slots=True, frozen=True)
class Floor:
    """The least share of the router's probability that a token's own experts get together."""

    # (T,) float32 in [0, 1); 0 asks for nothing.
    share_T: Tensor
    # (T, E) bool: the experts of the token's domain.
    mine_TE: Tensor


@dataclass(slots=True, frozen=True)
class GateCall:
    """One layer's question to its gate."""

    # (T, D), any floating dtype.
    hidden_TD: Tensor
    top_k: int
    norm_topk_prob: bool = True
    temperature: float = 1.0
    # The domain prior: (T, E) float32 added to the logits, may hold -inf; and a floor.
    bias_TE: Tensor | None = None
    floor: Floor | None = None
    # (E,) added to the scores that pick, never to weights.
    selection_bias_E: Tensor | None = None
    # (T, K) ids that replace the choice; masks and hidden twins leave them their weights.
    forced_TK: Tensor | None = None
    # (T,) int64: the vocabulary entry of each token (hash gates), and the sequence that it belongs to.
    token_ids_T: Tensor | None = None
    sequence_T: Tensor | None = None
    # (T,) bool: False for padding, which takes no place of an expert. None: all are real.
    real_T: Tensor | None = None
    # Whether gates explore, even out loads and apply the training capacity; chance comes from `rng` only.
    training: bool = False
    rng: torch.Generator | None = None
    # Experts of the layer, for a gate without a map to tell them by.
    num_experts: int | None = None
    # (T, E) float32 added to the logits beside the prior: what a tuning job explores with.
    noise_TE: Tensor | None = None
    # Whether the prior is known to leave every token top_k experts: then nobody looks for masked ones among the chosen.
    leaves_enough: bool = False

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise SpecError(f"temperature ({self.temperature}) must not be negative")
