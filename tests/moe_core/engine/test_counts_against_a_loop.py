"""Counts of steps against a loop over their tokens, layers and places."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moe_core.engine.routing_counts import RoutingCounts

LAYERS, EXPERTS, TOP_K = 3, 4, 2
LABELS = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0]])
MOE: Any = SimpleNamespace(
    moe_layers=tuple(range(LAYERS)), num_experts=EXPERTS, top_k=TOP_K, num_places=TOP_K
)


def chunk(domain: int, start: int, end: int, *, counted: int = 0, rejected: int = 0) -> Any:
    sequence = SimpleNamespace(
        domain=domain, num_counted_tokens=counted, num_prompt_tokens=4, routed_experts=None
    )
    return SimpleNamespace(
        sequence=sequence, start=start, end=end, num_tokens=end - start, num_rejected=rejected
    )


STEPS = {
    "single tokens": [chunk(-1, 6, 7), chunk(0, 5, 6), chunk(1, 9, 10)],
    "a prompt that was counted in part": [chunk(1, 7, 8), chunk(0, 0, 6, counted=2)],
    "guesses that were wrong": [chunk(0, 5, 7, rejected=2), chunk(1, 0, 3)],
    "nothing new": [chunk(0, 0, 3, counted=3)],
}


@pytest.mark.parametrize("labels", [LABELS, LABELS[:0]], ids=["domains", "no domains"])
@pytest.mark.parametrize("chunks", STEPS.values(), ids=STEPS)
def test_every_token_is_counted_once_for_each_of_its_experts(chunks: list[Any], labels: torch.Tensor) -> None:
    if not labels.shape[0]:
        chunks = [SimpleNamespace(**{**vars(c), "sequence": plain(c.sequence)}) for c in chunks]
    counts = RoutingCounts(MOE, labels, max_batch_tokens=16)
    # -1 is an empty place.
    counts.ids_LTK.copy_(
        torch.randint(-1, EXPERTS, counts.ids_LTK.shape, generator=torch.Generator().manual_seed(1))
    )
    wanted, reach = torch.zeros_like(counts.counts_PNLE), torch.zeros_like(counts.reach_PN2)
    place = 0
    for one in chunks:
        for position in range(one.start, one.end):
            if position >= one.sequence.num_counted_tokens:
                add(counts, place + position - one.start, one.sequence, position, labels, wanted, reach)
        place += one.num_tokens + one.num_rejected
    for times in (1, 2):
        counts.end_of_step(chunks)
        assert torch.equal(counts.counts_PNLE, times * wanted)
        assert torch.equal(counts.reach_PN2, times * reach)
    counts.forget()
    assert not counts.counts_PNLE.any() and not counts.reach_PN2.any()


def test_choices_written_where_they_are_kept_count_as_those_beside_them_do() -> None:
    """As native steps and steps in torch write them, in turn, with more tokens than there is room for."""
    native, beside = (RoutingCounts(MOE, LABELS, max_batch_tokens=16) for _ in range(2))
    drawn = torch.Generator().manual_seed(2)
    for turn in range(9):
        for chunks in STEPS.values():
            num_tokens = sum(one.num_tokens + one.num_rejected for one in chunks)
            ids_LTK = torch.randint(-1, EXPERTS, (LAYERS, num_tokens, TOP_K), generator=drawn)
            if turn % 3 == 1:
                native.set_apart()
            else:
                write(ids_LTK, *native.place_for(num_tokens))
            for counts in (beside, native) if turn % 3 == 1 else (beside,):
                counts.ids_LTK[:, :num_tokens] = ids_LTK
            assert torch.equal(native.ids_LTK[:, :num_tokens], ids_LTK)
            native.end_of_step(chunks, counted=turn != 6)
            beside.end_of_step(chunks, counted=turn != 6)
        if turn == 4:
            assert torch.equal(native.counts_PNLE, beside.counts_PNLE)
    assert native.counts_PNLE.sum() > 500
    assert torch.equal(native.counts_PNLE, beside.counts_PNLE)
    assert torch.equal(native.reach_PN2, beside.reach_PN2)


def write(ids_LTK: torch.Tensor, address: int, stride: int) -> None:
    """As a kernel does: each layer's choices, one token after the other."""
    for layer, ids_TK in enumerate(ids_LTK):
        numbers = ids_TK.flatten().tolist()
        place = ctypes.c_int64 * len(numbers)
        place.from_address(address + 8 * stride * layer)[:] = numbers


def plain(sequence: Any) -> Any:
    return SimpleNamespace(**{**vars(sequence), "domain": -1})


def add(
    counts: RoutingCounts,
    place: int,
    sequence: Any,
    position: int,
    labels: torch.Tensor,
    wanted: torch.Tensor,
    reach: torch.Tensor,
) -> None:
    phase, row = int(position >= sequence.num_prompt_tokens), sequence.domain + 1
    for layer in range(LAYERS):
        chosen = [int(e) for e in counts.ids_LTK[layer, place] if e >= 0]
        for expert in chosen:
            wanted[phase, row, layer, expert] += 1
        reach[phase, row, 0] += 1
        reach[phase, row, 1] += row > 0 and any(labels[row - 1, e] for e in chosen)
