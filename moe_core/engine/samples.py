"""Routing samples: what happened between two snapshots, as JSON for the board and the ingest.

Shapes: P phases, N domains (row 0: none), L expert layers, E experts.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_core.engine.block_pool import BLOCK_TOKENS
from moe_core.engine.routing_counts import PHASES, RoutingCounts
from moe_core.engine.stats import Snapshot

DECODE = PHASES.index("decode")


class SampleShape:
    """What does not change from one sample to the next."""

    def __init__(self, counts: RoutingCounts | None, domains: tuple[str, ...]) -> None:
        self.layers = [] if counts is None else list(counts.moe_layers)
        self.num_experts = 0 if counts is None else counts.counts_PNLE.shape[-1]
        self.domains = list(domains)

    def to_json(self) -> dict[str, Any]:
        """The heading that every sample carries."""
        return {
            "layers": self.layers,
            "num_experts": self.num_experts,
            "domains": self.domains,
            "phases": list(PHASES),
        }


class SampleCursor:
    """One reader's place in the stream of snapshots.

    A slow reader gets longer windows, never fewer counts: each sample is the difference to the snapshot that this
    reader saw last.
    """

    def __init__(self, shape: SampleShape, start: Snapshot) -> None:
        self._shape = shape
        self._last = start
        self._seq = 0

    def take(self, now: Snapshot) -> dict[str, Any]:
        """The sample of the window that ends with `now`."""
        last, self._last = self._last, now
        self._seq += 1
        return {
            "seq": self._seq,
            "t_ms": now.at_ms,
            "window_ms": now.at_ms - last.at_ms,
            **self._shape.to_json(),
            **_counts(now, last),
            "prompt_tokens": now.prompt_tokens - last.prompt_tokens,
            "reused_tokens": now.reused_tokens - last.reused_tokens,
            "output_tokens": now.output_tokens - last.output_tokens,
            "first_token_ms": now.first_token.since(last.first_token.num_ever),
            "inter_token_ms": now.inter_token.since(last.inter_token.num_ever),
            **gauges(now),
        }


def totals(shape: SampleShape, now: Snapshot) -> dict[str, Any]:
    """Everything since the engine started, in the shape of a sample but with int64 counts."""
    counts, decode = _by_phase(now, np.dtype("<i8"))
    return {
        "t_ms": now.at_ms,
        **shape.to_json(),
        "counts": counts,
        "counts_decode": decode,
        "num_steps": now.num_steps,
        "preemptions": now.num_preemptions,
        "prompt_tokens": now.prompt_tokens,
        "reused_tokens": now.reused_tokens,
        "output_tokens": now.output_tokens,
        **gauges(now),
    }


def _counts(now: Snapshot, last: Snapshot) -> dict[str, str]:
    if now.counts_PNLE is None or last.counts_PNLE is None:
        return {"counts": "", "counts_decode": ""}
    window = now.counts_PNLE - last.counts_PNLE
    # A window would have to last days to reach 2**32; wrapping must not go unseen all the same.
    if int(window.max(initial=0)) >= 1 << 32:
        raise OverflowError("more than 2**32 tokens in one window")
    return {"counts": _encoded(window.sum(0), "<u4"), "counts_decode": _encoded(window[DECODE], "<u4")}


def _by_phase(now: Snapshot, dtype: np.dtype[Any]) -> tuple[str, str]:
    if now.counts_PNLE is None:
        return "", ""
    return _encoded(now.counts_PNLE.sum(0), dtype), _encoded(now.counts_PNLE[DECODE], dtype)


def _encoded(counts_NLE: NDArray[np.int64], dtype: np.dtype[Any] | str) -> str:
    return base64.b64encode(counts_NLE.astype(dtype).tobytes()).decode()


def gauges(now: Snapshot) -> dict[str, int]:
    """The running, the waiting, and the tokens of cache in use."""
    return {
        "running": now.running,
        "waiting": now.waiting,
        "kv_used": now.kv_used * BLOCK_TOKENS,
        "kv_total": now.kv_total * BLOCK_TOKENS,
    }
