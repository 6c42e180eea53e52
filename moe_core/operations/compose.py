"""Several models of one shape become one mixture, with a gate that knows their domains.

Dense models give one expert each to every expert layer; mixtures give all of theirs, and keep their own gate rows beside
the row of their domain. The gate of each layer is fitted on the input that it will see in the composed model: in one
forward pass over all prompts each layer is fitted just before it runs, so the layers below it are already composed.

Of every four prompts of a domain two are fitted on, one sets the temperature, and one is held out: what is reported, losses
too, is of those. A word that comes in the fitted prompts is not held out by that: accuracy is told of tokens that none of
them has, too.

How sure the gate is (its temperature) is calibrated on the gate that is made, the models' own rows, temperature and
balancing biases in it (`moe_core.operations.compose_gates`), and what is told of a layer is of that gate. It changes outputs
where more than one expert is weighed, or a weight is not made to be one; with one expert of full weight only what a domain
prior's bias or floor weighs against.

Shapes: N prompts or tokens, S tokens of a prompt, D model width, E experts, T tokens with padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.model.decoder import Block, Decoder
from moe_core.model.layers import DenseMlp, MoeMlp, Router
from moe_core.operations.compose_gates import Samples, fit_gate
from moe_core.operations.gate_fit import Labelled
from moe_core.operations.parts import (
    check_spec,
    decoder_of,
    foretold_spec,
    moe_part,
    per_expert,
    rebuilt,
    tensors_of,
)
from moe_core.operations.passes import hidden_of, listening, loss_by_domain
from moe_core.operations.prompts import Prompts, check_prompts
from moe_core.operations.watch import Watch, unwatched
from moe_core.spec import MoeSpec
from moe_core.spec.kinship import differences, joined
from moe_core.spec.operations import ComposeSpec

EXPERT_TENSORS = frozenset({"experts.gate_up_E2FD", "experts.down_EDF"})
LEAST_PROMPTS = 4
MAX_TOKENS = 1 << 16
# Of every four prompts of a domain: those that rows are fitted on, that which sets the temperature; the one held out.
FITTED: tuple[tuple[int, ...], ...] = ((0, 1), (2,))
HELD_OUT = (3,)


@torch.no_grad()
def compose(
    models: Sequence[Decoder], spec: ComposeSpec, prompts: Prompts, watch: Watch = unwatched
) -> tuple[Decoder, dict[str, Any]]:
    """One mixture of all models, which are left as they were; held-out routing accuracy is told for every layer.

    Models may differ in family, in the tokens that begin and end a text and in how long it may be
    (`moe_core.spec.kinship.joined`). Raises SpecError when they differ in anything else, their gate has no row to add a
    domain's to, or a domain has too few prompts.
    """
    check_spec(spec, ComposeSpec)
    check_prompts(prompts)
    _check(models, spec, prompts)
    composed = rebuilt(models[0], foretold_spec(joined([model.spec for model in models]), spec))
    trunk = _join_trunks(composed, models, spec.trunk)
    for layer in composed.moe_layers():
        _fill_experts(layer, models)
    layers = _fit_gates(composed, models, spec, prompts, watch)
    unseen = _unseen(prompts, spec)
    return composed, {
        "kind": spec.kind,
        "domains": list(spec.domains),
        "gate": spec.gate,
        "trunk": spec.trunk,
        "trunk_distance": trunk,
        "temperature_acts": _temperature_acts(moe_part(composed), len(models)),
        "layers": layers,
        "loss_after": loss_by_domain(composed, unseen, watch=watch),
        "loss_of_each": {
            code: loss_by_domain(model, unseen, watch=watch)
            for code, model in zip(spec.domains, models, strict=True)
        },
    }


def _check(models: Sequence[Decoder], spec: ComposeSpec, prompts: Prompts) -> None:
    if len(models) != len(spec.domains):
        raise SpecError(
            f"{len(models)} models are given for {len(spec.domains)} domains; name one for each model"
        )
    for code, model in zip(spec.domains, models, strict=True):
        if apart := differences(models[0].spec, decoder_of(model).spec):
            raise SpecError.of("other_shape", domain=code, first=spec.domains[0], fields=", ".join(apart))
        if (count := len(prompts.of_domain(code))) < LEAST_PROMPTS:
            raise SpecError.of("too_few_prompts", domain=code, count=count, least=LEAST_PROMPTS)
    prompts.check_fits(joined([model.spec for model in models]))
    if prompts.ids_NS.numel() > MAX_TOKENS:
        raise SpecError.of("too_many_tokens", tokens=prompts.ids_NS.numel(), most=MAX_TOKENS)


def _join_trunks(composed: Decoder, models: Sequence[Decoder], trunk: str) -> list[float]:
    """Fill what is not an expert; tells how far each model's trunk is from the first one's, relative to its norm."""
    sources = [tensors_of(model) for model in models]
    target = tensors_of(composed)
    shared = [
        name
        for name, tensor in target.items()
        if name in sources[0] and sources[0][name].shape == tensor.shape and ".mlp.experts." not in name
    ]
    if trunk == "mean":
        for name in shared:
            target[name].copy_(torch.stack([source[name].float() for source in sources]).mean(0))
    size = sum(float(sources[0][name].float().square().sum()) for name in shared)
    distances = []
    for source in sources:
        apart = sum(
            float((source[name].float() - sources[0][name].float()).square().sum()) for name in shared
        )
        distances.append((apart / size) ** 0.5)
    return distances


def _fill_experts(layer: MoeMlp, models: Sequence[Decoder]) -> None:
    target = per_expert(layer)
    for place, model in enumerate(models):
        block = model.layers[layer.layer]
        assert isinstance(block, Block)
        if isinstance(block.mlp, DenseMlp):
            unknown = {name for name in target if name.startswith("experts.")} - EXPERT_TENSORS
            if unknown:
                raise SpecError(f"dense models have nothing for {', '.join(sorted(unknown))} of an expert")
            layer.experts.gate_up_E2FD[place] = block.mlp.gate_up_proj.weight
            layer.experts.down_EDF[place] = block.mlp.down_proj.weight
            continue
        own = per_expert(block.mlp)
        count = block.mlp.moe.num_experts
        for name, tensor in target.items():
            tensor[place * count : (place + 1) * count] = own[name]


def _fit_gates(
    composed: Decoder, models: Sequence[Decoder], spec: ComposeSpec, prompts: Prompts, watch: Watch
) -> list[dict[str, Any]]:
    """Fit every gate in one forward pass, lowest layer first."""
    order = [place for code in spec.domains for place in prompts.of_domain(code)]
    used = prompts.take(order)
    # Domains count as the models do, whatever order the prompts name them in.
    domain_N = torch.tensor([spec.domains.index(prompts.codes[int(d)]) for d in used.domain_N])
    turn_N = torch.cat([torch.arange(int((domain_N == c).sum())) % 4 for c in range(len(spec.domains))])
    told: list[dict[str, Any]] = []

    new_M = _never_fitted(used, turn_N)

    def fit(layer: MoeMlp, x_TD: Tensor) -> None:
        x_NSD = x_TD.view(*used.ids_NS.shape, -1)
        fitted, tuned, held_out = (
            _labelled(x_NSD, used, domain_N, turn_N, turns) for turns in (*FITTED, HELD_OUT)
        )
        samples = Samples(fitted, tuned, held_out, new_M)
        routers = _routers(models, layer.layer)
        if not routers:
            layer.router.weight.zero_()
        told.append({"layer": layer.layer, **fit_gate(layer, spec, routers, samples)})
        watch("fit", len(told), len(moe_part(composed).moe_layers))

    with listening(composed, fit):
        hidden_of(composed, used)
    return told


def _routers(models: Sequence[Decoder], layer: int) -> list[Router]:
    """The routers of a layer of mixtures; none where the models are dense there."""
    blocks = [model.layers[layer] for model in models]
    return [
        block.mlp.router for block in blocks if isinstance(block, Block) and isinstance(block.mlp, MoeMlp)
    ]


def _temperature_acts(moe: MoeSpec, num_models: int) -> bool:
    """Whether the calibrated temperature changes what the model says without any prior."""
    # Experts of one model are told apart by their own rows: there the new ones weigh against them, as against biases.
    return (
        moe.top_k > 1
        or not moe.weights_sum_to_one
        or moe.num_experts > num_models
        or bool(getattr(moe.gate, "selection_bias", False))
    )


def _unseen(prompts: Prompts, spec: ComposeSpec) -> Prompts:
    """The prompts that nothing was fitted on; of a domain that is nobody's all of them."""
    chosen = (
        prompts.of_domain(code)[HELD_OUT[0] :: 4] if code in spec.domains else prompts.of_domain(code)
        for code in prompts.codes
    )
    return prompts.take([place for places in chosen for place in places])


