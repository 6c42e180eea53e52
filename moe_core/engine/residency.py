"""Serving with fewer experts in fast memory than the model has: the others are fetched when they are used.

On the processor every expert keeps its place in its layer's tensors; memory is only behind those that are resident, for the
pages of the others are given back to the operating system. On a device they lie in the slots of a pool, with the host's
memory between it and the disk (`device_pool`). Numbering and order of sums are those of the whole model: computed by the
same operations, outputs are the same to the bit, whichever experts were resident. In float32 a whole model that is served is
computed so; in 16 bits the processor takes whole steps natively, with experts repacked, and rounds at other places than the
decoder here. One thread reads; the engine's waits for what it needs and nothing else.

Shapes: L expert layers, E experts, T tokens, K places of a token.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_core.checkpoint.hashes import verify_hashes
from moe_core.checkpoint.quantised import Weights, widened
from moe_core.checkpoint.reader import WeightReader
from moe_core.checkpoint.source import ignorable, source_slots, spec_in
from moe_core.checkpoint.store import TORCH_DTYPES, DtypeName, check_slots, fill, read_spec
from moe_core.engine.device_pool import DevicePool, DeviceTier
from moe_core.engine.expert_cache import ExpertCache, Key, Visit
from moe_core.engine.expert_places import Places
from moe_core.errors import EngineError, SpecError
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
    """Uses of experts since the start: `hits` were there, `awaited` were being fetched ahead, the rest missed."""

    uses: int = 0
    hits: int = 0
    awaited: int = 0
    misses: int = 0
    prefetched: int = 0
    # How long the computing thread stood still for reading.
    waited_s: float = 0.0


class Holder(Protocol):
    """The memory that experts come into. Keys are of the layer's place among the expert layers, and of the expert."""

    @property
    def bytes_read(self) -> int:
        """From files, so far."""
        ...

    def fetch(self, keys: Sequence[Key]) -> None:
        """Begin to bring experts here; what gives way to them was dropped before."""
        ...

    def late(self, keys: Sequence[Key]) -> int:
        """How many of these experts are on their way."""
        ...

    def wait(self, layer: int, keys: Sequence[Key]) -> None:
        """Whatever is computed next finds these experts of a layer."""
        ...

    def drop(self, keys: Sequence[Key]) -> None:
        """Let go of experts."""
        ...

    def warm(self, keys: Sequence[Key], chance_LE: NDArray[np.float64]) -> None:
        """Fetch what is to be here at the start; it is there when this returns."""
        ...

    def as_json(self) -> dict[str, Any]:
        """What /stats tells of it."""
        ...

    def close(self) -> None:
        """End its threads."""
        ...


class ResidentExperts:
    """The experts of a decoder that are where it computes; `visit` belongs to the thread that computes."""

    def __init__(
        self, cache: ExpertCache, held: Holder, moe_layers: Sequence[int], *, prefetches: bool = True
    ) -> None:
        self.cache, self.held = cache, held
        self.stats = ResidencyStats()
        self.prefetches = prefetches
        # Every visit, when somebody wants to compare with other rules.
        self.trace: list[Visit] | None = None
        self._index_of = {layer: index for index, layer in enumerate(moe_layers)}
        self._stack = ExitStack()
        # Why experts that count as here may not be: nothing is computed with them.
        self._failure: BaseException | None = None

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
        self.held.warm(self.cache.warm(chance_LE), chance_LE)

    def visit(self, layer: int, routing: Routing) -> None:
        """Have the experts of one layer's tokens at hand, and begin to fetch those that the next will probably use."""
        experts = [expert for expert in routing.expert_ids_TK.unique().tolist() if expert >= 0]
        if self._failure is not None:
            raise EngineError("experts could not be fetched before; start the engine anew") from self._failure
        try:
            self._visit(self._index_of[layer], experts)
        except BaseException as error:
            self._failure = error
            raise

    def _visit(self, index: int, experts: list[int]) -> None:
        if self.trace is not None:
            self.trace.append((index, tuple(experts)))
        stats, keys = self.stats, [(index, expert) for expert in experts]
        stats.uses += len(keys)
        stats.awaited += self.held.late(keys)
        missing, evicted = self.cache.visit(index, experts)
        self.held.drop(evicted)
        self.held.fetch([(index, expert) for expert in missing])
        stats.misses += len(missing)
        stats.hits = stats.uses - stats.misses - stats.awaited
        began = time.perf_counter()
        self.held.wait(index, keys)
        stats.waited_s += time.perf_counter() - began
        # A layer that takes nearly all that is left would push out what it needs next.
        if self.prefetches and len(experts) <= self.cache.capacity // 4:
            ahead, evicted = self.cache.prefetch(index, MAX_PREFETCHED)
            self.held.drop(evicted)
            self.held.fetch(ahead)
            stats.prefetched += len(ahead)

    def as_json(self) -> dict[str, Any]:
        """What /stats tells."""
        counted = asdict(self.stats) | {"bytes_read": self.held.bytes_read}
        told = {**counted, "capacity": self.cache.capacity, "experts": self.cache.resident_LE.size}
        rate = {"hit_rate": round(self.stats.hits / max(1, self.stats.uses), 4)}
        return told | rate | self.held.as_json()

    def close(self) -> None:
        """End the threads and close the files."""
        self.held.close()
        self._stack.close()


