"""Which blocks of keys and values a sequence need not compute, for others have."""

from __future__ import annotations

from moe_core.engine.block_pool import BLOCK_TOKENS, BlockPool
from moe_core.engine.sequence import Sequence


def reusable_blocks(sequence: Sequence, pool: BlockPool, fixed_chunk_tokens: int) -> list[int]:
    """The blocks that a sequence may begin with; in whole pieces where those are of `fixed_chunk_tokens`."""
    # A request that records its routing computes every token itself. The last token is always
    # computed: its logits are wanted.
    if sequence.routed_experts is not None:
        return []
    num_full = (len(sequence.token_ids) - 1) // BLOCK_TOKENS
    found = pool.find(sequence.block_hash(index) for index in range(num_full))
    if fixed_chunk_tokens:
        whole = fixed_chunk_tokens // BLOCK_TOKENS
        del found[len(found) // whole * whole :]
    if sequence.has_begun:
        # What was not counted is computed, and not taken from others: it would be neither counted nor told as reused.
        del found[sequence.num_counted_tokens // BLOCK_TOKENS :]
    return found
