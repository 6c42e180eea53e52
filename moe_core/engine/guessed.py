"""What a step with guesses says: of each chunk the guesses that were right, and the token after them.

Shapes: B rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from torch import Tensor

from moe_core.engine.sampler import Sample, likeliest, sample_ahead
from moe_core.engine.scheduler import Chunk


def said_after(
    chunks: Rows[Chunk], logits_BV: Tensor, best_B: Rows[int] | None
) -> list[tuple[Chunk, list[Sample]]]:
    """Each chunk with the tokens that the model says in the places of its guesses, up to the first that it says otherwise,
    or where all are right the one after the last; none after a piece of a prompt. `best_B`: as `sample` wants it.

    A draw hangs on the request's seed and the token's place alone: so these are the tokens of steps of one token.
    """
    if best_B is None:
        logits_BV = logits_BV.float()
        best_B = likeliest(logits_BV)
    told, row = [], 0
    for chunk in chunks:
        samples: list[Sample] = []
        if chunk.wants_sample:
            for ahead, guess in enumerate((*chunk.drafts, None)):
                one = sample_ahead(logits_BV, row + ahead, chunk.sequence, best_B[row + ahead], ahead)
                samples.append(one)
                if one.token_id != guess:
                    break
            row += 1 + len(chunk.drafts)
        told.append((chunk, samples))
    return told
