"""Clone an expert and let the clone, and nothing else, learn one domain.

The clone is a twin of its source between which the gate chooses (hold 0): a token that would have gone to the source
goes to whichever of the two has the higher logit, so no other expert gains or loses a token at the clone's birth. Then
the clone's weights learn the language of its domain, and its gate row learns to win the domain's tokens from its source.

Shapes: T tokens, D model width, E experts.
Source: Wang et al. 2024, "Let the Expert Stick to His Last" (training chosen experts only); the pairwise gate loss is
logistic regression on the difference of two gate rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.grow import add_expert, release_twins
from moe_core.operations.halves import check_learns_alone
from moe_core.operations.learning import check_next_tokens, learn_rows, mean_loss
from moe_core.operations.parts import check_spec, foretold, moe_part
from moe_core.operations.passes import compare, hidden_of, listening, loads
from moe_core.operations.prompts import Prompts, check_prompts
from moe_core.operations.watch import Watch, unwatched
from moe_core.spec.operations import AddExpertSpec, ReleaseTwinsSpec, SpecialiseCloneSpec


def specialise_clone(
    model: Decoder,
    spec: SpecialiseCloneSpec,
    prompts: Prompts,
    measured_on: Prompts | None = None,
    watch: Watch = unwatched,
) -> tuple[Decoder, dict[str, Any]]:
    """The model with a clone that has learnt `spec.domain`; every other tensor, and every other row, bit for bit.

    Loss is told per domain on `measured_on` (default: the prompts learnt from). Raises SpecError for a domain without
    prompts, for a model in which a hash chooses between other twins, and for half of an expert as the source: the clone
    would stand for it and not share the gate row of the other half.
    """
    check_spec(spec, SpecialiseCloneSpec)
    check_prompts(prompts)
    check_prompts(measured_on, or_none=True)
    foretold(model, spec)
    moe = moe_part(model)
    check_learns_alone(model, [spec.source] * len(moe.moe_layers))
    mine = prompts.take(prompts.of_domain(spec.domain))
    check_next_tokens(mine)
    others = [row for row in range(len(prompts)) if prompts.codes[int(prompts.domain_N[row])] != spec.domain]
    born, _ = add_expert(model, AddExpertSpec(source=spec.source))
    clone, _ = release_twins(born, ReleaseTwinsSpec())
    learn_rows(
        clone,
        [moe.num_experts] * len(moe.moe_layers),
        lambda batch, other: _loss(clone, moe.num_experts, spec, batch, other),
        (mine, prompts.take(others)),
        spec,
        watch,
    )
    shown = measured_on or prompts
    share = {
        code: clone_share(clone, moe.num_experts, shown.take(shown.of_domain(code))) for code in shown.codes
    }
    measured = compare(model, clone, shown, watch=watch)
    return clone, {
        "kind": spec.kind,
        "expert": moe.num_experts,
        "source": spec.source,
        "domain": spec.domain,
        "steps": spec.steps,
        "clone_share": share,
        **measured,
    }


def clone_share(model: Decoder, expert: int, prompts: Prompts) -> float:
    """Share of all choices of real tokens that one expert gets, over all layers."""
    load_LE = loads(model, prompts).double()
    return float(load_LE[:, expert].sum() / load_LE.sum())


def _loss(
    model: Decoder, clone: int, spec: SpecialiseCloneSpec, batch: Prompts, other: Prompts | None
) -> Tensor:
    """What the domain says next, and on which side of its source each token puts the clone."""
    gate_losses: list[Tensor] = []

    def listen(side: float, real_T: Tensor, layer: MoeMlp, x_TD: Tensor) -> None:
        both = [clone, spec.source]
        z_T2 = x_TD[real_T].detach().float() @ layer.router.weight[both].t()
        if "bias" in layer.router.tensors:
            z_T2 = z_T2 + layer.router.tensors["bias"][both]
        gate_losses.append(-logsigmoid(side * (z_T2[:, 0] - z_T2[:, 1])).mean())

    with listening(model, lambda layer, x_TD: listen(1.0, batch.real_T, layer, x_TD)):
        loss = mean_loss(model, batch)
    if other is not None:
        with torch.no_grad(), listening(model, lambda layer, x_TD: _with_grad(listen, other, layer, x_TD)):
            hidden_of(model, other)
    return loss + spec.gate_weight * torch.stack(gate_losses).mean()


def _with_grad(listen: Any, other: Prompts, layer: MoeMlp, x_TD: Tensor) -> None:
    # The other domains only move the gate: their forward pass keeps no graph, the gate's own little product does.
    with torch.enable_grad():
        listen(-1.0, other.real_T, layer, x_TD)
