"""Experts in a device's memory, fewer than the model has: a pool of slots that all layers share.

Three tiers. The device holds `capacity` experts, each in one slot; the host's memory holds some or all, in slots too; the
rest lies in the model's files. An expert that is missing on the device is copied there on a stream beside the one that
computes, which waits for the event at its end; what is not in the host's memory either is read there first, by one thread.
Kernels are told the slot of each expert and sort by experts as ever, so that no output changes by a bit.

What the host holds is chosen by the rule of `ExpertCache` too, on what the device had to fetch.

Shapes: L expert layers, E experts, N slots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_core.checkpoint.quantised import Weights
from moe_core.engine.copy_stream import Copy, CopyStream
from moe_core.engine.expert_cache import ExpertCache, Key
from moe_core.model.decoder import Decoder
from moe_core.model.families import Slot


@dataclass(frozen=True, slots=True)
class DeviceTier:
    """Where a pool lies, and how many experts it holds over all layers."""

    stream: CopyStream
    capacity: int


class Slots:
    """Equal places for experts in one memory, and which expert lies in which."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.slot_of: dict[Key, int] = {}
        self._free = list(range(len(next(iter(tensors.values())))))

    def take(self, key: Key) -> int:
        """A free slot for an expert that has none."""
        assert key not in self.slot_of
        self.slot_of[key] = self._free.pop()
        return self.slot_of[key]

    def leave(self, key: Key) -> None:
        """The slot of an expert is free for another."""
        self._free.append(self.slot_of.pop(key))

    def parts(self, slot: int) -> list[Tensor]:
        """The tensors of a slot, sharing memory."""
        return [tensor[slot] for tensor in self.tensors.values()]


class HostTier:
    """Experts in the host's memory, `capacity` of them; the others are read from files when they are asked for."""

    def __init__(
        self, cache: ExpertCache, slots: Slots, read: Mapping[Key, list[Slot]], weights: Weights
    ) -> None:
        self.cache, self.slots = cache, slots
        self.hits = self.misses = self.bytes_read = 0
        self._read, self._weights = read, weights
        # The last copy out of each slot: before it is over nothing else may be read there.
        self._copies: dict[int, Copy] = {}
        # Of each layer what was fetched since its last visit.
        self._fetched: dict[int, set[int]] = defaultdict(set)

    def find(self, key: Key, keep: Sequence[Key]) -> tuple[int, bool]:
        """The slot of an expert, and whether it is there; if not, it has to be read next. None of `keep` gives way."""
        self._fetched[key[0]].add(key[1])
        if key in self.slots.slot_of:
            self.hits += 1
            return self.slots.slot_of[key], True
        self.misses += 1
        self.admit([key], keep=keep)
        return self.slots.slot_of[key], False

    def admit(self, keys: Sequence[Key], *, keep: Sequence[Key]) -> None:
        """Give slots to experts that have none; others than `keep` lose theirs."""
        if keys:
            for gone in self.cache.admit(keys, keys[0][0], keep=keep):
                self.slots.leave(gone)
        for key in keys:
            self.slots.take(key)

    def read(self, key: Key, slot: int) -> None:
        """Read an expert into its slot, on the thread that reads."""
        if (copy := self._copies.get(slot)) is not None:
            copy.finish()
        for part in self._read[key]:
            name = part.parameter.rpartition(".")[2]
            place = replace(part, expert=slot).of(self.slots.tensors[name])
            self._weights.read_into(part.tensor, place)
            self.bytes_read += place.nbytes

    def lend(self, slot: int, copy: Copy) -> None:
        """A slot is being copied from."""
        self._copies[slot] = copy

    def forget(self) -> None:
        """What was fetched so far says nothing of what will be."""
        self._fetched.clear()
        self.hits = self.misses = 0

    def note(self, layer: int) -> None:
        """The device computes a layer: learn what it had to fetch for it."""
        fetched = sorted(self._fetched.pop(layer, ()))
        # Nothing ever gives way where everything has a place.
        if self.cache.capacity < self.cache.resident_LE.size:
            self.cache.note(layer, fetched)