def load_resident(
    directory: Path,
    dtype: DtypeName,
    capacity: int | None,
    routing: RoutingSpec,
    *,
    device: DeviceTier | None = None,
    expected_hashes: Mapping[str, str] | None = None,
    warmed: bool = True,
    uses: Sequence[Sequence[int]] = (),
) -> tuple[Decoder, ResidentExperts]:
    """A decoder of which `capacity` experts are in memory at most (None: all), `warmed` for the domains of `routing` and by
    the `uses` (L, E) that were counted before. With a `device` it computes there, with as many experts as that one says.

    Raises:
        HashMismatch: for files that are not what was promised.
        SpecError: for a dense model, experts of several kinds, a capacity below the experts of one layer, or uses of other
            experts.
        FormatError: for files that do not fit; experts that lie packed in one tensor cannot be read one by one.
    """
    if expected_hashes is not None:
        verify_hashes(directory, expected_hashes)
    spec = read_spec(directory)
    check_residency(spec, capacity, None if device is None else device.capacity)
    stack = ExitStack()
    with stack:
        if device is not None:
            # Memory that it locked for some tensors, when it may lock none for others.
            stack.callback(device.stream.close)
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
        resident = _resident(model, experts, weights, capacity, device)
        # The files stay open for as long as experts are read.
        resident._stack = stack.pop_all()
    if warmed:
        try:
            resident.warm(routing, uses)
        except BaseException:
            resident.close()
            raise
    return model, resident


def _resident(
    model: Decoder, slots: list[Slot], weights: Weights, capacity: int | None, device: DeviceTier | None
) -> ResidentExperts:
    """The experts of a model in their places, or in a device's pool to which the rest of the model goes too."""
    moe = model.spec.moe
    assert moe is not None
    num_layers, every = len(moe.moe_layers), len(moe.moe_layers) * moe.num_experts
    capacity = every if capacity is None else min(capacity, every)
    if device is None:
        cache = ExpertCache(num_layers, moe.num_experts, capacity)
        return ResidentExperts(cache, Places(model, slots, weights), moe.moe_layers)
    cache = ExpertCache(num_layers, moe.num_experts, device.capacity)
    held = DevicePool(model, slots, weights, replace(device, capacity=cache.capacity), capacity)
    model.to(device.stream.device)
    return ResidentExperts(cache, held, moe.moe_layers)


def _expected(routing: RoutingSpec, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The chance of each expert, in every layer alike, by the domain map."""
    chance_E = np.full(shape[1], OTHER)
    chance_E[list(routing.general_experts)] = GENERAL
    for domain in routing.domains:
        chance_E[list(domain.experts)] = NAMED
    return np.broadcast_to(chance_E, shape).copy()
