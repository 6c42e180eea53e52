"""From a dense model to a mixture of experts that computes the same function at the moment of birth.

Each expert starts with neurons of the dense feed-forward, each shared expert too, so that their sum is the dense
output. With F the dense width, W the experts' and S the shared expert's:

* no shared expert, W >= F: every expert is the dense feed-forward (zeros fill a wider one). Kept, because
  renormalised weights sum to one.
* shared expert, S >= F and W >= F: shared and routed experts each carry one half. Halves are exact in binary.
* shared expert, S >= F > W: the shared expert carries all, the routed ones start silent (down is zero).
* shared expert, S < F <= S + W: the shared expert has the first S neurons, every routed one the rest. Kept.
* otherwise the experts have different slices, scaled up so that uniform routing is right on average: not kept.

* experts of several kinds: runs of dense neurons as wide as each of them, scaled as slices; kept only where every
  expert holds the whole feed-forward.

With granularity g each copy is cut into g slices (experts c·g to c·g + g - 1 are copy c) that share one router row, so
that the top k hold whole copies: kept, with each slice scaled by g.

Source: Komatsuzaki et al. 2022, "Sparse Upcycling"; He et al. 2024, "Upcycling Large Language Models into Mixture of
Experts", arXiv 2410.07524 (virtual groups, the scale of slices: g renormalised, E·g / K with E slices otherwise). There
the scale is spread over the three matrices by its cube root, which is exact only where the activation is linear; here
it is all on the way back. A gate whose weights do not sum to one has experts scaled by the inverse of what they sum to
when it treats all alike (E / K for a softmax): right for a uniform router only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_core.experts import MixedExperts
from moe_core.model.decoder import Block, Decoder
from moe_core.model.layers import DenseMlp, MoeMlp
from moe_core.operations.parts import check_spec, decoder_of, foretold, rebuilt
from moe_core.operations.watch import Watch, unwatched
from moe_core.routers.start import Words, start_gate
from moe_core.spec import LayoutSpec, ModelSpec, MoeSpec
from moe_core.spec.expert_kinds import ExpertKind, MlpExpert, SwigluExpert
from moe_core.spec.foresee import cut_layout
from moe_core.spec.gate import Base, SigmoidGroups, Soft, SoftmaxTopk
from moe_core.spec.operations import UpcycleSpec


@dataclass(frozen=True, slots=True)
class NeuronShare:
    """Which dense neurons a feed-forward starts with, and the factor on its way back."""

    start: int
    count: int
    scale: float


@dataclass(frozen=True, slots=True)
class UpcyclePlan:
    """The neurons of the shared expert and of each routed one."""

    shared: NeuronShare | None
    routed: tuple[NeuronShare, ...]
    keeps_function: bool


def plan_upcycle(dense: ModelSpec, layout: LayoutSpec, granularity: int = 1) -> UpcyclePlan:
    """Who starts with which neurons; raises SpecError when the layout does not fit the model."""
    moe = layout.applied_to(dense).moe
    assert moe is not None
    full, inner, shared = (
        dense.intermediate_size,
        moe.moe_intermediate_size,
        moe.shared_intermediate_size or 0,
    )
    exact, weight = weight_of_a_token(moe)
    gain = 1.0 / weight
    if moe.expert_kinds is not None:
        first = NeuronShare(0, min(shared, full), 1.0) if shared else None
        alike = not shared and all(_is_the_dense_one(kind, dense) for kind in moe.expert_kinds)
        return UpcyclePlan(
            first, _slices_of_kinds(moe.expert_kinds, min(shared, full), full, gain), exact and alike
        )
    if granularity > 1:
        cut = tuple(NeuronShare(place * inner, inner, gain * granularity) for place in range(granularity))
        # Other gates may take some slices of a copy and leave the rest.
        whole = isinstance(moe.gate, SoftmaxTopk) or (
            isinstance(moe.gate, SigmoidGroups) and moe.gate.num_groups == 1
        )
        return UpcyclePlan(None, cut * (moe.num_experts // granularity), exact and whole)
    if shared >= full:
        part = 0.5 if inner >= full else 0.0
        routed = NeuronShare(0, min(inner, full), part * gain)
        exact = exact or part == 0.0
        return UpcyclePlan(NeuronShare(0, full, 1.0 - part), (routed,) * moe.num_experts, exact)
    left = full - shared
    slices = _slices(shared, left, inner, moe.num_experts, gain)
    first = NeuronShare(0, shared, 1.0) if shared else None
    return UpcyclePlan(first, slices, exact and inner >= left)


def weight_of_a_token(moe: MoeSpec) -> tuple[bool, float]:
    """What the weights of a token's experts sum to: whether always, and (else) where the gate treats all alike."""
    gate = moe.gate
    limited = moe.capacity is not None and moe.capacity.eval_factor is not None
    # Slots of Soft MoE are mixtures of tokens: no weights make an expert of a mixture compute a token's own output.
    exact = not limited and not isinstance(gate, Soft)
    if isinstance(gate, SigmoidGroups):
        if moe.norm_topk_prob:
            return exact, gate.routed_scaling_factor
        score = {"sigmoid": 0.5, "softmax": 1.0 / moe.num_experts, "sqrtsoftplus": math.log(2.0) ** 0.5}
        return False, moe.top_k * gate.routed_scaling_factor * score[gate.scores]
    if moe.weights_sum_to_one or isinstance(gate, Soft):
        return exact, 1.0
    if isinstance(gate, Base):
        return False, 0.5
    return False, moe.top_k / moe.num_experts


