"""A router's decision for a batch of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, frozen=True)
class Routing:
    """Which experts each token goes to, with what weight, and the scores behind the choice.

    T tokens, E experts, K top_k.
    """

    # (T, K) int64, best first, no expert twice.
    expert_ids_TK: Tensor
    # (T, K) float32, the factor on each expert's output.
    weights_TK: Tensor
    # (T, E) float32, what the softmax saw: after temperature and prior.
    logits_TE: Tensor
    # (T, E) float32, softmax over all experts.
    probs_TE: Tensor
