"""Experts at their places in the decoder's tensors: the pages of those that are not in memory are given back.

Shapes: L expert layers, E experts.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moe_core.checkpoint.quantised import Weights
from moe_core.engine.expert_cache import Key
from moe_core.model.decoder import Decoder
from moe_core.model.families import Slot


class Places:
    """Experts at their places in the decoder's tensors; only behind those that are here there is memory."""

    def __init__(self, model: Decoder, slots: list[Slot], weights: Weights) -> None:
        moe = model.spec.moe
        assert moe is not None
        index_of = {layer: index for index, layer in enumerate(moe.moe_layers)}
        self.bytes_read = 0
        self._weights = weights
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._places: dict[Key, list[tuple[str, Tensor]]] = defaultdict(list)
        for slot in slots:
            assert slot.layer is not None
            assert slot.expert is not None
            place = (slot.tensor, slot.of(tensors[slot.parameter].data))
            self._places[index_of[slot.layer], slot.expert].append(place)
        self._ranges = {key: joined([tensor for _, tensor in places]) for key, places in self._places.items()}
        self._reading: dict[Key, Future[None]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="experts")
        # What was allocated may be memory that was used before.
        self.drop(list(self._places))

    def fetch(self, keys: Sequence[Key]) -> None:
        """As in `Holder`."""
        for key in keys:
            self._reading[key] = self._reader.submit(self._read, key)

    def late(self, keys: Sequence[Key]) -> int:
        """As in `Holder`."""
        return sum(not self._reading[key].done() for key in keys if key in self._reading)

    def wait(self, layer: int, keys: Sequence[Key]) -> None:
        """As in `Holder`: the thread stands still."""
        for future in [self._reading.pop(key) for key in keys if key in self._reading]:
            future.result()

    def drop(self, keys: Sequence[Key]) -> None:
        """Give their memory back to the operating system."""
        for key in keys:
            # Read ahead in vain: it must be there before it can be dropped.
            if (future := self._reading.pop(key, None)) is not None:
                future.result()
            for start, end in self._ranges[key]:
                give_back(start, end)

    def warm(self, keys: Sequence[Key], chance_LE: NDArray[np.float64]) -> None:
        """As in `Holder`."""
        self.fetch(keys)
        for layer in range(len(chance_LE)):
            self.wait(layer, [key for key in keys if key[0] == layer])

    def as_json(self) -> dict[str, Any]:
        """As in `Holder`."""
        return {"tier": "memory"}

    def close(self) -> None:
        """As in `Holder`."""
        self._reader.shutdown(cancel_futures=True)

    def _read(self, key: Key) -> None:
        for tensor, place in self._places[key]:
            self._weights.read_into(tensor, place)
            self.bytes_read += place.nbytes


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
