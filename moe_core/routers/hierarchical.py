"""Domain, then group, then expert: three softmaxes, one inside the other, and the k best of the products.

Experts are numbered so that those of a group, and groups of a domain, are neighbours. Where the logits of a domain and of
a group are the logsumexp of what they hold, the product is the flat softmax: the hierarchy can say all that a flat gate can,
and says it with gates of their own for what is coarse.

Shapes: T tokens, D model width, E experts, N domains, G groups of all domains.
Source: a mixture of mixtures as in Jordan & Jacobs 1994, "Hierarchical Mixtures of Experts", with a joint top-k.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.checks import check_shapes
from moe_core.routers.logits import adjusted
from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import softmax_choice
from moe_core.spec.gate import Hierarchical


def hierarchical(gate: Hierarchical, weights: GateWeights, call: GateCall) -> Routing:
    """The k experts with the highest product of probabilities.

    `statistics` holds the mean shares of domains and groups over the tokens that are real and finite; zeros without any.
    The domain prior and the temperature act on the logarithm of the product, as they do on the logits of a flat gate.
    """
    levels = level_logits(weights, call)
    routing = softmax_choice(adjusted(joint_logits(*levels), call), call, renormalised=call.norm_topk_prob)
    shares_TG = routing.probs_TE.detach().unflatten(-1, (gate.num_groups, -1)).sum(-1)
    counted_T = shares_TG.isfinite().all(-1)
    counted_T = counted_T if call.real_T is None else counted_T & call.real_T
    share_G = torch.where(counted_T[:, None], shares_TG, 0.0).sum(0) / counted_T.sum().clamp(min=1)
    statistics = {
        "group_share_G": share_G,
        "domain_share_N": share_G.unflatten(-1, (gate.num_domains, -1)).sum(-1),
    }
    return replace(routing, statistics=statistics, levels_TS=normalisers(gate, *levels))


def level_logits(weights: GateWeights, call: GateCall) -> tuple[Tensor, Tensor, Tensor]:
    """(T, N), (T, G) and (T, E) float32: what the maps of the three levels say."""
    x_TD = call.hidden_TD.float()
    check_shapes(x_TD, weights["weight"], call.top_k)
    domain_TN, group_TG = (linear(x_TD, weights[name].float()) for name in ("domain_weight", "group_weight"))
    return domain_TN, group_TG, linear(x_TD, weights["weight"].float())


def joint_logits(domain_TN: Tensor, group_TG: Tensor, expert_TE: Tensor) -> Tensor:
    """log p(domain) + log p(group | domain) + log p(expert | group): (T, E); its exponentials sum to one."""
    num_domains, num_groups = domain_TN.shape[-1], group_TG.shape[-1]
    log_domain_TN1 = torch.log_softmax(domain_TN, -1)[..., None]
    log_group_TNg = torch.log_softmax(group_TG.unflatten(-1, (num_domains, -1)), -1)
    log_group_TG1 = (log_domain_TN1 + log_group_TNg).flatten(-2)[..., None]
    log_expert_TGe = torch.log_softmax(expert_TE.unflatten(-1, (num_groups, -1)), -1)
    return (log_group_TG1 + log_expert_TGe).flatten(-2)


def normalisers(gate: Hierarchical, domain_TN: Tensor, group_TG: Tensor, expert_TE: Tensor) -> Tensor:
    """(T, S): the logsumexp of each softmax of the tree. One of a single branch decides nothing and is left out.

    Those of the joint logits would say nothing: the product of shares sums to one whatever the maps give.
    """
    siblings = [
        domain_TN[:, None],
        group_TG.unflatten(-1, (gate.num_domains, -1)),
        expert_TE.unflatten(-1, (gate.num_groups, -1)),
    ]
    deciding = [part for part in siblings if part.shape[-1] > 1] or siblings[-1:]
    return torch.cat([part.logsumexp(-1) for part in deciding], dim=-1)
