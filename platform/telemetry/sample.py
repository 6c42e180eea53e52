"""One entry of the stream `turnout:samples`: the totals of one engine since it started.

Totals and not differences: an entry that is lost is healed by the next, one that comes twice adds nothing, and a
FLUSHALL in between is not even seen.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telemetry import cube as cubes
from telemetry import latency
from telemetry.cube import Cube, shape_of
from telemetry.tally import Tally

STREAM = "turnout:samples"
# Totals heal, so the stream is only a pipe: a few minutes of a handful of engines.
MAX_ENTRIES = 4096
GAUGES = ("running", "waiting", "kv_used", "kv_total", "decode_threads")
# What engines of an earlier release do not tell.
UNTOLD = {"decode_threads": 0}


@dataclass(slots=True)
class Sample:
    """What one engine had counted at one moment."""

    deployment: int
    version: int
    replica: int
    epoch: int
    seq: int
    t_ms: int
    total: Tally
    gauges: dict[str, int]

    def entry(self) -> dict[Any, Any]:
        """The fields of a stream entry."""
        head = {
            "deployment": self.deployment,
            "version": self.version,
            "replica": self.replica,
            "epoch": self.epoch,
            "seq": self.seq,
            "t_ms": self.t_ms,
            "gauges": self.gauges,
            "prompt_tokens": self.total.prompt_tokens,
            "output_tokens": self.total.output_tokens,
            "reused_tokens": self.total.reused_tokens,
            **self.total.cube.heading(),
        }
        return {
            "head": json.dumps(head, separators=(",", ":")),
            "counts": self.total.cube.pack(),
            "reach": self.total.cube.pack_reach(),
            "first_token": latency.pack(self.total.first_token),
            "inter_token": latency.pack(self.total.inter_token),
        }

    @classmethod
    def of_entry(cls, fields: dict[bytes, bytes]) -> Sample:
        """Read a stream entry. The stream is not trusted.

        Raises:
            ValueError: for what is not an entry.
        """
        try:
            head: dict[str, Any] = json.loads(fields[b"head"])
            # A worker of an earlier release counts no visits and hits; its other totals are worth having.
            total = Tally(
                cubes.unpack(shape_of(head), fields[b"counts"], fields.get(b"reach", b"")),
                _count(head, "prompt_tokens"),
                _count(head, "output_tokens"),
                _count(head, "reused_tokens"),
                latency.unpack(fields[b"first_token"]),
                latency.unpack(fields[b"inter_token"]),
            )
            keys = ("deployment", "version", "replica", "epoch", "seq", "t_ms")
            gauges = {name: _count({**UNTOLD, **head["gauges"]}, name) for name in GAUGES}
            return cls(**{key: _count(head, key) for key in keys}, total=total, gauges=gauges)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a sample: {type(error).__name__} {error}") from None


def _count(head: dict[str, Any], key: str) -> int:
    value = head[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError(f"{key} is {value!r}")
    return value


class Totals:
    """Gathers what an engine says, line by line, into its totals."""

    def __init__(self) -> None:
        self.first_token = latency.empty()
        self.inter_token = latency.empty()

    def read(self, line: dict[str, Any]) -> Tally:
        """Add the latencies of one cumulative line; its counts are totals already."""
        latency.add(self.first_token, line["first_token_ms"])
        latency.add(self.inter_token, line["inter_token_ms"])
        return Tally(
            _cube_of(line),
            line["prompt_tokens"],
            line["output_tokens"],
            line["reused_tokens"],
            self.first_token.copy(),
            self.inter_token.copy(),
        )


def _cube_of(line: dict[str, Any]) -> Cube:
    shape = shape_of(line)
    return Cube(shape, _by_phase(line, "counts", shape.zeros()), _by_phase(line, "reach", shape.no_reach()))


def _by_phase(line: dict[str, Any], name: str, like: NDArray[np.int64]) -> NDArray[np.int64]:
    """Prefill and decode, out of both together and decode alone; a model without experts says nothing."""
    if not line[name]:
        return like
    both, decode = (
        np.frombuffer(base64.b64decode(line[key]), dtype="<i8").reshape(like.shape[1:])
        for key in (name, f"{name}_decode")
    )
    return np.stack([both - decode, decode]).astype(np.int64)
