"""The experts that each token of one request went to, kept when the request asks for them.

Shapes: T tokens, L layers of the model (H of them with experts), K places of a token.
Source: SGLang's `return_routed_experts`: int32 [token][layer][place] in base64, 0 in layers without experts.
"""

from __future__ import annotations

import base64

import torch
from torch import Tensor

from moe_core.errors import placed
from moe_core.spec import MoeSpec

# Of one answer, before base64: a line of the stream must stay readable for every reader.
MAX_RECORD_BYTES = 8 << 20


class RoutedExperts:
    """Expert ids of the computed tokens of a sequence from position `start` on, in order.

    The last sampled token is never computed, so that a sequence of N tokens has N - 1 - `start` of them.
    """

    def __init__(self, moe: MoeSpec, num_layers: int, start: int = 0) -> None:
        self._moe_layers = list(moe.moe_layers)
        self._shape_LK = (num_layers, moe.num_places)
        # An empty place is -1, which uint8 cannot say.
        fits_a_byte = moe.num_experts <= 256 and not moe.leaves_places_empty
        self._dtype = torch.uint8 if fits_a_byte else torch.int16
        self._parts_THK: list[Tensor] = []
        # Everything before it is known, or was not asked for.
        self._end = start
        self.num_tokens = 0

    def add(self, start: int, ids_HTK: Tensor) -> None:
        """Note the routing of tokens [start, start + T); what a preemption makes us compute again is left out."""
        new_HTK = ids_HTK[:, max(0, self._end - start) :]
        if new_HTK.shape[1] == 0:
            return
        self._parts_THK.append(new_HTK.transpose(0, 1).to(self._dtype))
        self.num_tokens += new_HTK.shape[1]
        self._end += new_HTK.shape[1]

    def encoded(self) -> str:
        """The record for the wire: little-endian int32 (T, L, K) in base64."""
        ids_TLK = torch.zeros(self.num_tokens, *self._shape_LK, dtype=torch.int32)
        if self._parts_THK:
            ids_TLK[:, self._moe_layers] = torch.cat(self._parts_THK).cpu().int()
        return base64.b64encode(ids_TLK.numpy().astype("<i4", copy=False).tobytes()).decode()


def require_room(moe: MoeSpec, num_layers: int, num_tokens: int) -> None:
    """Raise SpecError when the record of so many tokens would be longer than MAX_RECORD_BYTES."""
    token_bytes = 4 * num_layers * moe.num_places
    if num_tokens * token_bytes > MAX_RECORD_BYTES:
        raise placed(
            "routed_experts",
            f"the routed experts of {num_tokens} tokens are more than {MAX_RECORD_BYTES >> 20} MiB; this model has "
            f"room for {MAX_RECORD_BYTES // token_bytes}: lower max_tokens, or leave the prompt's out with "
            "routed_experts_start_len",
        )
