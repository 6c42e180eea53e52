"""The scores that a gate picks experts with, and how far the bias of an idle one has to rise to be picked.

Shapes: T tokens, D model width, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.model.layers import Router
from moe_core.routers.sigmoid_groups import expert_scores
from moe_core.spec.gate import Base, SigmoidGroups, Sparsemax

# Of the difference to the highest bias: finer than any share of a batch can tell.
BISECTIONS = 24
BIASES = ("bias", "selection_bias")


def pick_scores(router: Router, x_TD: Tensor, expert: int | None = None) -> Tensor:
    """(T, E) float32: what a linear gate orders experts by, all of its biases in it.

    With `expert` a gradient reaches the row and the logit bias of that expert and of no other.
    """
    tensors = {name: _of(tensor, expert) for name, tensor in router.tensors.items()}
    logits_TE = torch.nn.functional.linear(x_TD.float(), tensors["weight"], tensors.get("bias"))
    logits_TE = logits_TE / router.moe.temperature_at()
    gate, selection_bias_E = router.moe.gate, tensors.get("selection_bias")
    if isinstance(gate, SigmoidGroups):
        scores_TE = expert_scores(gate, logits_TE)
    elif selection_bias_E is None or isinstance(gate, Sparsemax | Base):
        scores_TE = logits_TE
    else:
        scores_TE = torch.softmax(logits_TE, dim=-1)
    return scores_TE if selection_bias_E is None else scores_TE + selection_bias_E


def _of(tensor: Tensor, expert: int | None) -> Tensor:
    """The tensor with a graph for one entry only; with none where no expert is named."""
    if expert is None or not tensor.requires_grad:
        return tensor.detach()
    at = torch.tensor([expert], device=tensor.device)
    return tensor.detach().index_copy(0, at, tensor[expert][None])


def leads(scores_TE: Tensor, expert: int, top_k: int) -> Tensor:
    """(T,) how far an expert is above the k-th best of the others; below zero it is not picked."""
    at = torch.tensor([expert], device=scores_TE.device)
    others_TE = scores_TE.index_fill(1, at, float("-inf"))
    return scores_TE[:, expert] - others_TE.topk(top_k, dim=-1).values[:, -1]


@torch.no_grad()
def raise_bias(router: Router, x_TD: Tensor, expert: int, share: float) -> float:
    """Raise the biases of an expert until it has a share of the tokens, none above the highest of the others.

    Returns how far they were raised in sum: 0 where no bias is below another, and where none holds the expert off.
    """
    raised = 0.0
    for name in BIASES:
        if name not in router.tensors or _share(router, x_TD, expert) >= share:
            continue
        bias_E = router.tensors[name]
        start, low, high = float(bias_E[expert]), 0.0, float(bias_E.max() - bias_E[expert])
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            bias_E[expert] = start + middle
            low, high = (low, middle) if _share(router, x_TD, expert) >= share else (middle, high)
        bias_E[expert] = start + high
        raised += high
    return raised


def _share(router: Router, x_TD: Tensor, expert: int) -> float:
    return float((leads(pick_scores(router, x_TD), expert, router.moe.top_k) > 0.0).double().mean())
