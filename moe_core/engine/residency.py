"""Serving with fewer experts in memory than the model has: the others stay on disk and are read when they are used.

Every expert keeps its place in its layer's tensors; memory is only behind those that are resident, for the pages of the
others are given back to the operating system. Numbering and order of sums are those of the whole model: computed by the same
operations, outputs are the same to the bit, whichever experts were resident. In float32 a whole model that is served is
computed so; in 16 bits it takes whole steps natively, with experts repacked, and rounds at other places than the decoder
here. One thread reads; the engine's waits for what it needs and nothing else.

Shapes: L expert layers, E experts, T tokens, K places of a token.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moe_core.checkpoint.hashes import verify_hashes
from moe_core.checkpoint.quantised import Weights, widened
from moe_core.checkpoint.reader import WeightReader
from moe_core.checkpoint.source import ignorable, source_slots, spec_in
from moe_core.checkpoint.store import TORCH_DTYPES, DtypeName, check_slots, fill, read_spec
from moe_core.engine.expert_cache import ExpertCache, Key, Visit
from moe_core.errors import SpecError
from moe_core.model.decoder import Decoder
from moe_core.model.families import FAMILIES, Slot
from moe_core.routers import Routing
from moe_core.spec import RoutingSpec
from moe_core.spec.served import check_residency

MAX_PREFETCHED = 2
# What is thought beforehand of an expert that a domain names, of a general one, and of the rest.
NAMED, GENERAL, OTHER = 0.5, 0.4, 0.05
# How many counted uses of a layer weigh as much as that.
DOUBTED = 64.0


@dataclass(slots=True)
class ResidencyStats:
    """Uses of experts since the start: `hits` were resident, `awaited` were being read ahead, the rest missed."""

    uses: int = 0
    hits: int = 0
    awaited: int = 0
    misses: int = 0
    prefetched: int = 0
    bytes_read: int = 0
    # How long the computing thread stood still for reading.
    waited_s: float = 0.0


class ResidentExperts:
    """The experts of a decoder that are in memory; `visit` belongs to the thread that computes."""

    def __init__(
        self, model: Decoder, slots: list[Slot], weights: Weights, capacity: int, *, prefetches: bool = True
    ) -> None:
        moe = model.spec.moe
        assert moe is not None
        try:
            self.cache = ExpertCache(len(moe.moe_layers), moe.num_experts, capacity)
        except ValueError as error:
            raise SpecError(f"resident_experts: {error}") from error
        self.stats = ResidencyStats()
        self.prefetches = prefetches
        # Every visit, when somebody wants to compare with other rules.
        self.trace: list[Visit] | None = None
        self._weights = weights
        self._index_of = {layer: index for index, layer in enumerate(moe.moe_layers)}
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._places: dict[Key, list[tuple[str, Tensor]]] = defaultdict(list)
        for slot in slots:
            assert slot.layer is not None
            assert slot.expert is not None
            place = (slot.tensor, slot.of(tensors[slot.parameter].data))
            self._places[self._index_of[slot.layer], slot.expert].append(place)
        self._ranges = {key: joined([tensor for _, tensor in places]) for key, places in self._places.items()}
        self._reading: dict[Key, Future[None]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="experts")
        self._stack = ExitStack()

    def warm(self, routing: RoutingSpec, uses: Sequence[Sequence[int]] = ()) -> None:
        """Read the likeliest experts until the capacity is used: by `uses` (L, E), counted before, and where those are
        few by the domain map, which names its domains' experts first and the general ones next.

        Raises SpecError for uses of another shape.
        """
        shape = self.cache.often_LE.shape
        chance_LE = _expected(routing, shape)
        if uses:
            if [len(row) for row in uses] != [shape[1]] * shape[0]:
                raise SpecError(f"expert_uses must be of {shape[0]} layers of {shape[1]} experts")
            uses_LE = np.asarray(uses, dtype=np.float64)
            # Of so many uses as a layer has, each expert's share; the map's word counts as much as DOUBTED of them.
            total_L1 = uses_LE.sum(1, keepdims=True)
            mapped_LE = DOUBTED * chance_LE / chance_LE.sum(1, keepdims=True)
            chance_LE = (uses_LE + mapped_LE) / (total_L1 + DOUBTED)
        for key in self.cache.warm(chance_LE):
            self._read(key)
        for future in self._reading.values():
            future.result()
        self._reading.clear()

    def visit(self, layer: int, routing: Routing) -> None:
        """Have the experts of one layer's tokens in memory, and begin to read those that the next will probably use."""
        experts = [expert for expert in routing.expert_ids_TK.unique().tolist() if expert >= 0]
        index = self._index_of[layer]
        if self.trace is not None:
            self.trace.append((index, tuple(experts)))
        missing, evicted = self.cache.visit(index, experts)
        self._release(evicted)
        for expert in missing:
            self._read((index, expert))
        coming = [self._reading.pop((index, e)) for e in experts if (index, e) in self._reading]
        unread = sum(not future.done() for future in coming)
        stats, began = self.stats, time.perf_counter()
        for future in coming:
            future.result()
        stats.waited_s += time.perf_counter() - began
        stats.uses += len(experts)
        stats.misses += len(missing)
        stats.awaited += max(0, unread - len(missing))
        stats.hits = stats.uses - stats.misses - stats.awaited
        # A layer that takes nearly all that is left would push out what it needs next.
        if self.prefetches and len(experts) <= self.cache.capacity // 4:
            self._prefetch(index)

    def as_json(self) -> dict[str, int | float]:
        """What /stats tells."""
        told = {**asdict(self.stats), "capacity": self.cache.capacity, "experts": self.cache.resident_LE.size}
        return told | {"hit_rate": round(self.stats.hits / max(1, self.stats.uses), 4)}

    def close(self) -> None:
        """End the reading thread and close the files."""
        self._reader.shutdown(cancel_futures=True)
        self._stack.close()

    def _prefetch(self, index: int) -> None:
        keys, evicted = self.cache.prefetch(index, MAX_PREFETCHED)
        self._release(evicted)
        for key in keys:
            self._read(key)
        self.stats.prefetched += len(keys)

    def _read(self, key: Key) -> None:
        self._reading[key] = self._reader.submit(self._read_now, key)

    def _read_now(self, key: Key) -> None:
        for tensor, place in self._places[key]:
            self._weights.read_into(tensor, place)
            self.stats.bytes_read += place.numel() * place.element_size()

    def _release(self, keys: list[Key]) -> None:
        for key in keys:
            # Read ahead in vain: it must be there before it can be dropped.
            if (future := self._reading.pop(key, None)) is not None:
                future.result()
            for start, end in self._ranges[key]:
                give_back(start, end)


