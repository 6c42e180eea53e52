"""Tokens of single sequences by expert layer and expert, beside the counts of all.

Shapes: S sequences at once (row 0: all for which there was no room), L expert layers, E experts, T tokens, K places.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SequenceCounts:
    """Rows of an int64 tensor (S + 1, L, E), one for each sequence that is known until it is taken out."""

    def __init__(
        self, most: int, num_layers: int, num_experts: int, device: torch.device | str = "cpu"
    ) -> None:
        self._counts_SLE = torch.zeros(most + 1, num_layers, num_experts, dtype=torch.int64, device=device)
        self._tokens_S = torch.zeros(most + 1, dtype=torch.int64, device=device)
        self._free = list(range(most, 0, -1))
        self._row_of: dict[int, int] = {}

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._row_of

    def row(self, sequence_id: int) -> int:
        """The row of a sequence; 0 when so many are known already."""
        row = self._row_of.get(sequence_id)
        if row is None and self._free:
            row = self._row_of[sequence_id] = self._free.pop()
        return row or 0

    def add(self, rows: list[int], cells_LTK: Tensor, filled_R: Tensor) -> None:
        """Count the visits of tokens of these rows: `cells_LTK` is layer · E + expert, `filled_R` 0 at an empty place."""
        row_T = torch.tensor(rows, dtype=torch.int64, device=cells_LTK.device)
        size = self._counts_SLE[0].numel()
        cells_R = (cells_LTK + row_T[None, :, None] * size).view(-1)
        self._counts_SLE.view(-1).index_add_(0, cells_R.clamp_(min=0), filled_R)
        self._tokens_S.index_add_(0, row_T, torch.ones_like(row_T))

    def take(self, sequence_id: int) -> tuple[int, NDArray[np.int64]] | None:
        """How many tokens a sequence had and (L, E) their visits, then it is forgotten; None for one that has no row."""
        row = self._row_of.pop(sequence_id, None)
        if row is None:
            return None
        num_tokens = int(self._tokens_S[row])
        visits_LE = self._counts_SLE[row].cpu().numpy().copy()
        self._counts_SLE[row] = 0
        self._tokens_S[row] = 0
        self._free.append(row)
        return num_tokens, visits_LE

    def forget(self) -> None:
        """Begin at nothing."""
        self._counts_SLE.zero_()
        self._tokens_S.zero_()
        self._free += self._row_of.values()
        self._row_of.clear()
