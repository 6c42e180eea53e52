"""What a decoder asks of its surroundings: where attention keeps keys and values, and what routers may see.

Shapes: T tokens, E experts, K top_k, N domains, L expert layers, H query heads, G key-value heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moe_core.model.domain_prior import DomainPrior
from moe_core.routers import Floor, GateCall, Routing
from moe_core.spec import CapacitySpec, MoeSpec
from moe_core.spec.twins import TwinsSpec


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """How one layer attends."""

    # On the scores, before the softmax.
    scale: float
    # How many tokens are seen, the newest included; None for all before.
    window: int | None = None
    # (H,) a score a head that takes part in the softmax and carries no value.
    sinks_H: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """True when every earlier token is seen and nothing else takes part."""
        return self.window is None and self.sinks_H is None


class AttentionContext(Protocol):
    """Attends, and keeps keys and values wherever it likes."""

    @property
    def keeps_latents(self) -> bool:
        """Whether latent attention should give its latent as the one key-value head, to be kept."""
        ...

    def attend(self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, rule: AttentionRule) -> Tensor:
        """Attention of one layer: (T, H, e) out of rotated queries and keys; values may have a width of their own."""
        ...


@dataclass(slots=True)
class RoutingContext:
    """Everything that the routers may see or tell, besides the hidden state."""

    domain_T: Tensor | None = None
    prior: DomainPrior | None = None
    observe: Callable[[int, Routing], None] | None = None
    # Ids forced on every expert layer, (T, K); weights stay the router's own, renormalised over them.
    forced_TK: Tensor | None = None
    # Added to the score that picks experts, not to their weights: (L, E), for balancing.
    selection_bias_LE: Tensor | None = None
    # (T,) int64: vocabulary entries (hash gates), and the sequence of each token (gates that mix the tokens of one).
    token_ids_T: Tensor | None = None
    sequence_T: Tensor | None = None
    # (T,) bool: False for padding, which takes no place of an expert.
    real_T: Tensor | None = None
    # Whether gates explore and even out loads; chance comes from `rng`, and without one there is none.
    training: bool = False
    rng: torch.Generator | None = None
    # Where the temperature's schedule stands; None is where the model's specification says.
    step: int | None = None
    # While training: standard deviation of normal noise on the logits, and a capacity in the place of the model's.
    noise: float = 0.0
    capacity: CapacitySpec | None = None
    # While training: the hold on twins in the place of the model's.
    twin_hold: float | None = None

    def call(self, moe: MoeSpec, moe_index: int, x_TD: Tensor) -> GateCall:
        """The question to the gate of one expert layer (counted among expert layers)."""
        return GateCall(
            x_TD,
            moe.top_k,
            moe.norm_topk_prob,
            moe.temperature_at(self.step),
            self.bias_for(moe_index),
            self.floor_for(moe_index),
            selection_bias_E=self.selection_bias_for(moe_index),
            forced_TK=self.forced_TK,
            token_ids_T=self.token_ids_T,
            sequence_T=self.sequence_T,
            real_T=self.real_T,
            training=self.training,
            rng=self.rng,
            num_experts=moe.num_experts,
            noise_TE=self._noise(x_TD, moe.num_experts),
            # A domain prior that leaves a token fewer is refused when it is made.
            leaves_enough=True,
        )

    def rule(self, moe: MoeSpec) -> MoeSpec:
        """The expert part with this call's capacity and hold on twins."""
        if not self.training:
            return moe
        update: dict[str, CapacitySpec | TwinsSpec] = {}
        if self.capacity is not None:
            update["capacity"] = self.capacity
        if self.twin_hold is not None and moe.twins is not None:
            update["twins"] = moe.twins.model_copy(update={"hold": self.twin_hold})
        return moe.model_copy(update=update) if update else moe

    def _noise(self, x_TD: Tensor, num_experts: int) -> Tensor | None:
        if not (self.training and self.noise and self.rng is not None):
            return None
        return self.noise * torch.randn(x_TD.shape[0], num_experts, generator=self.rng, device=x_TD.device)

    def bias_for(self, moe_index: int) -> Tensor | None:
        """The prior's bias for one expert layer, or None when there is nothing to add."""
        if self.prior is None or self.domain_T is None or not self.prior.has_bias:
            return None
        return self.prior.rows(moe_index, self.domain_T)

    def floor_for(self, moe_index: int) -> Floor | None:
        """The prior's floor in one expert layer, or None where no domain has one."""
        if self.prior is None or self.domain_T is None:
            return None
        return self.prior.floor(moe_index, self.domain_T)

    def selection_bias_for(self, moe_index: int) -> Tensor | None:
        """The balancing bias of one expert layer, or None."""
        return None if self.selection_bias_LE is None else self.selection_bias_LE[moe_index]
