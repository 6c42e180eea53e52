"""Blocks are conserved, and a prefix is found only by the chain that wrote it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moe_core.engine.block_pool import NULL_BLOCK, BlockPool, chain_hash, chain_start


def chain(*blocks: list[int], salt: bytes = b"") -> list[bytes]:
    hashes = [chain_start(salt)]
    for block in blocks:
        hashes.append(chain_hash(hashes[-1], block))
    return hashes[1:]


def test_a_chain_depends_on_everything_before_it_and_on_the_salt() -> None:
    same = chain([1], [2])
    assert chain([1], [2]) == same
    assert chain([3], [2])[1] != same[1]
    assert chain([1], [2], salt=b"other")[1] != same[1]
    assert len({*chain([1, 2], [3]), *chain([1], [2, 3])}) == 4


def test_a_freed_prefix_is_found_until_its_block_is_handed_out_again() -> None:
    pool = BlockPool(4)
    first, second = chain([1], [2])
    blocks = [pool.allocate(), pool.allocate()]
    pool.remember(blocks[0], first)
    pool.remember(blocks[1], second)
    pool.release(blocks)
    assert pool.find([first, second]) == blocks
    # The block that was never used goes first, then the tail of the chain, then its head.
    assert pool.allocate() not in blocks
    assert pool.allocate() == blocks[1]
    assert pool.find([first, second]) == blocks[:1]
    pool.allocate()
    assert pool.find([first]) == []


def test_releasing_twice_is_an_error() -> None:
    pool = BlockPool(3)
    block = pool.allocate()
    pool.release([block])
    with pytest.raises(RuntimeError, match="more often than it was held"):
        pool.release([block])


class Blocks(RuleBasedStateMachine):
    """Random holders against a plain model of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(9)
        self.holders: list[list[int]] = []
        self.contents: dict[int, bytes] = {}

    @precondition(lambda self: self.pool.num_free)
    @rule(number=st.integers(0, 5))
    def allocate(self, number: int) -> None:
        block = self.pool.allocate()
        assert block != NULL_BLOCK
        assert all(block not in held for held in self.holders)
        digest = chain([number])[0]
        self.contents.pop(block, None)
        if digest not in self.contents.values():
            self.contents[block] = digest
        self.pool.remember(block, digest)
        self.holders.append([block])

    @rule(number=st.integers(0, 5))
    def share(self, number: int) -> None:
        digest = chain([number])[0]
        found = self.pool.find([digest])
        assert found == [block for block, held in self.contents.items() if held == digest]
        self.pool.hold(found)
        self.holders.append(found)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))))

    @invariant()
    def every_block_is_held_or_free(self) -> None:
        held = {block for blocks in self.holders for block in blocks}
        assert self.pool.num_used == len(held)
        assert self.pool.num_free == 8 - len(held)


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
