"""Centroids of token embeddings, clusters of equal size: where gates that go by meaning start.

Shapes: V vocabulary, D model width, E experts.
Source: Lloyd's k-means on the sphere with a balanced assignment step (Bradley, Bennett & Demiriz 2000, "Constrained
K-Means Clustering").
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from moe_core.routers.assignment import balanced_assignment

NUM_ROUNDS = 8
# Larger vocabularies are sampled: the centroids hardly move, and an assignment costs time for each entry.
MAX_ENTRIES = 4096


def centroids_of(x_VD: Tensor, num_experts: int, seed: int) -> Tensor:
    """(E, D) float32 unit vectors around which equally many of the rows lie; equal seeds give equal centroids.

    Rows are taken by their direction. The start is farthest-first, so that planted clusters are found whole.
    """
    generator = torch.Generator().manual_seed(seed)
    x_VD = normalize(x_VD.detach().float(), dim=-1)
    if x_VD.shape[0] > MAX_ENTRIES:
        x_VD = x_VD[torch.randperm(x_VD.shape[0], generator=generator)[:MAX_ENTRIES]]
    centroids_ED = _far_apart(x_VD, num_experts, generator)
    for _ in range(NUM_ROUNDS):
        owner_V = balanced_assignment(x_VD @ centroids_ED.t())
        sums_ED = torch.zeros_like(centroids_ED).index_add_(0, owner_V, x_VD)
        # An expert without rows (fewer entries than experts) stays where it is.
        moved_ED = torch.where(
            sums_ED.abs().sum(-1, keepdim=True) > 0, normalize(sums_ED, dim=-1), centroids_ED
        )
        if torch.equal(moved_ED, centroids_ED):
            break
        centroids_ED = moved_ED
    return centroids_ED


def _far_apart(x_VD: Tensor, num_experts: int, generator: torch.Generator) -> Tensor:
    """Rows to start from: one at random, then again and again the one farthest from all so far."""
    picked = [int(torch.randint(x_VD.shape[0], (1,), generator=generator))]
    nearest_V = x_VD @ x_VD[picked[0]]
    while len(picked) < num_experts:
        picked.append(int(nearest_V.argmin()))
        nearest_V = torch.maximum(nearest_V, x_VD @ x_VD[picked[-1]])
    return x_VD[picked].clone()
