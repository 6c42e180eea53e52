"""Routed rows in expert order, and the map from row tiles to experts, without a host sync.

Shapes: T tokens, K top_k, R = T·K choices, E experts, C chunks of choices, M row tiles at most.
Stable and deterministic: within an expert tokens stay in their order. A negative id is no expert; such a choice gets no
row. Nothing behind the last row and the last tile is ever read, so it may hold anything.

Source: the aligned blocks of vLLM's `moe_align_block_size`, with ScatterMoE's unpadded rows (arXiv 2403.08245).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError

# Up to so many choices one block does everything in one launch.
FEW_CHOICES = 256
# Choices that a block ranks among themselves, by comparing all pairs.
CHUNK = 128
# Chunks that one pass of the scan takes: with 256 some compilers spill.
SCAN_STEP = 128
# What changes from call to call must not give kernels of its own: compiling takes a second.
SIZES = ("num_choices", "max_tiles", "num_chunks")
# Experts whose counts fit the one block that scans them.
MAX_EXPERTS = 1024


@dataclass(frozen=True, slots=True)
class Rows:
    """Choices sorted by expert. All tensors are int32."""

    # (R,): the choice (token · K + place) of each row.
    choice_R: Tensor
    # (E + 1,): where the rows of each expert begin; the last is the number of rows.
    begin_E: Tensor
    # (M,): the expert of each tile, -1 behind the last one, and its first row.
    tile_expert_M: Tensor
    tile_row_M: Tensor
    block_m: int
    top_k: int

    @property
    def max_tiles(self) -> int:
        """How many tiles there are room for."""
        return self.tile_expert_M.shape[0]

    def in_slots(self, slots_E: Tensor | None, num_slots: int) -> Rows:
        """The same rows and tiles for weights of which expert e's lie in slot slots_E[e] of `num_slots`; an expert without
        rows may have none (-1). None: experts lie by their numbers.

        Products find a tile's weights, and the end of its rows, by what stands in the place of its expert: both are moved to
        the slot, and nothing else changes. No host sync.
        """
        if slots_E is None:
            return self
        known_M = self.tile_expert_M >= 0
        slot_M = torch.where(known_M, slots_E[self.tile_expert_M.clamp(min=0).long()], -1).int()
        # Nobody asks where the rows of a slot begin: what falls on the first place is never read.
        end_N = self.begin_E.new_empty(num_slots + 1).index_copy_(0, slots_E + 1, self.begin_E[1:])
        return replace(self, begin_E=end_N, tile_expert_M=slot_M)


@triton.jit
def _lay_tiles(
    count_E, begin_E, expert_E, begin_ptr, tile_expert_ptr, tile_row_ptr, num_experts, max_tiles,
    BLOCK_M: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Store where experts begin, and for each tile its expert and first row; blocks take tiles in turn."""
    if tl.program_id(0) == 0:
        tl.store(begin_ptr + expert_E, begin_E, mask=expert_E < num_experts)
        tl.store(begin_ptr + num_experts, tl.sum(count_E, axis=0))
    tiles_E = (count_E + BLOCK_M - 1) // BLOCK_M
    ends_E = tl.cumsum(tiles_E, axis=0)
    num_tiles = tl.sum(tiles_E, axis=0)
    for first in range(tl.program_id(0) * TILES, max_tiles, tl.num_programs(0) * TILES):
        tile_I = first + tl.arange(0, TILES)
        owner_I = tl.sum((ends_E[None, :] <= tile_I[:, None]).to(tl.int32), axis=1)
        is_owner_IE = expert_E[None, :] == owner_I[:, None]
        begin_I = tl.sum(tl.where(is_owner_IE, (begin_E - (ends_E - tiles_E) * BLOCK_M)[None, :], 0), axis=1)
        used_I = tile_I < num_tiles
        inside_I = tile_I < max_tiles
        tl.store(tile_expert_ptr + tile_I, tl.where(used_I, owner_I, -1), mask=inside_I)
        tl.store(tile_row_ptr + tile_I, tl.where(used_I, begin_I + tile_I * BLOCK_M, 0), mask=inside_I)


