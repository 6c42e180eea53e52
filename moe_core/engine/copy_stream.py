"""Copies from the host's memory to a device's, beside what the device computes.

A copy is begun by the host, runs while computing goes on, and is over at an event: computing waits for that, the host for
nothing. What computing was given before, and may still read from the place that is copied to, the copy waits for.

Two streams: a GPU's, and the processor as a device of its own, whose copies are made by a thread.
Source: streams and events of CUDA, as torch.cuda gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from moe_core.errors import EngineError

# A place on the device, and what comes there: of one shape and dtype.
Pair = tuple[Tensor, Tensor]


class Copy(Protocol):
    """A copy that was begun."""

    def is_over(self) -> bool:
        """Whether it has ended; asks, and does not wait."""
        ...

    def precede_computing(self) -> None:
        """Whatever computing is given from now on begins after it."""
        ...

    def finish(self) -> None:
        """Let this thread wait until it is over: its source may be overwritten then."""
        ...


class CopyStream(Protocol):
    """Makes copies one after the other, from any thread."""

    device: torch.device

    def mark(self) -> Any:
        """How far computing has come to be given work, asked on the thread that gives it."""
        ...

    def begin(self, pairs: Sequence[Pair], mark: Any) -> Copy:
        """Copy once computing is past the mark."""
        ...

    def host_memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host, not filled, that it copies from fastest; good until `close`."""
        ...

    def close(self) -> None:
        """Finish what was begun, and let go of threads and memory; nothing happens when it is closed already."""
        ...


@dataclass(frozen=True, slots=True)
class GpuCopy:
    """A copy on a stream of a GPU."""

    event: torch.cuda.Event
    device: torch.device

    def is_over(self) -> bool:
        """As in `Copy`."""
        return self.event.query()

    def precede_computing(self) -> None:
        """The stream that computes waits; the host does not."""
        torch.cuda.current_stream(self.device).wait_event(self.event)

    def finish(self) -> None:
        """As in `Copy`."""
        self.event.synchronize()


class GpuCopyStream:
    """A stream of a GPU beside the one that computes.

    Both ends of a copy outlive the stream, so no allocator has to hear of it (`record_stream`).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._locked: list[Tensor] = []

    def mark(self) -> torch.cuda.Event:
        """An event behind all that the stream of this thread was given."""
        return torch.cuda.current_stream(self.device).record_event()

    def begin(self, pairs: Sequence[Pair], mark: torch.cuda.Event) -> GpuCopy:
        """As in `CopyStream`."""
        self._stream.wait_event(mark)
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        return GpuCopy(self._stream.record_event(), self.device)

    def host_memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Locked memory, registered with the driver: torch's own allocator of such would round up to a power of two.

        Raises EngineError where the driver refuses.
        """
        memory = torch.empty(tuple(shape), dtype=dtype)
        num_bytes = memory.numel() * memory.element_size()
        code = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), num_bytes, 0))
        if code:
            raise EngineError(
                f"{num_bytes} bytes of memory for experts beside the GPU cannot be locked (CUDA error {code}); give a "
                "smaller resident_experts, or raise the limit of locked memory (ulimit -l)"
            )
        self._locked.append(memory)
        return memory

    def close(self) -> None:
        """As in `CopyStream`."""
        self._stream.synchronize()
        while self._locked:
            torch.cuda.cudart().cudaHostUnregister(self._locked.pop().data_ptr())


@dataclass(frozen=True, slots=True)
class ThreadCopy:
    """A copy by a thread."""

    future: Future[None]

    def is_over(self) -> bool:
        """As in `Copy`."""
        return self.future.done()

    def precede_computing(self) -> None:
        """The processor computes what it is given at once: the host is what waits."""
        self.future.result()

    def finish(self) -> None:
        """As in `Copy`."""
        self.future.result()


class ThreadCopyStream:
    """The processor as a device: a thread copies within its memory."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="copies")

    def mark(self) -> None:
        """Nothing to wait for: what was given to the processor has been computed."""

    def begin(self, pairs: Sequence[Pair], mark: None) -> ThreadCopy:
        """As in `CopyStream`."""
        return ThreadCopy(self._copier.submit(self._copy, list(pairs)))

    def host_memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Plain memory."""
        return torch.empty(tuple(shape), dtype=dtype)

    def close(self) -> None:
        """As in `CopyStream`."""
        self._copier.shutdown()

    def _copy(self, pairs: Sequence[Pair]) -> None:
        for target, source in pairs:
            target.copy_(source)
