"""A large mixture teaches a small one that is made of it.

Layers that change little may be left out first (`num_hidden_layers`, see `moe_core.operations.depth`). Experts that answer
alike are merged: outputs of all experts on the router's true inputs are compared, the most alike groups are joined until
`num_experts` are left, and within a group neurons are aligned with those of its most used expert before they are averaged
by usage. Where weights are not made to sum to one, the scale of the gate makes up for experts that a token has no more, so
that doubled experts fold back. Then the student learns the teacher's next tokens (softened), the teacher's choice among
groups of experts in the layers that it has, and the text itself.

Shapes: L expert layers, E experts, M groups (the student's experts), N tokens, D model width, F expert width, V vocabulary.
Source: Li et al. 2024, "Merge, Then Compress" (groups, alignment); Hinton et al. 2015, "Distilling the Knowledge in a
Neural Network" (softened logits, the factor T²); Rajbhandari et al. 2022, "DeepSpeed-MoE" (mixtures as students).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from moe_core.model.context import RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.align import ExpertWeights, aligned, mean_of
from moe_core.operations.depth import influence, with_layers
from moe_core.operations.edit import ALIGNMENT_TOKENS, router_inputs
from moe_core.operations.halves import check_merged_halves
from moe_core.operations.learning import check_next_tokens, mean_counted, train
from moe_core.operations.parts import check_spec, foretold, moe_part, per_expert, rebuilt
from moe_core.operations.passes import compare, loads, loss_by_domain, next_token_losses
from moe_core.operations.prompts import Prompts, check_prompts
from moe_core.operations.watch import Watch, unwatched
from moe_core.routers import Routing
from moe_core.spec import MoeSpec
from moe_core.spec.fewer_layers import kept_layers
from moe_core.spec.foresee import biases_weigh_on_shares
from moe_core.spec.operations import DistilSpec

# For each expert layer the groups of the teacher's experts that the student's experts stand for.
Groups = list[list[list[int]]]
TINY = 1e-9


def distil(
    teacher: Decoder,
    spec: DistilSpec,
    prompts: Prompts,
    measured_on: Prompts | None = None,
    watch: Watch = unwatched,
) -> tuple[Decoder, dict[str, Any]]:
    """A student with fewer (and perhaps narrower) experts, and what it lost; the teacher is left as it was.

    Figures are those on `measured_on` (default: the prompts learnt from). Raises SpecError when the student would be
    larger than the teacher, for prompts of one token, and where without a step of learning rounding would choose between
    halves of an expert; NonFiniteLoss when learning fails.
    """
    check_spec(spec, DistilSpec)
    check_prompts(prompts)
    check_prompts(measured_on, or_none=True)
    check_next_tokens(prompts)
    # What cannot be is told before anything is computed.
    foretold(teacher, spec)
    keep = _kept(teacher, spec, prompts, watch)
    merged = teacher if keep is None else with_layers(teacher, keep)
    student, groups = merged_student(merged, spec, prompts, watch)
    if not spec.steps:
        # Learning would tell them apart.
        check_merged_halves(merged, student)
    shown = measured_on or prompts
    at_first = loss_by_domain(student, shown, watch=watch)
    if spec.steps:
        train(
            student,
            prompts,
            lambda batch: distillation_loss(teacher, student, groups, batch, spec, keep),
            steps=spec.steps,
            learning_rate=spec.learning_rate,
            router_learning_rate=spec.router_learning_rate,
            clip_norm=spec.clip_norm,
            router_clip_norm=spec.router_clip_norm,
            batch_prompts=spec.batch_prompts,
            seed=spec.seed,
            watch=watch,
        )
    return student, {
        "kind": spec.kind,
        "groups": groups,
        "layers": keep or list(range(teacher.spec.num_hidden_layers)),
        "parameters": [sum(p.numel() for p in model.parameters()) for model in (teacher, student)],
        "loss_merged": at_first,
        **compare(teacher, student, shown, watch=watch),
    }


def _kept(teacher: Decoder, spec: DistilSpec, prompts: Prompts, watch: Watch) -> list[int] | None:
    """The teacher's layers that the student has; None for all."""
    if spec.num_hidden_layers is None:
        return None
    return kept_layers(teacher.spec, spec.num_hidden_layers, influence(teacher, prompts, watch).tolist())


@torch.no_grad()
def merged_student(
    teacher: Decoder, spec: DistilSpec, prompts: Prompts, watch: Watch = unwatched
) -> tuple[Decoder, Groups]:
    """The student before it learns: groups of the teacher's experts, each merged into one."""
    # Its layers are chosen already.
    student = rebuilt(teacher, foretold(teacher, spec.model_copy(update={"num_hidden_layers": None})))
    width = moe_part(student).moe_intermediate_size
    hidden_L = router_inputs(teacher, prompts, ALIGNMENT_TOKENS, watch)
    load_LE = loads(teacher, prompts, watch)
    groups: Groups = []
    for old, new, load_E in zip(teacher.moe_layers(), student.moe_layers(), load_LE, strict=True):
        hidden_ND = hidden_L[old.layer]
        groups.append(grouped(likeness(old, hidden_ND), spec.num_experts))
        for place, members in enumerate(groups[-1]):
            _merge_group(new, place, old, members, load_E, hidden_ND, width)
        if biases_weigh_on_shares(old.moe):
            new.router.tensors["selection_bias"].mul_(_num_sharing(old.moe) / new.moe.num_experts)
        watch("align", len(groups), len(load_LE))
    return student, groups


