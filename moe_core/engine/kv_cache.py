"""Keys and values of every layer in blocks of sixteen tokens.

Latent attention keeps one head, whose values are the first part of its key and are not stored again.

Shapes: N blocks, P tokens of a block, T tokens, G key-value heads, d width of a key, e width of a value, M blocks of
the longest sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_core.engine.block_pool import BLOCK_TOKENS
from moe_core.kernels.cpu.arena import own_memory
from moe_core.spec import ModelSpec


class PagedKVCache:
    """Two tensors a layer, zero at first: padding reads zeros, never another's memory."""

    def __init__(
        self, spec: ModelSpec, num_blocks: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        kept, layers = spec.kept, range(spec.num_hidden_layers)
        shape = (num_blocks, BLOCK_TOKENS, kept.num_heads)
        self.num_blocks = num_blocks
        self.device = torch.device(device)
        self._shares_keys = kept.shares_keys
        self._k_NPGd = [_zeros((*shape, kept.key_dim), dtype, self.device) for _ in layers]
        if kept.shares_keys:
            self._v_NPGe = [k[..., : kept.value_dim] for k in self._k_NPGd]
        else:
            self._v_NPGe = [_zeros((*shape, kept.value_dim), dtype, self.device) for _ in layers]
        self._k_slots = [k.flatten(0, 1) for k in self._k_NPGd]
        self._v_slots = [v.flatten(0, 1) for v in self._v_NPGe]

    @property
    def num_bytes(self) -> int:
        """What the cache takes in memory."""
        own = [*self._k_NPGd, *([] if self._shares_keys else self._v_NPGe)]
        return sum(tensor.numel() * tensor.element_size() for tensor in own)

    def write(self, layer: int, slots_T: Tensor, k_TGd: Tensor, v_TGe: Tensor) -> None:
        """Store the keys and values of T tokens at `slots_T` (int64: block number · P + place in the block)."""
        self._k_slots[layer].index_copy_(0, slots_T, k_TGd)
        if not self._shares_keys:
            self._v_slots[layer].index_copy_(0, slots_T, v_TGe)

    def blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and all values of a layer, (N, P, G, d or e), for kernels that read blocks in place."""
        return self._k_NPGd[layer], self._v_NPGe[layer]

    def gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the blocks numbered by a flat int64 `blocks`: two (len(blocks) · P, G, d or e) tensors."""
        k = self._k_NPGd[layer].index_select(0, blocks)
        v = self._v_NPGe[layer].index_select(0, blocks)
        return k.flatten(0, 1), v.flatten(0, 1)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory where they are written to: most of a cache is empty most of the time."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = own_memory(math.prod(shape) * dtype.itemsize, huge=False)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
