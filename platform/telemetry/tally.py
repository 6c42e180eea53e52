"""What was counted, in memory: a cube, tokens, latencies. They add up and subtract; rows are made of them and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from telemetry import cube as cubes
from telemetry import latency
from telemetry.cube import Cube, shape_of
from telemetry.latency import Histogram
from telemetry.models import Tally as TallyRow


@dataclass(slots=True)
class Tally:
    """Counts of some span of time."""

    cube: Cube = field(default_factory=Cube.empty)
    prompt_tokens: int = 0
    output_tokens: int = 0
    reused_tokens: int = 0
    first_token: Histogram = field(default_factory=latency.empty)
    inter_token: Histogram = field(default_factory=latency.empty)

    def plus(self, other: Tally) -> Tally:
        """The sum."""
        return Tally(
            self.cube.plus(other.cube),
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            self.reused_tokens + other.reused_tokens,
            self.first_token + other.first_token,
            self.inter_token + other.inter_token,
        )

    def minus(self, earlier: Tally) -> Tally:
        """What happened since an earlier total of the same engine."""
        return Tally(
            self.cube.minus(earlier.cube),
            max(0, self.prompt_tokens - earlier.prompt_tokens),
            max(0, self.output_tokens - earlier.output_tokens),
            max(0, self.reused_tokens - earlier.reused_tokens),
            (self.first_token - earlier.first_token).clip(min=0),
            (self.inter_token - earlier.inter_token).clip(min=0),
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not (
            self.prompt_tokens or self.output_tokens or self.reused_tokens or self.cube.counts_PNLE.any()
        )

    def columns(self) -> dict[str, Any]:
        """The values of a row."""
        return {
            **self.cube.heading(),
            "counts": self.cube.pack(),
            "reach": self.cube.pack_reach(),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "reused_tokens": self.reused_tokens,
            "first_token": latency.pack(self.first_token),
            "inter_token": latency.pack(self.inter_token),
        }

    @classmethod
    def of_row(cls, row: TallyRow) -> Tally:
        """Read a row."""
        heading = {"domains": row.domains, "layers": row.layers, "num_experts": row.num_experts}
        return cls(
            cubes.unpack(shape_of(heading), row.counts, row.reach),
            row.prompt_tokens,
            row.output_tokens,
            row.reused_tokens,
            latency.unpack(row.first_token),
            latency.unpack(row.inter_token),
        )
