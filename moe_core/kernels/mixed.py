"""Experts of several kinds and widths in one layer: their weights lie one after the other in one flat buffer.

Shapes: T tokens, D model width, E experts, K top_k, N values of all experts together, r rows of one expert.
Source: the kinds are MoE++'s (arXiv 2410.07348) and LongCat-Flash's (arXiv 2509.01322); see moe_core.spec.expert_kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from moe_core.errors import SpecError
from moe_core.kernels.precision import product
from moe_core.kernels.torch_mapped import mapped_experts_torch
from moe_core.spec.expert_kinds import ConstantExpert, ExpertKind, MlpExpert, SwigluExpert

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "relu": relu,
    "relu2": lambda x: relu(x).square(),
}


def num_values(kind: ExpertKind, width: int) -> int:
    """How much of the flat buffer an expert takes in a model of that width."""
    return sum(matrix.numel for matrix in kind.matrices(width))


def run_expert(kind: ExpertKind, weights_n: Tensor, x_rD: Tensor) -> Tensor:
    """One expert on its rows, unweighted: (r, D). `weights_n` is its part of the flat buffer."""
    matrices = kind.matrices(x_rD.shape[-1])
    parts = weights_n.split([matrix.numel for matrix in matrices]) if matrices else ()
    maps = [part.view(matrix.shape) for part, matrix in zip(parts, matrices, strict=True)]
    if isinstance(kind, SwigluExpert):
        gate_FD, up_FD, down_DF = maps
        return product(ACTIVATIONS[kind.activation](product(x_rD, gate_FD)) * product(x_rD, up_FD), down_DF)
    if isinstance(kind, MlpExpert):
        up_FD, down_DF, *biases = maps
        inner_rF = product(x_rD, up_FD)
        if not biases:
            return product(ACTIVATIONS[kind.activation](inner_rF), down_DF)
        return product(ACTIVATIONS[kind.activation](inner_rF + biases[0]), down_DF) + biases[1]
    if isinstance(kind, ConstantExpert):
        mix_2D, constant_D = maps
        wide = torch.float64 if x_rD.dtype == torch.float64 else torch.float32
        share_r2 = torch.softmax(product(x_rD, mix_2D), -1, dtype=wide).to(x_rD.dtype)
        return share_r2[:, :1] * x_rD + share_r2[:, 1:] * constant_D
    return x_rD if kind.kind == "identity" else torch.zeros_like(x_rD)


def mixed_experts_torch(
    hidden_TD: Tensor,
    weights_N: Tensor,
    kinds: Sequence[ExpertKind],
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
) -> Tensor:
    """Sum over the chosen experts of weight · expert(x): (T, D) in the dtype of the input, gradients by autograd.

    A token on a zero expert costs nothing, and all tokens on identity experts are one product: neither is gathered.
    Raises SpecError when the buffer is not as long as its experts.
    """
    sizes = [num_values(kind, hidden_TD.shape[1]) for kind in kinds]
    if weights_N.shape != (sum(sizes),):
        raise SpecError(
            f"experts of {sum(sizes)} values do not fit a buffer of shape {tuple(weights_N.shape)}"
        )
    parts = weights_N.split(sizes)
    kept_TK, is_identity_TK = _apart(kinds, expert_ids_TK)
    out_TD = mapped_experts_torch(
        hidden_TD, kept_TK, weights_TK, len(kinds), lambda e, x_rD: run_expert(kinds[e], parts[e], x_rD)
    )
    if is_identity_TK is None:
        return out_TD
    wide = torch.float64 if hidden_TD.dtype == torch.float64 else torch.float32
    passed_T1 = torch.where(is_identity_TK, weights_TK, 0.0).sum(-1, keepdim=True).to(wide)
    # A token that chose none of them gets nothing of itself: zero times what is not finite would be NaN.
    passed_TD = torch.where(is_identity_TK.any(-1, keepdim=True), passed_T1 * hidden_TD.to(wide), 0.0)
    return (out_TD.to(wide) + passed_TD).to(hidden_TD.dtype)


def _apart(kinds: Sequence[ExpertKind], ids_TK: Tensor) -> tuple[Tensor, Tensor | None]:
    """The choices that must be computed, and which ones pass the token itself on (None: no such expert here)."""
    names = [kind.kind for kind in kinds]
    if "identity" not in names and "zero" not in names:
        return ids_TK, None
    # One place more for the empty place, which -1 points to.
    free_E1 = torch.tensor([name in ("identity", "zero") for name in (*names, "")], device=ids_TK.device)
    identity_E1 = torch.tensor([name == "identity" for name in (*names, "")], device=ids_TK.device)
    return ids_TK.masked_fill(free_E1[ids_TK], -1), identity_E1[ids_TK]
