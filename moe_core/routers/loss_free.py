"""Balance without a loss: after each step the bias that picks experts moves against their load.

Shapes: L expert layers, E experts.
Source: Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", arXiv 2408.15664;
DeepSeek-AI 2024, "DeepSeek-V3"; the centring is torchtitan's.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def moved_bias(bias_LE: Tensor, load_LE: Tensor, rate: float, *, centred: bool = True) -> Tensor:
    """The bias after one step: up by `rate` where an expert had less than the mean load, down where it had more.

    `load_LE` are counts of the whole step (summed over lanes and ranks). With `centred` the mean of the movement is taken
    out, so that the biases of a layer do not drift together; layers that routed nothing do not move.
    """
    load_LE = load_LE.to(bias_LE.dtype)
    step_LE = torch.sign(load_LE.mean(-1, keepdim=True) - load_LE)
    if centred:
        step_LE = step_LE - step_LE.mean(-1, keepdim=True)
    return bias_LE + rate * step_LE


@torch.no_grad()
def remembered(bias_LE: Tensor, found_LE: Tensor, memory: float = 0.9) -> Tensor:
    """A running mean of biases that were solved for single batches (quantile balancing): what is stored and served."""
    return memory * bias_LE + (1.0 - memory) * found_LE
