"""What a request changes in the model's scores before a token is chosen: bias, penalties, a grammar.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from moe_core.engine.sampling_params import SamplingParams
from moe_core.errors import EngineError


class TokenMatcher(Protocol):
    """A grammar and how far an answer has come in it."""

    def forbid(self, scores_V: Tensor) -> None:
        """Set the scores of the tokens that may not follow to -inf, in place.

        Raises:
            EngineError: when the grammar has no way on.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Note a chosen token."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow."""
        ...


class ScoreEdits:
    """The edits of one answer. `token_ids`, prompt and answer, is the sequence's own growing list."""

    def __init__(
        self,
        params: SamplingParams,
        token_ids: Sequence[int],
        *,
        vocab_size: int,
        end_ids: Collection[int],
        matcher: TokenMatcher | None = None,
    ) -> None:
        self.matcher = matcher
        self._params = params
        self._token_ids = token_ids
        self._num_prompt_tokens = self._num_noted = len(token_ids)
        ids = [token_id for token_id, _ in params.logit_bias]
        self._bias_ids, self._bias = torch.tensor(ids), torch.tensor([bias for _, bias in params.logit_bias])
        # A tokenizer may have more tokens than the model.
        ends = {
            one
            for one in (*params.stop_token_ids, *(() if params.ignore_eos else end_ids))
            if one < vocab_size
        }
        self._end_ids = torch.tensor(sorted(ends), dtype=torch.int64)
        self._counts_V = torch.zeros(vocab_size if params.has_penalties else 0)
        self._seen_V = torch.zeros(self._counts_V.shape[0], dtype=torch.bool)
        if params.has_penalties:
            self._seen_V[torch.tensor(list(token_ids))] = True

    @property
    def is_complete(self) -> bool:
        """Whether the grammar, if there is one, lets nothing but the end follow."""
        return self.matcher is not None and self.matcher.is_complete

    def advance(self, token_id: int) -> None:
        """Note a chosen token."""
        if self.matcher is not None:
            self.matcher.advance(token_id)

    def applied(self, logits_V: Tensor) -> Tensor:
        """The edited scores, float32 (V,); `logits_V` is left as it is.

        Raises:
            EngineError: when the grammar has no way on.
        """
        scores_V = logits_V.clone()
        if self._params.logit_bias:
            scores_V[self._bias_ids] += self._bias
        if self._params.has_penalties:
            self._penalise(scores_V)
        if len(self._token_ids) - self._num_prompt_tokens < self._params.min_tokens:
            scores_V[self._end_ids] = -torch.inf
        if self.matcher is not None:
            self.matcher.forbid(scores_V)
        if bool((scores_V == -torch.inf).all()):
            raise EngineError("no token may follow: min_tokens bars every token that the grammar allows")
        return scores_V

    def _penalise(self, scores_V: Tensor) -> None:
        for token_id in self._token_ids[self._num_noted :]:
            self._counts_V[token_id] += 1.0
            self._seen_V[token_id] = True
        self._num_noted = len(self._token_ids)
        params = self._params
        if params.repetition_penalty != 1.0:
            factor = params.repetition_penalty
            damped_V = torch.where(scores_V > 0, scores_V / factor, scores_V * factor)
            torch.where(self._seen_V, damped_V, scores_V, out=scores_V)
        if params.frequency_penalty:
            scores_V.sub_(self._counts_V, alpha=params.frequency_penalty)
        if params.presence_penalty:
            scores_V.sub_(self._counts_V.clamp(max=1.0), alpha=params.presence_penalty)
