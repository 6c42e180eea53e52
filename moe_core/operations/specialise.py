"""Clone an expert and let the clone, and nothing else, learn one domain.

The clone is a twin of its source between which the gate chooses (hold 0): a token that would have gone to the source
goes to whichever of the two has the higher logit, so no other expert gains or loses a token at the clone's birth. Then
the clone's weights learn the language of its domain, and its gate row learns to win the domain's tokens from its source.

Shapes: T tokens, D model width, E experts.
Source: Wang et al. 2024, "Let the Expert Stick to His Last" (training chosen experts only); the pairwise gate loss is
logistic regression on the difference of two gate rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.grow import add_expert, release_twins
from moe_core.operations.learning import check_next_tokens, dealt, learning_rate_at, mean_loss
from moe_core.operations.measure import compare, hidden_of, listening, loads
from moe_core.operations.parts import check_spec, foretold, moe_part
from moe_core.operations.prompts import Prompts
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
    prompts, and for a model in which a hash chooses between other twins.
    """
    check_spec(spec, SpecialiseCloneSpec)
    foretold(model, spec)
    moe = moe_part(model)
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
        steps=spec.steps,
        learning_rate=spec.learning_rate,
        batch_prompts=spec.batch_prompts,
        seed=spec.seed,
        watch=watch,
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


def learn_rows(
    model: Decoder,
    experts_L: Sequence[int],
    loss_of: Callable[[Prompts, Prompts | None], Tensor],
    prompts: tuple[Prompts, Prompts],
    *,
    steps: int,
    learning_rate: float,
    batch_prompts: int,
    seed: int,
    watch: Watch,
) -> None:
    """AdamW on one expert of each layer, its gate row and logit bias, in place; every other number stays bit for bit.

    `loss_of` gets a batch of each of the two sets of prompts, None where the second is empty.
    """
    model.requires_grad_(False)
    learning = [
        (weight, expert)
        for layer, expert in zip(model.moe_layers(), experts_L, strict=True)
        for weight in _weights(layer)
    ]
    whole, rows = [weight for weight, _ in learning], [expert for _, expert in learning]
    for weight in whole:
        weight.requires_grad_(True)
    # Float32 copies of the clone's own entries: the only thing that an optimiser ever sees.
    masters = [weight.detach()[row].float().clone() for weight, row in zip(whole, rows, strict=True)]
    adam = torch.optim.AdamW(masters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    batches = zip(*(dealt(one, batch_prompts, generator) for one in prompts), strict=False)
    for step, (batch, other) in zip(range(steps), batches, strict=False):
        assert batch is not None
        loss = loss_of(batch, other)
        gradients = torch.autograd.grad(loss, whole, allow_unused=True)
        for master, gradient, row in zip(masters, gradients, rows, strict=True):
            master.grad = torch.zeros_like(master) if gradient is None else gradient[row].float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        adam.param_groups[0]["lr"] = learning_rate_at(step, steps, learning_rate)
        adam.step()
        with torch.no_grad():
            for weight, master, row in zip(whole, masters, rows, strict=True):
                weight[row] = master.to(weight.dtype)
        watch("learn", step + 1, steps)
    model.requires_grad_(True)


def _weights(layer: MoeMlp) -> Iterator[Tensor]:
    yield layer.experts.gate_up_E2FD
    yield layer.experts.down_EDF
    yield layer.router.weight
    if "bias" in layer.router.tensors:
        yield layer.router.tensors["bias"]


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