def _slices(start: int, left: int, inner: int, num_experts: int, gain: float) -> tuple[NeuronShare, ...]:
    """The remaining neurons for every expert, or slices of them in turn where an expert is too narrow."""
    count = min(inner, left)
    num_slices = -(-left // count)
    scale = gain * left / count
    places = [min(i * count, left - count) for i in range(num_slices)]
    return tuple(
        NeuronShare(start + places[expert % num_slices], count, scale) for expert in range(num_experts)
    )


def _is_the_dense_one(kind: ExpertKind, dense: ModelSpec) -> bool:
    if not isinstance(kind, SwigluExpert):
        return False
    return kind.width >= dense.intermediate_size and kind.activation == dense.activation


def _slices_of_kinds(
    kinds: tuple[ExpertKind, ...], start: int, full: int, gain: float
) -> tuple[NeuronShare, ...]:
    """Runs of neurons as wide as each expert, one after the other and from the first again; none without a width."""
    shares, left, place = [], max(1, full - start), 0
    for kind in kinds:
        count = min(kind.width, left) if isinstance(kind, SwigluExpert | MlpExpert) else 0
        at = min(place % left, left - count)
        shares.append(NeuronShare(start + at if start < full else 0, count, gain * left / max(1, count)))
        place += count
    return tuple(shares)


def keeps_function(dense: ModelSpec, layout: LayoutSpec, granularity: int = 1) -> bool:
    """True when upcycling without noise leaves the model's outputs as they are."""
    return plan_upcycle(dense, cut_layout(dense, layout, granularity), granularity).keeps_function


@torch.no_grad()
def upcycle(
    dense: Decoder, spec: UpcycleSpec, watch: Watch = unwatched, counts_V: Tensor | None = None
) -> tuple[Decoder, dict[str, Any]]:
    """A mixture made of a dense decoder, which is left as it is, and what it has become.

    With noise 0 and a plan that keeps the function, outputs equal the dense model's to rounding. Equal seeds give equal
    models. `counts_V` (V,) says how often each vocabulary entry occurs, for hash gates that balance by frequency; without
    it entries are taken to be listed from frequent to rare. Raises SpecError for a layout that does not fit.
    """
    check_spec(spec, UpcycleSpec)
    dense = decoder_of(dense)
    layout = cut_layout(dense.spec, spec.layout, spec.granularity)
    plan = plan_upcycle(dense.spec, layout, spec.granularity)
    model = rebuilt(dense, foretold(dense, spec))
    generator = torch.Generator().manual_seed(spec.seed)
    words = Words(dense.embed_tokens.weight, counts_V)
    for done, moe in enumerate(model.moe_layers(), start=1):
        block = dense.layers[moe.layer]
        assert isinstance(block, Block) and isinstance(block.mlp, DenseMlp)
        gate = moe.router.tensors
        start_gate(moe.moe, gate, generator, spec.router_std, words, moe.layer)
        if spec.granularity > 1:
            gate["weight"].copy_(
                gate["weight"][:: spec.granularity].repeat_interleave(spec.granularity, dim=0)
            )
        _fill_layer(moe, block.mlp, plan, spec.noise, generator)
        watch("lay", done, len(layout.moe_layers))
    kept = plan.keeps_function and spec.noise == 0.0
    scale = plan.routed[0].scale
    return model, {"kind": spec.kind, "keeps_function": kept, "granularity": spec.granularity, "scale": scale}


def _fill_layer(
    moe: MoeMlp, dense: DenseMlp, plan: UpcyclePlan, noise: float, generator: torch.Generator
) -> None:
    experts = moe.experts
    if isinstance(experts, MixedExperts):
        fill_kinds(experts, dense, plan.routed, noise, generator)
    for expert, share in enumerate(() if isinstance(experts, MixedExperts) else plan.routed):
        _fill(experts.gate_up_E2FD[expert], experts.down_EDF[expert], dense, share)
        if noise:
            _perturb(experts.gate_up_E2FD[expert], noise, generator)
            _perturb(experts.down_EDF[expert], noise, generator)
    if moe.shared_expert is not None and plan.shared is not None:
        shared = moe.shared_expert
        _fill(shared.gate_up_proj.weight, shared.down_proj.weight, dense, plan.shared)


def fill_kinds(
    experts: MixedExperts,
    dense: DenseMlp,
    shares: tuple[NeuronShare, ...],
    noise: float,
    generator: torch.Generator,
) -> None:
    """Experts of several kinds from dense neurons: a swiglu has them whole, an mlp their up rows and the way back.

    A constant expert starts as one half of the token (its shares even, its vector at zero).
    """
    gate_FD, up_FD = dense.gate_up_proj.weight.chunk(2)
    for expert, share in enumerate(shares):
        run = slice(share.start, share.start + share.count)
        source = {"w1.weight": gate_FD[run], "w3.weight": up_FD[run]}
        for name, tensor in experts.tensors(expert).items():
            tensor.zero_()
            if name == "w2.weight":
                tensor[:, : share.count] = dense.down_proj.weight[:, run] * share.scale
            elif name in source:
                tensor[: share.count] = source[name]
            if noise and name in ("w1.weight", "w2.weight", "w3.weight"):
                _perturb(tensor, noise, generator)


def _fill(gate_up_2FD: Tensor, down_DF: Tensor, dense: DenseMlp, share: NeuronShare) -> None:
    """Copy a run of dense neurons; zeros where the target is wider."""
    full, inner = dense.down_proj.weight.shape[1], down_DF.shape[1]
    source = slice(share.start, share.start + share.count)
    gate_up_2FD.zero_()
    down_DF.zero_()
    for half in (0, 1):
        rows = dense.gate_up_proj.weight[half * full : (half + 1) * full][source]
        gate_up_2FD[half * inner : half * inner + share.count] = rows
    down_DF[:, : share.count] = dense.down_proj.weight[:, source] * share.scale


def _perturb(weight: Tensor, noise: float, generator: torch.Generator) -> None:
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    weight += (drawn * noise * weight.float().std()).to(weight.dtype)
