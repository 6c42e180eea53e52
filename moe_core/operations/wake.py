"""Give experts that hardly anything reaches something to do: the tokens that were nearest to choosing them.

In each expert layer one expert, the least used unless it is named, and its gate row learn; nothing else changes. Of every
batch the tokens whose margin to that expert is smallest (the k-th best logit among the others less its own) are drawn to it,
as many as its fair share; all others are held off by the same loss, so that it does not take what others do. What the
tokens that reach it say next teaches its weights.

Shapes: T tokens, D model width, E experts, K top_k.
Source: our own; the pairwise gate loss is that of `moe_core.operations.specialise`, the margin that of
`moe_core.operations.metrics`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from moe_core.errors import SpecError
from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.learning import mean_loss
from moe_core.operations.measure import compare, listening, loads
from moe_core.operations.parts import changeable, chosen_of, moe_part, rebuilt
from moe_core.operations.prompts import Prompts
from moe_core.operations.specialise import learn_rows
from moe_core.operations.watch import Watch, unwatched
from moe_core.spec.operations import WakeExpertSpec


def wake_expert(
    model: Decoder,
    spec: WakeExpertSpec,
    prompts: Prompts,
    measured_on: Prompts | None = None,
    watch: Watch = unwatched,
) -> tuple[Decoder, dict[str, Any]]:
    """The model in which one expert of each layer has learnt; every other tensor, and every other row, bit for bit.

    The report has its share of the load by layer before and after, over the fair share, on `measured_on` (default: the
    prompts learnt from). Raises SpecError where every expert is always chosen, and for twins, which share their tokens.
    """
    moe = changeable(model)
    if moe.twins is not None:
        raise SpecError.of("twins_are_never_idle")
    if moe.top_k == moe.num_experts:
        raise SpecError.of("none_is_idle", num_experts=moe.num_experts)
    chosen = [experts[0] for experts in _chosen(model, spec, prompts, watch)]
    woken = rebuilt(model, model.spec)
    rows = dict(zip(moe.moe_layers, chosen, strict=True))
    learn_rows(
        woken,
        chosen,
        lambda batch, _other: _loss(woken, rows, spec, batch),
        (prompts, prompts.take([])),
        steps=spec.steps,
        learning_rate=spec.learning_rate,
        batch_prompts=spec.batch_prompts,
        seed=spec.seed,
        watch=watch,
    )
    shown = measured_on or prompts
    measured = compare(model, woken, shown, watch=watch)
    return woken, {
        "kind": spec.kind,
        "woken": chosen,
        "share_before": _share_of_fair(model, chosen, shown),
        "share_after": _share_of_fair(woken, chosen, shown),
        "steps": spec.steps,
        **measured,
    }


def _chosen(model: Decoder, spec: WakeExpertSpec, prompts: Prompts, watch: Watch) -> list[list[int]]:
    if spec.expert is not None:
        return chosen_of(model, spec.expert)
    return [[int(load_E.argmin())] for load_E in loads(model, prompts, watch)]


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
    share = min(1.0, spec.share * moe.top_k / moe.num_experts)

    def note(layer: MoeMlp, x_TD: Tensor) -> None:
        drawn.append(
            draw_loss(layer.router.weight, x_TD[real_T].detach(), rows[layer.layer], share, moe.top_k)
        )

    with listening(model, note):
        loss = mean_loss(model, batch)
    return loss + spec.gate_weight * torch.stack(drawn).mean()


def draw_loss(weight_ED: Tensor, x_TD: Tensor, expert: int, share: float, top_k: int) -> Tensor:
    """Logistic loss of one expert's lead over the k-th best of the others: up for the nearest tokens, down for the rest.

    Args:
        weight_ED: the gate's rows, float32; only that of `expert` gets a gradient.
        x_TD: what the router sees.
        expert: the one that learns.
        share: of the tokens, how many are drawn; at least one is.
        top_k: how many experts a token has.
    """
    others_TE = (x_TD.float() @ weight_ED.detach().t()).index_fill(
        1, torch.tensor([expert], device=x_TD.device), float("-inf")
    )
    lead_T = x_TD.float() @ weight_ED[expert] - others_TE.topk(top_k, dim=-1).values[:, -1]
    near = lead_T.detach().topk(max(1, round(share * lead_T.shape[0]))).indices
    side_T = torch.full_like(lead_T, -1.0).index_fill(0, near, 1.0)
    losses_T = -logsigmoid(side_T * lead_T)
    # Both sides weigh the same, however few are drawn.
    sides = [losses_T[side_T == side].mean() for side in (1.0, -1.0) if bool((side_T == side).any())]
    return torch.stack(sides).mean()
