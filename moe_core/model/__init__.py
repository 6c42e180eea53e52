"""One decoder for every family, and what it asks of its surroundings."""

from __future__ import annotations

from moe_core.model.attention import DenseCausal, GrowingSequence
from moe_core.model.context import AttentionContext, AttentionRule, RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.model.domain_prior import DomainPrior

__all__ = [
    "AttentionContext",
    "AttentionRule",
    "Decoder",
    "DenseCausal",
    "DomainPrior",
    "GrowingSequence",
    "RoutingContext",
]
