"""A socket tells the server's clock to whoever asks properly, and to nothing else."""

from __future__ import annotations

import time
from typing import Any

import pytest

from accounts.live import pong_to


@pytest.mark.parametrize("told", [0, 12.5, -3, 1e15])
def test_a_ping_comes_back_with_the_servers_clock(told: float) -> None:
    before = time.time() * 1000
    pong = pong_to({"type": "ping", "t": told})
    assert pong is not None
    assert pong["t"] == told
    assert before - 1 <= pong["server_ms"] <= time.time() * 1000 + 1


@pytest.mark.parametrize(
    "said",
    [
        {"type": "ping"}, {"type": "ping", "t": "now"}, {"type": "ping", "t": True}, {"type": "ping", "t": None},
        {"type": "ping", "t": float("inf")}, {"type": "ping", "t": float("nan")}, {"type": "ping", "t": 1, "more": 2},
        {"type": "pong", "t": 1}, [], "ping", 3, None,
    ],
)  # fmt: skip
def test_anything_else_gets_no_answer(said: Any) -> None:
    assert pong_to(said) is None