class DevicePool:
    """The slots of the device and the way there; `fetch`, `late`, `wait` and `drop` belong to the thread that computes."""

    def __init__(
        self, model: Decoder, slots: Sequence[Slot], weights: Weights, tier: DeviceTier, host_capacity: int
    ) -> None:
        moe = model.spec.moe
        assert moe is not None
        self._stream, self._index_of = tier.stream, {layer: at for at, layer in enumerate(moe.moe_layers)}
        read: dict[Key, list[Slot]] = defaultdict(list)
        for slot in slots:
            assert slot.layer is not None
            assert slot.expert is not None
            read[self._index_of[slot.layer], slot.expert].append(slot)
        layers = [mlp.experts for mlp in model.moe_layers()]
        shape_LE = (len(layers), moe.num_experts)
        names = {slot.parameter.rpartition(".")[2] for slot in slots}
        own = {name: tensor for name, tensor in _tensors(layers[0]) if name in names}
        host = {n: self._stream.host_memory((host_capacity, *t.shape[1:]), t.dtype) for n, t in own.items()}
        self.host = HostTier(ExpertCache(*shape_LE, host_capacity), Slots(host), read, weights)
        device = {
            n: t.new_empty((tier.capacity, *t.shape[1:]), device=tier.stream.device) for n, t in own.items()
        }
        self.slots = Slots(device)
        self.bytes_copied = 0
        # Where each expert of a layer lies, -1 for those that are not on the device: as the host knows it, and as kernels.
        self._known_LE = torch.full(shape_LE, -1)
        self._told_LE = torch.full(shape_LE, -1, device=tier.stream.device)
        self._changed: set[int] = set()
        self._coming: dict[Key, Future[Copy]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="experts")
        for experts, told_E in zip(layers, self._told_LE, strict=True):
            _move_in(experts, device, told_E)

    @property
    def bytes_read(self) -> int:
        """From files, so far."""
        return self.host.bytes_read

    def fetch(self, keys: Sequence[Key]) -> None:
        """Begin to bring experts to the device; there are free slots for them."""
        mark = self._stream.mark() if keys else None
        # More than the host holds, as when it is warmed, pass through it.
        passing = len(keys) > self.host.cache.capacity
        for key in keys:
            slot, (source, is_there) = self.slots.take(key), self.host.find(key, [key] if passing else keys)
            self._known_LE[key] = slot
            self._changed.add(key[0])
            if is_there:
                self._coming[key] = Future()
                self._coming[key].set_result(self._copy(source, slot, mark))
            else:
                self._coming[key] = self._reader.submit(self._read, key, source, slot, mark)
        self.bytes_copied += len(keys) * sum(part[0].nbytes for part in self.slots.tensors.values())

    def late(self, keys: Sequence[Key]) -> int:
        """How many of these experts are on their way."""
        coming = [self._coming[key] for key in keys if key in self._coming]
        return sum(not (future.done() and future.result().is_over()) for future in coming)

    def wait(self, layer: int, keys: Sequence[Key]) -> None:
        """Let what is computed next find these experts of a layer; the host waits for files alone."""
        if layer in self._changed:
            # Before computing is to wait for copies: the host may wait for this.
            self._told_LE[layer].copy_(self._known_LE[layer])
            self._changed.discard(layer)
        for future in [self._coming.pop(key) for key in keys if key in self._coming]:
            future.result().precede_computing()
        self.host.note(layer)

    def drop(self, keys: Sequence[Key]) -> None:
        """Free the slots of experts; what is copied there next waits for what computing was given so far."""
        for key in keys:
            # Fetched in vain: the copy must have been begun, so that whatever comes into its slot comes behind it.
            if (future := self._coming.pop(key, None)) is not None:
                future.result()
            self.slots.leave(key)
            self._known_LE[key] = -1

    def warm(self, keys: Sequence[Key], chance_LE: NDArray[np.float64]) -> None:
        """Fetch the experts that the device is to begin with, and have the likeliest others in the host's memory."""
        self.fetch(keys)
        rest_LE = chance_LE.copy()
        rest_LE[tuple(np.array(keys).T)] = 0.0
        self.host.cache.expect(rest_LE)
        order = np.argsort(-rest_LE, axis=None, kind="stable")[: self.host.cache.capacity]
        likely = list(zip(*(axis.tolist() for axis in np.unravel_index(order, rest_LE.shape)), strict=True))
        absent = [key for key in likely if key not in self.host.slots.slot_of]
        self.host.admit(absent, keep=likely)
        reading = [self._reader.submit(self.host.read, key, self.host.slots.slot_of[key]) for key in absent]
        for future in reading:
            future.result()
        for copy in [self._coming.pop(key).result() for key in keys]:
            copy.finish()
        self.host.forget()

    def as_json(self) -> dict[str, Any]:
        """What /stats tells of the tiers."""
        host = {"capacity": self.host.cache.capacity, "hits": self.host.hits, "misses": self.host.misses}
        return {"tier": "device", "bytes_copied": self.bytes_copied, "host": host}

    def close(self) -> None:
        """End the thread that reads, and the copies."""
        self._reader.shutdown(cancel_futures=True)
        self._stream.close()

    def _read(self, key: Key, source: int, slot: int, mark: Any) -> Copy:
        self.host.read(key, source)
        return self._copy(source, slot, mark)

    def _copy(self, source: int, slot: int, mark: Any) -> Copy:
        pairs = list(zip(self.slots.parts(slot), self.host.slots.parts(source), strict=True))
        copy = self._stream.begin(pairs, mark)
        self.host.lend(source, copy)
        return copy


def _tensors(experts: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers of experts, by their names."""
    return [
        *((name, one.data) for name, one in experts.named_parameters(recurse=False)),
        *experts.named_buffers(recurse=False),
    ]


def _move_in(experts: Any, pool: Mapping[str, Tensor], slots_E: Tensor) -> None:
    """Let a layer's experts read the pool."""
    for name, tensor in pool.items():
        is_parameter = isinstance(getattr(experts, name), nn.Parameter)
        setattr(experts, name, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
    experts.slots_E = slots_E
