"""Plain lines on the terminal: what is being done, how long it took, what it came to."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

# The bootstrap hands its start to the program that follows it; the monotonic clock is the machine's.
_started = float(os.environ.setdefault("TURNOUT_CLOCK", repr(time.monotonic())))


def say(text: str) -> None:
    """Print one line at once."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print one status line with the seconds since the start."""
    print(f"[{time.monotonic() - _started:6.1f} s] {text}", flush=True)


def complain(text: str) -> None:
    """Print one line for the person to act on, on the error stream."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say what begins, and what it took when it was long enough to notice."""
    note(f"{text} …")
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    if took >= 1.0:
        note(f"{text}: done in {took:.1f} s")
