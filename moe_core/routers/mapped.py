"""Whether a token reaches its own experts: the one definition behind every share to own experts (the mapped share).

A token of a domain reaches its own experts in a layer when at least one of its top-k experts there is mapped to that
domain. The share is taken over the tokens of a domain and averaged over the expert layers. Tokens of no domain have no
experts of their own and do not count. With one mapped expert the share of a domain's assignments could never pass 1/k;
this share goes from 0 to 1 whatever k is. A map that names one of a set of twins names with it those that it gives to nobody
(`RoutingSpec.with_twins`).

Shapes: T tokens, K top_k, E experts, N domains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.spec import MoeSpec, RoutingSpec


def label_table(routing: RoutingSpec, moe: MoeSpec) -> Tensor:
    """(N, E) float32: 1 where the expert of a mixture is mapped to the domain, or a twin that the map does not name.

    Raises SpecError for an expert that the mixture does not have.
    """
    routing.check_fits(moe.num_experts)
    labels = routing.with_twins(moe.twins).label_matrix(moe.num_experts)
    return torch.tensor(labels, dtype=torch.float32).view(-1, moe.num_experts)


def mapped_hits(expert_ids_TK: Tensor, labels_NE: Tensor, domain_T: Tensor) -> Tensor:
    """(…, T) bool: whether one of the token's top-k experts is mapped to its domain; False for no domain.

    Args:
        expert_ids_TK: (…, T, K) int64, one layer's choices or those of many; -1 is an empty place.
        labels_NE: (N, E), not 0 where the expert is mapped to the domain.
        domain_T: (T,) int64, -1 for no domain.
    """
    if not labels_NE.shape[0]:
        return torch.zeros(expert_ids_TK.shape[:-1], dtype=torch.bool, device=expert_ids_TK.device)
    mine_TE = labels_NE.bool()[domain_T.clamp(min=0)].expand(*expert_ids_TK.shape[:-1], -1)
    mine_TK = mine_TE.gather(-1, expert_ids_TK.clamp(min=0)) & (expert_ids_TK >= 0)
    return mine_TK.any(-1) & (domain_T >= 0)
