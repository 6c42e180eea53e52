"""What a native step is told of a domain prior: where its tables lie.

Shapes: N domains (the last row is that of none), L expert layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from moe_core.model.domain_prior import DomainPrior


@dataclass(frozen=True, slots=True)
class NativePrior:
    """The tables of a prior on the CPU, kept as long as their address is used."""

    table_NLE: Tensor

    @classmethod
    def of(cls, prior: DomainPrior | None) -> NativePrior | None:
        """None where there is nothing to add to any logit."""
        return None if prior is None or not prior.has_bias else cls(prior.table_NLE.contiguous())

    def row(self, domain: int) -> int:
        """The row of a domain; of none it is the last, which -1 does not find in C."""
        return domain if domain >= 0 else self.table_NLE.shape[0] - 1

    @property
    def place(self) -> tuple[int, int]:
        """The address of the first row, and what lies between rows, in numbers."""
        return self.table_NLE.data_ptr(), self.table_NLE.stride(0)
