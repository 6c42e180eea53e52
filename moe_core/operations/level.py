"""Make the neurons of each expert alike before they are packed, and lay the like beside the like; the function stays.

A neuron is a row of gate, a row of up and a column of down. Where the gating is linear in up, a row of up may be divided by
what the column of down is multiplied by. Hidden rows are rounded to 8 bits in groups, and so are the columns of down: the
factor is the one that shares the unevenness between both, a power of two, so that no bit of a weight is lost. Then neurons
are sorted by how large they are, so that a group's scale suits all of it.

Shapes: D model width, F expert width.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721 (the
factor); Yuan et al. 2023, "RPTQ", arXiv 2304.01089 (the order).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from moe_core.experts import GroupedExperts
from moe_core.model.layers import MoeMlp

# Gatings that are linear in up.
LINEAR = ("silu", "gelu")
# As powers of two.
LARGEST_FACTOR = 6.0


def level_all(layers: Iterable[MoeMlp]) -> None:
    """Level each layer of experts that lie together, in place; others stay as they are."""
    for layer in layers:
        if isinstance(layer.experts, GroupedExperts):
            level(layer.experts)


@torch.no_grad()
def level(experts: GroupedExperts) -> None:
    """Level and sort the neurons of all experts of a layer, in place."""
    for expert in range(experts.num_experts):
        gate_up_2FD, down_DF = experts.gate_up_E2FD[expert], experts.down_EDF[expert]
        gate_FD, up_FD = gate_up_2FD.chunk(2)
        size_F = gate_FD.float().norm(dim=1) * up_FD.float().norm(dim=1)
        bias_2F = None if experts.gate_up_bias_E2F is None else experts.gate_up_bias_E2F[expert]
        if experts.gating.kind in LINEAR:
            factor_F = _factors(size_F, down_DF.float().norm(dim=0))
            up_FD /= factor_F[:, None].to(up_FD.dtype)
            down_DF *= factor_F.to(down_DF.dtype)
            size_F = size_F / factor_F
            if bias_2F is not None:
                bias_2F.chunk(2)[1].div_(factor_F.to(bias_2F.dtype))
        order_F = size_F.argsort()
        both_2F = torch.cat([order_F, order_F + order_F.numel()])
        gate_up_2FD.copy_(gate_up_2FD[both_2F])
        down_DF.copy_(down_DF[:, order_F])
        if bias_2F is not None:
            bias_2F.copy_(bias_2F[both_2F])


def _factors(size_F: Tensor, down_F: Tensor) -> Tensor:
    """What a row of up is divided by: the root of how large its neuron is beside its column of down, 1 on average."""
    known_F = (size_F > 0) & (down_F > 0) & size_F.isfinite() & down_F.isfinite()
    uneven_F = 0.5 * torch.log2(torch.where(known_F, size_F, 1.0) / torch.where(known_F, down_F, 1.0))
    middle = uneven_F[known_F].mean() if bool(known_F.any()) else uneven_F.new_zeros(())
    exponent_F = (uneven_F - middle).round().clamp(-LARGEST_FACTOR, LARGEST_FACTOR)
    return torch.where(known_F, torch.exp2(exponent_F), 1.0)
