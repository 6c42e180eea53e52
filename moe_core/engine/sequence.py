"""One request on its way through the engine: its tokens, its blocks and how far it has come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from moe_core.engine.block_pool import BLOCK_TOKENS, chain_hash, chain_start
from moe_core.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from moe_core.engine.detokenizer import Detokenizer
    from moe_core.engine.routed_experts import RoutedExperts
    from moe_core.engine.score_edits import ScoreEdits


class SequenceState(StrEnum):
    """Where a sequence is."""

    # Its first answer computes the prompt that they share.
    HELD = "held"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence ended, in OpenAI's words where it has them."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(eq=False, slots=True)
class Sequence:
    """Prompt and output tokens with what is known about them; `token_ids` grows as the engine samples."""

    id: int
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    detokenizer: Detokenizer
    # -1: no domain. It decides the routing prior, hence the keys and values, hence what may be shared.
    domain: int = -1
    cache_salt: str = ""
    # Whose share of the engine it takes, and which of that key's requests go first: the lower number.
    fair_key: str = ""
    priority: int = 0
    # The answer to the same prompt whose blocks this one waits to share; 0 for none.
    leader_id: int = 0
    routed_experts: RoutedExperts | None = None
    # None where the request takes the model's scores as they are.
    score_edits: ScoreEdits | None = None
    arrived_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    state: SequenceState = SequenceState.WAITING
    cancelled: bool = False
    block_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_reused_tokens: int = 0
    # Tokens before this position were routed once for this request already: after a preemption
    # they are computed again, but a token is counted once.
    num_counted_tokens: int = 0
    num_preemptions: int = 0
    # When another that came later in the order was first taken before it.
    overtaken_at_step: int | None = None
    # The step in which a shorter one of its key first took a turn that would have been its own.
    passed_at_step: int | None = None
    _hashes: list[bytes] = field(default_factory=list)

    @property
    def num_output_tokens(self) -> int:
        """How many tokens were sampled."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_missing_tokens(self) -> int:
        """How many tokens wait to be computed; one while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether only the newest sampled token is missing."""
        return self.num_missing_tokens == 1 and self.num_output_tokens > 0

    @property
    def has_begun(self) -> bool:
        """Whether any of its tokens was computed for it, and not for another before."""
        return self.num_counted_tokens > self.num_reused_tokens

    def timing_ms(self) -> dict[str, float | None]:
        """Milliseconds since it arrived: until it left the queue, until its first token, until now."""
        moments = {
            "queue_ms": self.started_at,
            "first_token_ms": self.first_token_at,
            "total_ms": time.monotonic(),
        }
        return {
            name: None if moment is None else round((moment - self.arrived_at) * 1000, 2)
            for name, moment in moments.items()
        }

    def block_hash(self, index: int) -> bytes:
        """The chain hash of the full block `index`."""
        while len(self._hashes) <= index:
            start = len(self._hashes) * BLOCK_TOKENS
            parent = (
                self._hashes[-1] if self._hashes else chain_start(f"{self.domain}:{self.cache_salt}".encode())
            )
            self._hashes.append(chain_hash(parent, self.token_ids[start : start + BLOCK_TOKENS]))
        return self._hashes[index]


def num_blocks_for(num_tokens: int) -> int:
    """How many blocks hold `num_tokens`."""
    return -(-num_tokens // BLOCK_TOKENS)
