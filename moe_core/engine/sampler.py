"""Chooses next tokens: greedy exactly at temperature 0, else by a number that depends on the request's seed alone.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.score_edits import ScoreEdits
from moe_core.engine.sequence import Sequence
from moe_core.errors import EngineError
from moe_core.kernels.cpu.native import library

logger = logging.getLogger(__name__)

# Below this the division would overflow before it changed the choice.
MIN_TEMPERATURE = 1e-5
# Top-k and top-p look first at tokens so likely, relative to the likeliest, and at all only when these fall short.
CANDIDATE_FLOORS = (1e-2, 1e-4, 1e-6)
# Weights that are added up together when a whole vocabulary is searched.
BLOCK = 256
Weights = NDArray[np.float32]


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


def sample(logits_BV: Tensor, sequences: Rows[Sequence], best_B: Rows[int] | None = None) -> list[Sample]:
    """One token for each row; a row's choice is the same whatever the other rows are.

    `best_B` is the likeliest token of each row, -1 where it is not finite, for who knows it of float32 logits.
    """
    if best_B is None:
        logits_BV = logits_BV.float()
        best_B = likeliest(logits_BV)
    return [sample_ahead(logits_BV, row, sequence, best_B[row]) for row, sequence in enumerate(sequences)]


def sample_ahead(logits_BV: Tensor, row: int, sequence: Sequence, best: int, ahead: int = 0) -> Sample:
    """The token of one row of float32 logits, `ahead` places after the sequence's next one; `best` is the likeliest."""
    params, token_id = sequence.sampling, best
    if token_id < 0:
        return NOT_FINITE
    if sequence.score_edits is not None:
        return _sample_edited(logits_BV[row], sequence, sequence.score_edits)
    if params.temperature >= MIN_TEMPERATURE:
        token_id = draw(logits_BV[row], params, uniform(params.seed, sequence.num_output_tokens + ahead))
    # A row is taken out only where it is looked at: that takes as long as all else that a greedy token needs here.
    if params.num_logprobs is None:
        return Sample(token_id)
    return Sample(token_id, _logprob(logits_BV[row], token_id, params.num_logprobs))


def likeliest(logits_BV: Tensor) -> Rows[int]:
    """The likeliest token of each row, or -1 where not all of it is finite."""
    native = library()
    if native is None or logits_BV.device.type != "cpu" or not logits_BV.is_contiguous():
        # One sum finds NaN and infinity anywhere.
        best_B: list[int] = logits_BV.argmax(-1).where(torch.isfinite(logits_BV.sum(-1)), -1).tolist()
        return best_B
    found_B = array("q", bytes(8 * len(logits_BV)))
    native.largest(logits_BV.data_ptr(), *logits_BV.shape, found_B.buffer_info()[0])
    return found_B


def _sample_edited(logits_V: Tensor, sequence: Sequence, edits: ScoreEdits) -> Sample:
    """The same where a request changes the scores first; log probabilities stay those of the model."""
    params = sequence.sampling
    # Edits, those of grammars above all, are made on the host.
    logits_V = logits_V.cpu()
    try:
        scores_V = edits.applied(logits_V)
    except EngineError as error:
        return Sample(None, None, ("no_way_on", str(error)))
    except Exception as error:
        # What one request asks for must not end the answers of all.
        logger.exception("request %s could not be sampled", sequence.request_id)
        return Sample(
            None, None, ("sampling_failed", f"the scores could not be edited as asked: {error!r}"[:300])
        )
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
    """The token at quantile `drawn` of the distribution after temperature, then min-p, top-k, top-p.

    On the host: its few passes over a row take less than launching as many operations elsewhere.
    """
    scores_V = logits_V.detach().cpu().numpy().astype(np.float32, copy=False)
    # Relative to the likeliest token, so that nothing overflows; probabilities once they are divided by their sum.
    weights_V: Weights = np.exp((scores_V - scores_V.max()) / np.float32(params.temperature))
    if params.min_p > 0.0:
        weights_V[weights_V < params.min_p] = 0.0
    if params.top_k == 0 and params.top_p >= 1.0:
        return _at_quantile(weights_V, drawn)
    ids, weights = _candidates(weights_V, params)
    total = weights.sum() if params.top_k else weights_V.sum(dtype=np.float64)
    before = weights.cumsum() - weights
    kept = before < params.top_p * total
    kept[0] = True
    return int(ids[_at_quantile(weights[kept], drawn)])


def _candidates(weights_V: Weights, params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tokens and their weights, likeliest first, that hold the k likeliest, or the mass that top-p chooses from."""
    wanted = params.top_p * float(weights_V.sum(dtype=np.float64))
    for floor in (*CANDIDATE_FLOORS, 0.0):
        # All above a floor come before all below it: only they have to be sorted.
        ids = np.flatnonzero(weights_V > floor)
        if len(ids) >= params.top_k if params.top_k else weights_V[ids].sum(dtype=np.float64) >= wanted:
            break
    if 0 < params.top_k < len(ids) // 4:
        ids = np.sort(ids[np.argpartition(weights_V[ids], -params.top_k)[-params.top_k :]])
    weights = weights_V[ids]
    order = np.argsort(-weights, kind="stable")[: params.top_k or None]
    return ids[order], weights[order].astype(np.float64)


def _at_quantile(weights_N: NDArray[Any], drawn: float) -> int:
    """The place at which the sum of weights passes `drawn` of it all; never one without weight."""
    if len(weights_N) > 2 * BLOCK:
        # Sums of blocks first: adding up one by one is slow, and needed in one block alone.
        starts = range(0, len(weights_N), BLOCK)
        whole = weights_N[: len(weights_N) // BLOCK * BLOCK].reshape(-1, BLOCK).sum(1)
        sums = np.append(whole, weights_N[len(whole) * BLOCK :].sum())[: len(starts)]
        block, left = _passed(sums, drawn * float(sums.sum(dtype=np.float64)))
        inside, _ = _passed(weights_N[block * BLOCK : (block + 1) * BLOCK], left)
        return block * BLOCK + inside
    return _passed(weights_N, drawn * float(weights_N.sum(dtype=np.float64)))[0]


def _passed(weights_N: NDArray[Any], wanted: float) -> tuple[int, float]:
    """Where the running sum passes `wanted`, and what was left to go there; at the end the last place with weight."""
    mass_N = weights_N.cumsum(dtype=np.float64)
    place = int(np.searchsorted(mass_N, wanted, side="right"))
    if place == len(weights_N):
        place = int(np.flatnonzero(weights_N)[-1])
    return place, max(0.0, wanted - float(mass_N[place - 1]) if place else wanted)


def _logprob(logits_V: Tensor, token_id: int, num_logprobs: int | None) -> TokenLogprob | None:
    if num_logprobs is None:
        return None
    logprobs_V = torch.log_softmax(logits_V, -1)
    top: tuple[tuple[int, float], ...] = ()
    if num_logprobs:
        values, ids = logprobs_V.topk(min(num_logprobs, logprobs_V.numel()))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs_V[token_id]), top)
