"""Keys and values of every layer in blocks of sixteen tokens.

Shapes: N blocks, P tokens of a block, T tokens, G key-value heads, d head_dim, M blocks of the longest sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.engine.block_pool import BLOCK_TOKENS
from moe_core.spec import ModelSpec


class PagedKVCache:
    """One pair of (N, P, G, d) tensors a layer, zero at first: padding reads zeros, never another's memory."""

    def __init__(self, spec: ModelSpec, num_blocks: int, dtype: torch.dtype) -> None:
        shape = (num_blocks, BLOCK_TOKENS, spec.num_key_value_heads, spec.head_dim)
        self.num_blocks = num_blocks
        self._k_NPGd = [torch.zeros(shape, dtype=dtype) for _ in range(spec.num_hidden_layers)]
        self._v_NPGd = [torch.zeros(shape, dtype=dtype) for _ in range(spec.num_hidden_layers)]
        self._k_slots = [k.view(-1, *shape[2:]) for k in self._k_NPGd]
        self._v_slots = [v.view(-1, *shape[2:]) for v in self._v_NPGd]

    @property
    def num_bytes(self) -> int:
        """What the cache takes in memory."""
        return 2 * len(self._k_NPGd) * self._k_NPGd[0].numel() * self._k_NPGd[0].element_size()

    def write(self, layer: int, slots_T: Tensor, k_TGd: Tensor, v_TGd: Tensor) -> None:
        """Store the keys and values of T tokens at `slots_T` (int64: block number · P + place in the block)."""
        self._k_slots[layer].index_copy_(0, slots_T, k_TGd)
        self._v_slots[layer].index_copy_(0, slots_T, v_TGd)

    def blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and all values of a layer, (N, P, G, d) each, for kernels that read blocks in place."""
        return self._k_NPGd[layer], self._v_NPGd[layer]

    def gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the blocks numbered by a flat int64 `blocks`: two (len(blocks) · P, G, d) tensors."""
        k = self._k_NPGd[layer].index_select(0, blocks)
        v = self._v_NPGd[layer].index_select(0, blocks)
        return k.flatten(0, 1), v.flatten(0, 1)
