"""The paged key/value memory as numbered blocks: who holds which, and prefixes found again by their hash chain."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from moe_core.spec.serve import BLOCK_TOKENS as BLOCK_TOKENS

# Padding in a gathered batch reads this block: it stays zero for ever and belongs to no sequence.
NULL_BLOCK = 0


def chain_start(salt: bytes) -> bytes:
    """The hash before a sequence's first block; sequences with different salts never share a block."""
    return hashlib.blake2b(salt, digest_size=32).digest()


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash of a full block: of its own tokens and, through `parent`, of all before it."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=32).digest()


class BlockPool:
    """Who holds which block, and which blocks still hold a prefix worth finding."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks ({num_blocks}) must be at least 2: one of them is kept for padding")
        self.num_blocks = num_blocks
        self._num_holders = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        # Least recently freed first; a free block keeps its contents until it is handed out again.
        self._free = OrderedDict.fromkeys(block for block in range(num_blocks) if block != NULL_BLOCK)

    @property
    def num_free(self) -> int:
        """How many blocks no sequence holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """How many blocks are held by at least one sequence."""
        return self.num_blocks - 1 - len(self._free)

    def allocate(self) -> int:
        """Hand out the least recently used free block; its old contents can no longer be found.

        Raises:
            IndexError: when no block is free; callers look at `num_free` first.
        """
        if not self._free:
            raise IndexError(f"all {self.num_blocks - 1} blocks are held")
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._num_holders[block] = 1
        return block

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest known run of `hashes`, from the first; nothing is held by asking."""
        found: list[int] = []
        for digest in hashes:
            block = self._by_hash.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` no sequence holds now, and would leave the free list when held."""
        return sum(block in self._free for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        """Add one holder to each of `blocks`."""
        for block in blocks:
            self._num_holders[block] += 1
            self._free.pop(block, None)

    def release(self, blocks: Sequence[int]) -> None:
        """Take one holder from each of a sequence's `blocks`, given in order; the tail is forgotten before the head."""
        for block in reversed(blocks):
            self._num_holders[block] -= 1
            if self._num_holders[block] > 0:
                continue
            if self._num_holders[block] < 0:
                raise RuntimeError(f"block {block} was released more often than it was held")
            self._free[block] = None
            if self._hash_of[block] is None:
                self._free.move_to_end(block, last=False)

    def remember(self, block: int, digest: bytes) -> None:
        """Let later sequences find the full `block` by `digest`; the first block with a digest keeps it."""
        if digest not in self._by_hash and self._hash_of[block] is None:
            self._by_hash[digest] = block
            self._hash_of[block] = digest

    def forget_all(self) -> None:
        """Drop every remembered prefix; held blocks stay held."""
        self._by_hash.clear()
        self._hash_of = [None] * self.num_blocks

    def _forget(self, block: int) -> None:
        digest = self._hash_of[block]
        if digest is not None:
            del self._by_hash[digest]
            self._hash_of[block] = None