@triton.jit(do_not_specialize=SIZES)
def align_few(
    ids_ptr, choice_ptr, begin_ptr, tile_expert_ptr, tile_row_ptr, num_choices, num_experts, max_tiles,
    CHOICES: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """All of it in one block: a sort of expert and choice packed into one number, so that no two are equal."""
    choice_R = tl.arange(0, CHOICES)
    id_R = tl.load(ids_ptr + choice_R, mask=choice_R < num_choices, other=-1).to(tl.int32)
    key_R = tl.sort(tl.where(id_R >= 0, id_R, EXPERTS) * CHOICES + choice_R)
    tl.store(choice_ptr + choice_R, key_R % CHOICES, mask=key_R < EXPERTS * CHOICES)
    expert_E = tl.arange(0, EXPERTS)
    count_E = tl.histogram(tl.where(id_R >= 0, id_R, 0), EXPERTS)
    # What is no expert was counted with expert 0: every lane of a histogram counts.
    count_E -= tl.where(expert_E == 0, tl.sum((id_R < 0).to(tl.int32), axis=0), 0)
    begin_E = tl.cumsum(count_E, axis=0) - count_E
    _lay_tiles(
        count_E, begin_E, expert_E, begin_ptr, tile_expert_ptr, tile_row_ptr, num_experts, max_tiles, BLOCK_M, TILES
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def count_chunks(
    ids_ptr, counts_ptr, total_ptr, num_choices, num_experts,
    CHUNK: tl.constexpr, EXPERTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """How many choices of one chunk fall on each expert: a row of counts_CE, added to the totals too.

    The atomic sum is one of integers, so its order changes nothing.
    """
    chunk = tl.program_id(0)
    expert_E = tl.arange(0, EXPERTS)
    count_E = tl.zeros([EXPERTS], tl.int32)
    for first in range(0, CHUNK, STEP):
        choice_S = chunk * CHUNK + first + tl.arange(0, STEP)
        id_S = tl.load(ids_ptr + choice_S, mask=choice_S < num_choices, other=-1).to(tl.int32)
        count_E += tl.sum((id_S[:, None] == expert_E[None, :]).to(tl.int32), axis=0)
    tl.store(counts_ptr + chunk.to(tl.int64) * num_experts + expert_E, count_E, mask=expert_E < num_experts)
    tl.atomic_add(total_ptr + expert_E, count_E, mask=count_E > 0)


@triton.jit(do_not_specialize=SIZES)
def scan_chunks(
    counts_ptr, base_ptr, total_ptr, begin_ptr, tile_expert_ptr, tile_row_ptr, num_chunks, num_experts, max_tiles,
    EXPERTS: tl.constexpr, OWN: tl.constexpr, STEP: tl.constexpr, BLOCK_M: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The first row of each chunk and expert, base_CE; each block has OWN experts, and all lay tiles."""
    expert_E = tl.arange(0, EXPERTS)
    count_E = tl.load(total_ptr + expert_E, mask=expert_E < num_experts, other=0)
    begin_E = tl.cumsum(count_E, axis=0) - count_E
    own_O = tl.program_id(0) * OWN + tl.arange(0, OWN)
    next_O = tl.sum(tl.where(expert_E[None, :] == own_O[:, None], begin_E[None, :], 0), axis=1)
    for first in range(0, num_chunks, STEP):
        chunk_S = first + tl.arange(0, STEP)
        at_SO = chunk_S[:, None].to(tl.int64) * num_experts + own_O[None, :]
        inside_SO = (chunk_S < num_chunks)[:, None] & (own_O < num_experts)[None, :]
        count_SO = tl.load(counts_ptr + at_SO, mask=inside_SO, other=0)
        tl.store(base_ptr + at_SO, next_O[None, :] + tl.cumsum(count_SO, axis=0) - count_SO, mask=inside_SO)
        next_O += tl.sum(count_SO, axis=0)
    _lay_tiles(
        count_E, begin_E, expert_E, begin_ptr, tile_expert_ptr, tile_row_ptr, num_experts, max_tiles, BLOCK_M, TILES
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def place_chunks(
    ids_ptr, base_ptr, choice_ptr, num_choices, num_experts, CHUNK: tl.constexpr, STEP: tl.constexpr
):
    """Give each choice of one chunk its row: the chunk's first of that expert, plus its rank within the chunk."""
    chunk = tl.program_id(0)
    choice_R = chunk * CHUNK + tl.arange(0, CHUNK)
    id_R = tl.load(ids_ptr + choice_R, mask=choice_R < num_choices, other=-1).to(tl.int32)
    rank_R = tl.zeros([CHUNK], tl.int32)
    for first in range(0, CHUNK, STEP):
        other_S = chunk * CHUNK + first + tl.arange(0, STEP)
        id_S = tl.load(ids_ptr + other_S, mask=other_S < num_choices, other=-1).to(tl.int32)
        before_RS = (id_S[None, :] == id_R[:, None]) & (other_S[None, :] < choice_R[:, None])
        rank_R += tl.sum(before_RS.to(tl.int32), axis=1)
    chosen_R = id_R >= 0
    first_R = tl.load(base_ptr + chunk.to(tl.int64) * num_experts + id_R, mask=chosen_R, other=0)
    tl.store(choice_ptr + first_R + rank_R, choice_R, mask=chosen_R)


def align(expert_ids_TK: Tensor, num_experts: int, block_m: int) -> Rows:
    """Sort the choices (int64 or int32, contiguous) by expert; negative ids get no row. Ids are below `num_experts`.

    Raises SpecError for other dtypes, non-contiguous ids, and more than MAX_EXPERTS experts.
    """
    _check(expert_ids_TK, num_experts)
    num_choices, device = expert_ids_TK.numel(), expert_ids_TK.device
    max_tiles = max(1, min(num_choices, num_choices // block_m + min(num_experts, num_choices)))
    # One allocation for all: a decoding step counts its microseconds.
    sizes = [num_choices, num_experts + 1, max_tiles, max_tiles]
    parts = torch.empty(sum(sizes), dtype=torch.int32, device=device).split(sizes)
    choice_R, begin_E, tile_expert_M, tile_row_M = parts
    rows = Rows(choice_R, begin_E, tile_expert_M, tile_row_M, block_m, expert_ids_TK.shape[1])
    experts = triton.next_power_of_2(max(num_experts, 16))
    tiles = max(16, 2048 // experts)
    tables = (rows.begin_E, rows.tile_expert_M, rows.tile_row_M)
    if num_choices <= FEW_CHOICES:
        align_few[(1,)](
            expert_ids_TK, rows.choice_R, *tables, num_choices, num_experts, max_tiles,
            CHOICES=triton.next_power_of_2(max(num_choices, 32)), EXPERTS=experts,
            BLOCK_M=block_m, TILES=tiles, num_warps=4,
        )  # fmt: skip
        return rows
    num_chunks = triton.cdiv(num_choices, CHUNK)
    counts_CE, base_CE = torch.empty(2, num_chunks, num_experts, dtype=torch.int32, device=device)
    total_E = torch.zeros(num_experts, dtype=torch.int32, device=device)
    count_chunks[(num_chunks,)](
        expert_ids_TK, counts_CE, total_E, num_choices, num_experts, CHUNK=CHUNK, EXPERTS=experts, STEP=32
    )
    own = min(8, experts)
    scan_chunks[(experts // own,)](
        counts_CE, base_CE, total_E, *tables, num_chunks, num_experts, max_tiles,
        EXPERTS=experts, OWN=own, STEP=SCAN_STEP, BLOCK_M=block_m, TILES=tiles, num_warps=8,
    )  # fmt: skip
    place_chunks[(num_chunks,)](
        expert_ids_TK, base_CE, rows.choice_R, num_choices, num_experts, CHUNK=CHUNK, STEP=32, num_warps=8
    )
    return rows


def _check(ids_TK: Tensor, num_experts: int) -> None:
    if ids_TK.ndim != 2 or ids_TK.dtype not in (torch.int64, torch.int32) or not ids_TK.is_contiguous():
        raise SpecError(
            f"expert ids must be contiguous (T, K) int64 or int32, not {tuple(ids_TK.shape)} {ids_TK.dtype}"
        )
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise SpecError(
            f"num_experts ({num_experts}) must be between 1 and {MAX_EXPERTS} for the Triton kernels"
        )
    if ids_TK.numel() >= 2**31:
        raise SpecError(f"{ids_TK.numel()} choices are more than 32 bits can number; split the batch")