def load_resident(
    directory: Path,
    dtype: DtypeName,
    capacity: int,
    routing: RoutingSpec,
    *,
    expected_hashes: Mapping[str, str] | None = None,
    warmed: bool = True,
    uses: Sequence[Sequence[int]] = (),
) -> tuple[Decoder, ResidentExperts]:
    """A decoder of which `capacity` experts are in memory at most, `warmed` for the domains of `routing` and by the `uses`
    (L, E) that were counted before.

    Raises:
        HashMismatch: for files that are not what was promised.
        SpecError: for a dense model, experts of several kinds, a capacity below the experts of one layer, or uses of other
            experts.
        FormatError: for files that do not fit; experts that lie packed in one tensor cannot be read one by one.
    """
    if expected_hashes is not None:
        verify_hashes(directory, expected_hashes)
    spec = read_spec(directory)
    check_residency(spec, capacity)
    stack = ExitStack()
    with stack:
        weights = widened(stack.enter_context(WeightReader(directory)))
        spec = spec_in(spec, weights)
        slots = source_slots(spec, weights)
        check_slots(slots, weights, ignorable=ignorable(spec, weights.names))
        experts = [slot for slot in slots if slot.expert is not None]
        if any(slot.part == "experts" and slot.expert is None for slot in slots):
            names = FAMILIES[spec.family].names
            together = names.alternating or names.stacked
            raise SpecError(
                f"resident_experts needs experts that lie in tensors of their own; {'quantise' if together else 'import'} "
                "the model, which separates them"
            )
        model = Decoder(spec, TORCH_DTYPES[dtype])
        fill(model, [slot for slot in slots if slot.expert is None], weights)
        held = ResidentExperts(model, experts, weights, capacity)
        # The files stay open for as long as experts are read.
        held._stack = stack.pop_all()
    # What was allocated may be memory that was used before.
    held._release(list(held._places))
    if warmed:
        try:
            held.warm(routing, uses)
        except BaseException:
            held.close()
            raise
    return model, held


def joined(places: list[Tensor]) -> list[tuple[int, int]]:
    """The addresses [start, end) of contiguous tensors, neighbours as one range: a page may lie in two of them."""
    ranges: list[tuple[int, int]] = []
    for place in sorted(places, key=Tensor.data_ptr):
        start = place.data_ptr()
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, place.data_ptr() + place.numel() * place.element_size()))
    return ranges


def give_back(start: int, end: int) -> None:
    """Give the whole pages of [start, end) back to the operating system; what they held is lost."""
    page = mmap.PAGESIZE
    start, end = -(-start // page) * page, end // page * page
    if end > start and _libc().madvise(
        ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED
    ):
        raise OSError(ctypes.get_errno(), "madvise refused to give pages back")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _expected(routing: RoutingSpec, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The chance of each expert, in every layer alike, by the domain map."""
    chance_E = np.full(shape[1], OTHER)
    chance_E[list(routing.general_experts)] = GENERAL
    for domain in routing.domains:
        chance_E[list(domain.experts)] = NAMED
    return np.broadcast_to(chance_E, shape).copy()
