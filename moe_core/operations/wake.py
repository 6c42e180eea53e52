"""Give experts that hardly anything reaches something to do: the tokens that were nearest to choosing them.

In each expert layer one expert, the least used unless it is named, its gate row and its bias learn; nothing else changes. Of
every batch the tokens whose margin to it is smallest (the k-th best score among the others less its own) are drawn to it,
as many as its fair share; all others are held off by the same loss, so that it does not take what others do. What the
tokens that reach it say next teaches its weights.

What a token is nearest to is told by the scores that the gate picks with. Where a bias below those of others holds the
expert off, it is raised first, as far as the fair share needs and not above the highest: a gradient would take too long to
get there, or, for a bias that counts for the choice only, never would.

Shapes: T tokens, D model width, E experts, K top_k.
Source: our own; the pairwise gate loss is that of `moe_core.operations.specialise`, the margin that of
`moe_core.operations.metrics`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.edit import router_inputs
from moe_core.operations.halves import check_learns_alone
from moe_core.operations.learning import check_next_tokens, learn_rows, mean_loss
from moe_core.operations.parts import check_spec, foretold, moe_part, rebuilt
from moe_core.operations.passes import compare, listening, loads
from moe_core.operations.picking import BIASES, leads, pick_scores, raise_bias
from moe_core.operations.prompts import Prompts, check_prompts
from moe_core.operations.watch import Watch, unwatched
from moe_core.spec import MoeSpec
from moe_core.spec.demands import spread
from moe_core.spec.operations import WakeExpertSpec

# Tokens that tell how far a bias has to rise.
BIAS_TOKENS = 2048


def wake_expert(
    model: Decoder,
    spec: WakeExpertSpec,
    prompts: Prompts,
    measured_on: Prompts | None = None,
    watch: Watch = unwatched,
) -> tuple[Decoder, dict[str, Any]]:
    """The model in which one expert of each layer has learnt; every other tensor, and every other row, bit for bit.

    The report has its share of the load by layer before and after, over the fair share, on `measured_on` (default: the
    prompts learnt from). Raises SpecError where every expert is always chosen, for twins, which share their tokens, and for
    half of an expert, whose gate row is that of the other half.
    """
    check_spec(spec, WakeExpertSpec)
    check_prompts(prompts)
    check_prompts(measured_on, or_none=True)
    foretold(model, spec)
    moe = moe_part(model)
    check_next_tokens(prompts)
    chosen = [experts[0] for experts in _chosen(model, spec, prompts, watch)]
    check_learns_alone(model, chosen)
    woken = rebuilt(model, model.spec)
    raised = _raise_biases(woken, chosen, spec, prompts, watch)
    rows = dict(zip(moe.moe_layers, chosen, strict=True))
    learn_rows(
        woken,
        chosen,
        lambda batch, _other: _loss(woken, rows, spec, batch),
        (prompts, prompts.take([])),
        spec,
        watch,
    )
    shown = measured_on or prompts
    measured = compare(model, woken, shown, watch=watch)
    return woken, {
        "kind": spec.kind,
        "woken": chosen,
        "share_before": _share_of_fair(model, chosen, shown),
        "share_after": _share_of_fair(woken, chosen, shown),
        "bias_raised": raised,
        "steps": spec.steps,
        **measured,
    }


def _chosen(model: Decoder, spec: WakeExpertSpec, prompts: Prompts, watch: Watch) -> list[list[int]]:
    if spec.expert is not None:
        return spread(moe_part(model), spec.expert)
    return [[int(load_E.argmin())] for load_E in loads(model, prompts, watch)]


def _drawn_share(moe: MoeSpec, spec: WakeExpertSpec) -> float:
    return min(1.0, spec.share * moe.top_k / moe.num_experts)


def _raise_biases(
    model: Decoder, chosen: list[int], spec: WakeExpertSpec, prompts: Prompts, watch: Watch
) -> list[float]:
    """How far the bias of one expert of each layer was raised, in place; nothing where the gates have none."""
    if not any(name in next(iter(model.moe_layers())).router.tensors for name in BIASES):
        return []
    seen_L, share = router_inputs(model, prompts, BIAS_TOKENS, watch), _drawn_share(moe_part(model), spec)
    return [
        raise_bias(layer.router, seen_L[layer.layer], expert, share)
        for layer, expert in zip(model.moe_layers(), chosen, strict=True)
    ]


def _share_of_fair(model: Decoder, chosen: list[int], prompts: Prompts) -> list[float]:
    """The load of one expert of each layer over the fair share: 1 is fair, below 0.01 it is dead."""
    load_LE = loads(model, prompts).double()
    fair_L = load_LE.sum(-1).clamp(min=1.0) / load_LE.shape[1]
    return [
        float(load_E[expert] / fair) for load_E, expert, fair in zip(load_LE, chosen, fair_L, strict=True)
    ]


def _loss(model: Decoder, rows: dict[int, int], spec: WakeExpertSpec, batch: Prompts) -> Tensor:
    """What the batch says next, and on which side of the k-th best each token puts the expert."""
    drawn: list[Tensor] = []
    moe, real_T = moe_part(model), batch.real_T
    share = _drawn_share(moe, spec)

    def note(layer: MoeMlp, x_TD: Tensor) -> None:
        expert = rows[layer.layer]
        scores_TE = pick_scores(layer.router, x_TD[real_T].detach(), expert)
        drawn.append(draw_loss(scores_TE, expert, share, moe.top_k))

    with listening(model, note):
        loss = mean_loss(model, batch)
    return loss + spec.gate_weight * torch.stack(drawn).mean()


def draw_loss(scores_TE: Tensor, expert: int, share: float, top_k: int) -> Tensor:
    """Logistic loss of one expert's lead over the k-th best of the others: up for the nearest tokens, down for the rest.

    Args:
        scores_TE: what the gate picks with (`pick_scores`), float32.
        expert: the one that learns.
        share: of the tokens, how many are drawn; at least one is.
        top_k: how many experts a token has.
    """
    lead_T = leads(scores_TE, expert, top_k)
    near = lead_T.detach().topk(max(1, round(share * lead_T.shape[0]))).indices
    side_T = torch.full_like(lead_T, -1.0).index_fill(0, near, 1.0)
    losses_T = -logsigmoid(side_T * lead_T)
    # Both sides weigh the same, however few are drawn.
    sides = [losses_T[side_T == side].mean() for side in (1.0, -1.0) if bool((side_T == side).any())]
    return torch.stack(sides).mean()
