"""What a native step is told of a domain prior: where its tables lie.

Shapes: N domains (the last row is that of none), L expert layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.kernels.cpu.plan import StepPlan
from moe_core.model.domain_prior import DomainPrior


@dataclass(frozen=True, slots=True)
class NativePrior:
    """The tables of a prior on the CPU, kept as long as a step points to them."""

    num_rows: int
    # (N, L, E) float32 added to logits; None where all of it is zero.
    table_NLE: Tensor | None
    # (N, L) float32 least shares, and (N, E) uint8 whose they are; None where no domain has one.
    floor_NL: Tensor | None = None
    mine_NE: Tensor | None = None

    @classmethod
    def of(cls, prior: DomainPrior | None) -> NativePrior | None:
        """None where there is no prior."""
        if prior is None:
            return None
        table_NLE = prior.table_NLE.contiguous() if prior.has_bias else None
        num_rows = prior.table_NLE.shape[0]
        if prior.floor_NL is None:
            return cls(num_rows, table_NLE)
        return cls(
            num_rows, table_NLE, prior.floor_NL.contiguous(), prior.mine_NE.to(torch.uint8).contiguous()
        )

    def row(self, domain: int) -> int:
        """The row of a domain; of none it is the last, which -1 does not find in C."""
        return domain if domain >= 0 else self.num_rows - 1

    def tell(self, step: StepPlan) -> None:
        """Write where the tables lie into a step."""
        if self.table_NLE is not None:
            step.prior, step.prior_stride = self.table_NLE.data_ptr(), self.table_NLE.stride(0)
        if self.floor_NL is not None and self.mine_NE is not None:
            step.floor, step.floor_stride = self.floor_NL.data_ptr(), self.floor_NL.stride(0)
            step.mine = self.mine_NE.data_ptr()
