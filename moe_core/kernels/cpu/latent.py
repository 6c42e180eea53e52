"""Latent attention in panels: the maps between heads and their latent lie as one matrix a head.

Shapes: T tokens, H query heads, n values of a head's query without positions, p with, r rank of the latent, e width of a
value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.kernels.cpu.panels import Panels
from moe_core.model.context import AttentionContext
from moe_core.model.heads import LatentAttention


@dataclass(frozen=True, slots=True)
class LatentPanels:
    """What stands for a layer's map from the latent up to keys and values."""

    # H matrices (r, n), for queries on their way down; H matrices (e, r).
    keys: Panels
    values: Panels

    @property
    def num_bytes(self) -> int:
        """What they take in memory."""
        return self.keys.num_bytes + self.values.num_bytes

    @classmethod
    def of(cls, module: LatentAttention) -> LatentPanels:
        """Of a layer whose weights are bfloat16; raises SpecError for others."""
        mla = module.mla
        up_Hxr = module.kv_b_proj.weight.detach().view(module.num_heads, -1, mla.kv_lora_rank)
        up_Hnr, up_Her = up_Hxr.split([mla.qk_nope_head_dim, mla.v_head_dim], dim=1)
        return cls(Panels.of_bfloat16(up_Hnr.transpose(1, 2)), Panels.of_bfloat16(up_Her))


class PanelLatentAttention(LatentAttention):
    """Latent attention whose maps lie in panels; it gives its latent to every context, kept or not."""

    panels: LatentPanels

    def _attend_latent(
        self, q_THn: Tensor, q_THp: Tensor, c_Tr: Tensor, k_T1p: Tensor, context: AttentionContext
    ) -> Tensor:
        q_THx, c_T1r = torch.cat([self.panels.keys.map_each(q_THn), q_THp], dim=-1), c_Tr[:, None]
        out_THr = context.attend(self.layer, q_THx, torch.cat([c_T1r, k_T1p], dim=-1), c_T1r, self.rule)
        return self.panels.values.map_each(out_THr)

    _attend_expanded = _attend_latent