def _num_sharing(moe: MoeSpec) -> int:
    """How many experts a token's shares are of: hidden twins have none."""
    return moe.num_experts if moe.twins is None else len(set(moe.twins.roots))


def likeness(layer: MoeMlp, hidden_ND: Tensor) -> Tensor:
    """(E, E) mean cosine between the outputs of two experts on the same tokens."""
    outputs = [
        normalize(ExpertWeights.of(layer, expert).outputs(hidden_ND), dim=-1)
        for expert in range(layer.moe.num_experts)
    ]
    out_END = torch.stack(outputs)
    return torch.einsum("end,fnd->ef", out_END, out_END) / max(1, hidden_ND.shape[0])


def grouped(likeness_EE: Tensor, num_groups: int) -> list[list[int]]:
    """Join the two groups that are most alike on average (ties: the lowest) until so many are left.

    Likenesses are cosines, the same from both sides; one that is no number comes after all others.
    """
    groups = [[expert] for expert in range(likeness_EE.shape[0])]
    # Likenesses summed over pairs of one group and another, and how many experts a group has.
    sums_GG = likeness_EE.double().cpu().nan_to_num(nan=-2.0)
    size_G = torch.ones(len(groups), dtype=torch.float64)
    while len(groups) > num_groups:
        means_GG = (sums_GG / (size_G[:, None] * size_G)).masked_fill(
            torch.ones_like(sums_GG).tril() > 0, -torch.inf
        )
        one, other = divmod(int((means_GG == means_GG.max()).flatten().nonzero()[0]), len(groups))
        groups[one] = sorted(groups[one] + groups.pop(other))
        sums_GG[one] += sums_GG[other]
        sums_GG[:, one] += sums_GG[:, other]
        size_G[one] += size_G[other]
        left_G = torch.arange(len(size_G)) != other
        sums_GG, size_G = sums_GG[left_G][:, left_G], size_G[left_G]
    return groups


def _merge_group(
    new: MoeMlp, place: int, old: MoeMlp, members: list[int], load_E: Tensor, hidden_ND: Tensor, width: int
) -> None:
    usage = [float(load_E[expert]) + TINY for expert in members]
    leader = members[max(range(len(members)), key=usage.__getitem__)]
    reference = ExpertWeights.of(old, leader)
    each = [
        reference if expert == leader else aligned(reference, ExpertWeights.of(old, expert), hidden_ND)
        for expert in members
    ]
    merged = mean_of(each, usage)
    if width < merged.down_DF.shape[1]:
        merged = merged.ordered(_busiest_neurons(merged, hidden_ND, width))
    merged.put(new, place)
    before = per_expert(old)
    for name, tensor in per_expert(new).items():
        if name.startswith("router."):
            rows = [
                use / sum(usage) * before[name][expert] for use, expert in zip(usage, members, strict=True)
            ]
            tensor[place] = torch.stack(rows).sum(0)


def _busiest_neurons(expert: ExpertWeights, hidden_ND: Tensor, width: int) -> Tensor:
    """The neurons that write most on these tokens, in their order."""
    written_F = expert.activations(hidden_ND).square().mean(0).sqrt() * expert.down_DF.norm(dim=0)
    return written_F.topk(width).indices.sort().values


def distillation_loss(
    teacher: Decoder,
    student: Decoder,
    groups: Groups,
    batch: Prompts,
    spec: DistilSpec,
    keep: Sequence[int] | None = None,
) -> Tensor:
    """Softened logits of the teacher, its choice among groups, and the text, each with its weight.

    `keep` are the teacher's layers that the student has, in their order (None: all of them).
    """
    batch.check_fits(teacher.spec)
    taught: dict[int, Routing] = {}
    learnt: dict[int, Routing] = {}
    real_T = batch.real_T
    with torch.no_grad():
        theirs_NSV = teacher(batch.ids_NS, RoutingContext(observe=taught.__setitem__, real_T=real_T)).float()
    ours_NSV = student(batch.ids_NS, RoutingContext(observe=learnt.__setitem__, real_T=real_T)).float()
    losses_NS, counted_NS = next_token_losses(torch.log_softmax(ours_NSV, -1), batch)
    softened = kl(theirs_NSV[batch.real_NS] / spec.temperature, ours_NSV[batch.real_NS] / spec.temperature)
    routed = [
        group_divergence(taught[layer if keep is None else keep[layer]], learnt[layer], of, real_T)
        for layer, of in zip(learnt, groups, strict=True)
    ]
    return (
        spec.logit_weight * spec.temperature**2 * softened
        + spec.router_weight * torch.stack(routed).mean()
        + spec.label_weight * mean_counted(losses_NS, counted_NS)
    )


def kl(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    """Mean KL(teacher ‖ student) of two sets of logits, in nats."""
    theirs_NV, ours_NV = torch.log_softmax(teacher_NV, -1), torch.log_softmax(student_NV, -1)
    return (theirs_NV.exp() * (theirs_NV - ours_NV)).sum(-1).mean()


def group_divergence(teacher: Routing, student: Routing, groups: list[list[int]], real_T: Tensor) -> Tensor:
    """KL from the teacher's probabilities, summed over each group, to the student's: mean over real tokens."""
    probs_TE = teacher.probs_TE[real_T]
    theirs_TM = torch.stack([probs_TE[:, members].sum(-1) for members in groups], dim=-1).clamp(min=TINY)
    ours_TM = student.probs_TE[real_T].clamp(min=TINY)
    return (theirs_TM * (theirs_TM.log() - ours_TM.log())).sum(-1).mean()
