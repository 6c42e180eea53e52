"""Routing samples: what happened between two snapshots, as JSON for the board and the ingest.

`counts` (N, L, E) are of all phases and `counts_decode` of one; so are `reach` and `reach_decode` (N, 2): visits of expert
layers, and those in which a token reached an expert of its own domain. Arrays are little-endian and base64.

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
    return {
        "t_ms": now.at_ms,
        **shape.to_json(),
        **_arrays(now.counts_PNLE, now.reach_PN2, "<i8"),
        "num_steps": now.num_steps,
        "preemptions": now.num_preemptions,
        "prompt_tokens": now.prompt_tokens,
        "reused_tokens": now.reused_tokens,
        "output_tokens": now.output_tokens,
        "guessed_tokens": now.guessed_tokens,
        "kept_guesses": now.kept_guesses,
        **gauges(now),
    }


def _counts(now: Snapshot, last: Snapshot) -> dict[str, str]:
    if now.counts_PNLE is None or last.counts_PNLE is None:
        return _arrays(None, None, "<u4")
    assert now.reach_PN2 is not None and last.reach_PN2 is not None
    window = now.counts_PNLE - last.counts_PNLE
    # A window would have to last days to reach 2**32; wrapping must not go unseen all the same.
    reach = now.reach_PN2 - last.reach_PN2
    if max(int(window.max(initial=0)), int(reach.max(initial=0))) >= 1 << 32:
        raise OverflowError("more than 2**32 tokens in one window")
    return _arrays(window, reach, "<u4")


def _arrays(
    counts_PNLE: NDArray[np.int64] | None, reach_PN2: NDArray[np.int64] | None, dtype: str
) -> dict[str, str]:
    """Both arrays, of all phases together and of decode alone; empty texts for a model without experts."""
    told = {}
    for name, array in (("counts", counts_PNLE), ("reach", reach_PN2)):
        told[name] = "" if array is None else _encoded(array.sum(0), dtype)
        told[f"{name}_decode"] = "" if array is None else _encoded(array[DECODE], dtype)
    return told


def _encoded(array: NDArray[np.int64], dtype: str) -> str:
    return base64.b64encode(array.astype(dtype).tobytes()).decode()


def gauges(now: Snapshot) -> dict[str, int]:
    """The running, the waiting, the tokens of cache in use, and the threads of a decoding step."""
    return {
        "running": now.running,
        "waiting": now.waiting,
        "kv_used": now.kv_used * BLOCK_TOKENS,
        "kv_total": now.kv_total * BLOCK_TOKENS,
        "decode_threads": now.decode_threads,
    }
