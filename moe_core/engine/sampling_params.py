"""How the next token of a request is chosen, and when its answer ends."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

from moe_core.errors import placed


@dataclass(frozen=True)
class SamplingParams:
    """What one answer asked for; the borders have checked the bounds.

    The order is vLLM's: bias and penalties change the scores, the temperature divides them, then min_p, top_k and
    top_p leave candidates out.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    # Tokens less likely than min_p times the likeliest are left out.
    min_p: float = 0.0
    seed: int = 0
    # Taken from the score of each token that the answer holds already: once, and once for each time.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # Divides the positive scores of tokens in prompt or answer, and multiplies the negative ones; 1 changes nothing.
    repetition_penalty: float = 1.0
    # Added to the scores of these tokens.
    logit_bias: tuple[tuple[int, float], ...] = ()
    # Neither an end token nor one of stop_token_ids is chosen before the answer has so many tokens.
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    # Go on after the model's own end token; for measurements.
    ignore_eos: bool = False
    # None for no log probabilities, 0 for the chosen token's alone, n for the n likeliest too.
    num_logprobs: int | None = None

    @cached_property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the scores of later ones."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @cached_property
    def edits_scores(self) -> bool:
        """Whether the model's scores are changed before a token is chosen."""
        return self.has_penalties or bool(self.logit_bias) or self.min_tokens > 0

    def check_tokens(self, vocab_size: int) -> None:
        """Raise SpecError for a token that is named and not in a vocabulary of so many."""
        biased = [token_id for token_id, _ in self.logit_bias]
        for field, token_ids in (("logit_bias", biased), ("stop_token_ids", self.stop_token_ids)):
            for token_id in token_ids:
                if not 0 <= token_id < vocab_size:
                    last = vocab_size - 1
                    raise placed(
                        field, f"{field} names token {token_id}; the vocabulary has tokens 0 to {last}"
                    )

    def of_choice(self, index: int) -> SamplingParams:
        """The same for answer `index` of several to one prompt: another seed, and the request's own for the first."""
        if index == 0:
            return self
        told = self.seed.to_bytes(8, "little", signed=True) + index.to_bytes(8, "little")
        digest = hashlib.blake2b(told, digest_size=8, person=b"choice").digest()
        return replace(self, seed=int.from_bytes(digest, "little", signed=True))
