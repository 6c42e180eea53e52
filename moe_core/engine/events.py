"""What the engine tells about a sequence, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from moe_core.engine.sampler import TokenLogprob
from moe_core.engine.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class Started:
    """The sequence left the queue."""

    sequence_id: int
    num_prompt_tokens: int
    num_reused_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens, and the text that may be shown now; either may run ahead of the other."""

    sequence_id: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The sequence ended as it should; its blocks are free."""

    sequence_id: int
    reason: FinishReason
    num_prompt_tokens: int
    num_reused_tokens: int
    num_output_tokens: int
    timing_ms: dict[str, float | None] = field(default_factory=dict)
    # Of all layers, as `RoutedExperts.encoded` writes them.
    routed_experts: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The sequence could not go on; its blocks are free. Codes: queue_timeout, not_finite,
    no_way_on, engine_failure, draining."""

    sequence_id: int
    code: str
    message: str


Event = Started | Delta | Done | Failed
