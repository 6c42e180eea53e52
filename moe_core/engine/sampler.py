"""Chooses next tokens: greedy exactly at temperature 0, else by a number that depends on the request's seed alone.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.score_edits import ScoreEdits
from moe_core.engine.sequence import Sequence
from moe_core.errors import EngineError

# Below this the division would overflow before it changed the choice.
MIN_TEMPERATURE = 1e-5
# Nucleus sampling looks at so many candidates first, and sorts the whole vocabulary only when they fall short.
NUCLEUS_CANDIDATES = (512, 8192)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token's log probability before temperature and filters, and the likeliest tokens with theirs."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


# Not frozen, like Chunk.
@dataclass(slots=True)
class Sample:
    """The next token of one sequence; without one, `failure` says why in a code and a sentence."""

    token_id: int | None
    logprob: TokenLogprob | None = None
    failure: tuple[str, str] = ("", "")


NOT_FINITE = Sample(
    None, None, ("not_finite", "the model's output is not finite; the version or its precision is at fault")
)


def sample(logits_BV: Tensor, sequences: Rows[Sequence]) -> list[Sample]:
    """One token for each row; a row's choice is the same whatever the other rows are."""
    logits_BV = logits_BV.float()
    best_B = logits_BV.argmax(-1).tolist()
    # One sum finds NaN and infinity anywhere in a row.
    finite_B = torch.isfinite(logits_BV.sum(-1)).tolist()
    samples = []
    for row, sequence in enumerate(sequences):
        if not finite_B[row]:
            samples.append(NOT_FINITE)
            continue
        params, token_id = sequence.sampling, best_B[row]
        if sequence.score_edits is not None:
            samples.append(_sample_edited(logits_BV[row], sequence, sequence.score_edits))
            continue
        if params.temperature >= MIN_TEMPERATURE:
            token_id = draw(logits_BV[row], params, uniform(params.seed, sequence.num_output_tokens))
        samples.append(Sample(token_id, _logprob(logits_BV[row], token_id, params.num_logprobs)))
    return samples


def _sample_edited(logits_V: Tensor, sequence: Sequence, edits: ScoreEdits) -> Sample:
    """The same where a request changes the scores first; log probabilities stay those of the model."""
    params = sequence.sampling
    # Edits, those of grammars above all, are made on the host.
    logits_V = logits_V.cpu()
    try:
        scores_V = edits.applied(logits_V)
    except EngineError as error:
        return Sample(None, None, ("no_way_on", str(error)))
    if params.temperature >= MIN_TEMPERATURE:
        token_id = draw(scores_V, params, uniform(params.seed, sequence.num_output_tokens))
    else:
        token_id = int(scores_V.argmax())
    return Sample(token_id, _logprob(logits_V, token_id, params.num_logprobs))


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that decides output token `position` of a request: a counter-based generator."""
    digest = hashlib.blake2b(
        seed.to_bytes(8, "little", signed=True) + position.to_bytes(8, "little"), digest_size=8
    ).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def draw(logits_V: Tensor, params: SamplingParams, drawn: float) -> int:
    """The token at quantile `drawn` of the distribution after temperature, then min-p, top-k, top-p."""
    scores_V = logits_V.double() / params.temperature
    if params.min_p > 0.0:
        scores_V.masked_fill_(scores_V < scores_V.max() + math.log(params.min_p), -torch.inf)
    if params.top_k == 0 and params.top_p >= 1.0:
        return _at_quantile(torch.softmax(scores_V, -1), drawn)
    ids, probs = _candidates(scores_V, params)
    before = probs.cumsum(0) - probs
    kept = before < params.top_p
    kept[0] = True
    return int(ids[_at_quantile(probs[kept], drawn)])


def _candidates(scores_V: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Token ids and probabilities, likeliest first, that top-p chooses from."""
    num_tokens = scores_V.numel()
    if params.top_k:
        scores, ids = scores_V.topk(min(params.top_k, num_tokens))
        return ids, torch.softmax(scores, -1)
    total = torch.logsumexp(scores_V, -1)
    for num_candidates in NUCLEUS_CANDIDATES:
        scores, ids = scores_V.topk(min(num_candidates, num_tokens))
        probs = torch.exp(scores - total)
        if float(probs.sum()) >= params.top_p:
            return ids, probs
    scores, ids = scores_V.sort(descending=True, stable=True)
    return ids, torch.exp(scores - total)


def _at_quantile(probs: Tensor, drawn: float) -> int:
    mass = probs.cumsum(0)
    # A place without probability is never chosen: a step of the sum belongs to the token that makes it.
    place = torch.searchsorted(
        mass, (mass[-1] * drawn).clamp(max=torch.nextafter(mass[-1], mass[0])), right=True
    )
    return min(int(place), probs.numel() - 1)


def _logprob(logits_V: Tensor, token_id: int, num_logprobs: int | None) -> TokenLogprob | None:
    if num_logprobs is None:
        return None
    logprobs_V = torch.log_softmax(logits_V, -1)
    top: tuple[tuple[int, float], ...] = ()
    if num_logprobs:
        values, ids = logprobs_V.topk(min(num_logprobs, logprobs_V.numel()))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs_V[token_id]), top)