def _chosen_NS(prompts: Prompts, turn_N: Tensor, turns: tuple[int, ...]) -> Tensor:
    """(N, S) bool: the real tokens of the prompts whose turn it is."""
    return prompts.real_NS & torch.isin(turn_N, torch.tensor(turns))[:, None]


def _never_fitted(prompts: Prompts, turn_N: Tensor) -> Tensor:
    """For each held-out token, in their order, whether no prompt that anything was fitted on has its vocabulary entry."""
    seen_NS = torch.zeros_like(prompts.real_NS)
    for turns in FITTED:
        seen_NS |= _chosen_NS(prompts, turn_N, turns)
    return ~torch.isin(prompts.ids_NS[_chosen_NS(prompts, turn_N, HELD_OUT)], prompts.ids_NS[seen_NS])


def _labelled(
    x_NSD: Tensor, prompts: Prompts, domain_N: Tensor, turn_N: Tensor, turns: tuple[int, ...]
) -> Labelled:
    """The real tokens of the prompts whose turn it is."""
    chosen_NS = _chosen_NS(prompts, turn_N, turns)
    row_NS = torch.arange(len(prompts))[:, None].expand_as(chosen_NS)
    prompt_N = row_NS[chosen_NS]
    return Labelled(x_NSD[chosen_NS], domain_N[prompt_N], prompt_N)
