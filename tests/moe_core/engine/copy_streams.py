"""Streams that copy as late as they may, and torch.cuda as far as a stream needs it, on a machine without a GPU."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import torch

from moe_core.engine.copy_stream import ThreadCopy, ThreadCopyStream


class EagerStream(ThreadCopyStream):
    """Every copy is made as soon as it may be: what is still read shows that it was overwritten."""

    def begin(self, pairs: Sequence[Any], mark: None) -> ThreadCopy:
        copy = super().begin(pairs, mark)
        copy.finish()
        return copy


class LateStream(ThreadCopyStream):
    """No copy is made before somebody waits for it: who forgot to wait meets what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: deque[LateCopy] = deque()
        self._lock = threading.RLock()

    def begin(self, pairs: Sequence[Any], mark: None) -> LateCopy:  # type: ignore[override]
        with self._lock:
            self._queue.append(LateCopy(self, lambda: self._copy(pairs)))
            return self._queue[-1]

    def run_until(self, last: LateCopy) -> None:
        with self._lock:
            while not last.over:
                self._queue[0].work()
                self._queue.popleft().over = True

    def close(self) -> None:
        if self._queue:
            self.run_until(self._queue[-1])
        super().close()


@dataclass(eq=False)
class LateCopy:
    stream: LateStream
    work: Callable[[], None]
    over: bool = False

    def is_over(self) -> bool:
        return self.over

    def precede_computing(self) -> None:
        self.stream.run_until(self)

    finish = precede_computing


@dataclass(eq=False)
class Event:
    """An event of the fake: over once its stream has come to it."""

    # When it was recorded, and where.
    at: int
    stream: Stream
    over: bool = False

    def query(self) -> bool:
        return self.over

    def synchronize(self) -> None:
        self.stream.run_until(self)


@dataclass(eq=False)
class Stream:
    """A queue of copies, waits and events, which runs only as far as somebody waits for it."""

    gpu: Gpu
    queue: deque[tuple[str, Any]] = field(default_factory=deque)

    def record_event(self) -> Event:
        event = Event(next(self.gpu.clock), self)
        if self is self.gpu.computing:
            event.over = True
        else:
            self._put("record", event)
        return event

    def wait_event(self, event: Event) -> None:
        if self is self.gpu.computing:
            event.synchronize()
        else:
            self._put("wait", event)

    def _put(self, kind: str, what: Any) -> None:
        with self.gpu.lock:
            self.queue.append((kind, what))

    def run_until(self, last: Event) -> None:
        with self.gpu.lock:
            while not last.over:
                kind, what = self.queue.popleft()
                if kind == "wait":
                    what.synchronize()
                    self.gpu.waited = what
                elif kind == "record":
                    what.over = True
                else:
                    self.gpu.copied(*what)

    def synchronize(self) -> None:
        self.record_event().synchronize()


class Gpu:
    """torch.cuda with one device that computes at once and copies late; tensors lie in the processor's memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.lock, self.here = count(), threading.RLock(), threading.local()
        self.computing = Stream(self)
        # Since when a place may not be overwritten: when it was last read, by its address.
        self.read_at: dict[int, int] = {}
        self.waited: Event | None = None
        self.num_copies = 0
        self.registered: dict[int, int] = {}
        self.locked_most = 0
        # The error of the driver, and how much it locks before.
        self.refuses, self.locks_before = 0, 0
        self._copy = torch.Tensor.copy_
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.computing)
        monkeypatch.setattr(torch.cuda, "stream", self._on)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: self)
        gpu = self

        def copy_(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            stream = getattr(gpu.here, "stream", None)
            if stream is None:
                return gpu._copy(target, source)
            assert non_blocking
            stream._put("copy", (target, source))
            return target

        monkeypatch.setattr(torch.Tensor, "copy_", copy_)

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        self.here.stream = stream
        yield
        self.here.stream = None

    def read(self, place: torch.Tensor) -> None:
        """Computing reads a place now."""
        self.read_at[place.data_ptr()] = next(self.clock)

    def copied(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """A copy is made: it must have waited for whatever read the place, and comes from locked memory."""
        assert self.waited is not None
        assert self.waited.stream is self.computing
        assert self.waited.at > self.read_at.get(target.data_ptr(), -1)
        assert any(start <= source.data_ptr() < end for start, end in self.registered.items())
        self._copy(target, source)
        self.num_copies += 1

    def cudaHostRegister(self, pointer: int, num_bytes: int, flags: int) -> int:
        assert flags == 0
        if self.refuses and len(self.registered) >= self.locks_before:
            return self.refuses
        self.registered[pointer] = pointer + num_bytes
        self.locked_most = max(self.locked_most, len(self.registered))
        return 0

    def cudaHostUnregister(self, pointer: int) -> int:
        del self.registered[pointer]
        return 0
