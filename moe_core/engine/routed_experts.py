"""The experts that each token of one request went to, kept when the request asks for them.

Shapes: T tokens, L expert layers, K places of a token.
"""

from __future__ import annotations

import base64

import torch
from torch import Tensor

from moe_core.spec import MoeSpec


class RoutedExperts:
    """Expert ids of every computed token of a sequence, in order; the last sampled token is never computed."""

    def __init__(self, moe: MoeSpec) -> None:
        self._moe_layers = moe.moe_layers
        self._num_places = moe.num_places
        # An empty place is -1, which uint8 cannot say.
        fits_a_byte = moe.num_experts <= 256 and not moe.leaves_places_empty
        self._dtype = torch.uint8 if fits_a_byte else torch.int16
        self._parts_TLK: list[Tensor] = []
        self.num_tokens = 0

    def add(self, start: int, ids_LTK: Tensor) -> None:
        """Note the routing of tokens [start, start + T); what a preemption makes us compute again is left out."""
        new_LTK = ids_LTK[:, max(0, self.num_tokens - start) :]
        if new_LTK.shape[1] == 0:
            return
        self._parts_TLK.append(new_LTK.transpose(0, 1).to(self._dtype))
        self.num_tokens += new_LTK.shape[1]

    def to_json(self) -> dict[str, object]:
        """The record for the wire: ids of shape [token][layer][place], uint8, or int16 above 256 experts
        and where a place may be empty (-1)."""
        shape = [self.num_tokens, len(self._moe_layers), self._num_places]
        ids = torch.cat(self._parts_TLK) if self._parts_TLK else torch.zeros(shape, dtype=self._dtype)
        return {
            "layers": list(self._moe_layers),
            "shape": shape,
            "dtype": "uint8" if self._dtype == torch.uint8 else "int16",
            "ids": base64.b64encode(ids.contiguous().cpu().numpy().tobytes()).decode(),
        }
