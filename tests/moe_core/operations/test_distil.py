"""A student made of its teacher: groups of like experts, and the better start that they give."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.context import RoutingContext
from moe_core.model.init import random_decoder
from moe_core.operations import distil, grow, specialise_clone, wake_expert
from moe_core.operations.align import ExpertWeights
from moe_core.operations.distil import (
    distillation_loss,
    group_divergence,
    grouped,
    kl,
    likeness,
    merged_student,
)
from moe_core.operations.edit import router_inputs
from moe_core.operations.learning import mean_loss, train
from moe_core.operations.passes import loss_by_domain
from moe_core.operations.prompts import Prompts
from moe_core.routers import route
from moe_core.spec.operations import DistilSpec, GrowSpec, SpecialiseCloneSpec, WakeExpertSpec
from tests.moe_core.operations.models import distance, gpt_oss, mixture, mixture_spec, some_prompts


def doubled_teacher() -> Decoder:
    """Eight experts that are four, each twice: the second time with its neurons shuffled."""
    teacher, base = mixture(num_experts=8, top_k=2), mixture(num_experts=4, top_k=1)
    with torch.no_grad():
        for layer, four in zip(teacher.moe_layers(), base.moe_layers(), strict=True):
            for expert in range(8):
                order = torch.randperm(32, generator=torch.Generator().manual_seed(expert))
                ExpertWeights.of(four, expert // 2).ordered(order).put(layer, expert)
                layer.router.weight[expert] = four.router.weight[expert // 2]
    return teacher


def test_experts_that_answer_alike_are_found_and_merged_without_loss() -> None:
    teacher, prompts = doubled_teacher(), some_prompts(per_domain=8)
    student, report = distil(teacher, DistilSpec(num_experts=4, top_k=1, steps=0), prompts)
    assert report["groups"] == [[[0, 1], [2, 3], [4, 5], [6, 7]]] * 2
    # Two copies with half the weight each are one with all of it.
    assert distance(teacher, student) < 1e-5
    assert report["parameters"][0] > report["parameters"][1]
    json.dumps(report)


GATES: dict[str, dict[str, Any]] = {
    "softmax": {"kind": "softmax_topk"},
    "balanced": {"kind": "softmax_topk", "selection_bias": True},
    "sigmoid": {"kind": "sigmoid_groups", "routed_scaling_factor": 2.5},
    "square roots": {"kind": "sigmoid_groups", "scores": "sqrtsoftplus"},
    "scores of a softmax": {"kind": "sigmoid_groups", "scores": "softmax", "routed_scaling_factor": 2.5},
}


@pytest.mark.parametrize("method", ["double_k", "twin"])
@pytest.mark.parametrize("num_experts", [8, 16])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_a_grown_model_folds_back_to_the_one_that_it_was(
    gate: str, norm: bool, num_experts: int, method: Any
) -> None:
    model, prompts = mixture(gate=GATES[gate], norm_topk_prob=norm), some_prompts(per_domain=8)
    with torch.no_grad():
        for layer in model.moe_layers():
            if "selection_bias" in layer.router.tensors:
                layer.router.tensors["selection_bias"].copy_(torch.tensor([0.2, -0.3, 0.1, 0.0]))
    grown, _ = grow(model, GrowSpec(num_experts=num_experts, method=method))
    student, _ = distil(grown, DistilSpec(num_experts=4, top_k=2, steps=0), prompts)
    assert distance(model, student) < 1e-5
    assert student.spec.moe == model.spec.moe
    for one, other in zip(model.moe_layers(), student.moe_layers(), strict=True):
        for name, tensor in one.router.tensors.items():
            assert torch.allclose(other.router.tensors[name], tensor, atol=1e-5), name


def test_a_teacher_whose_experts_have_biases_is_distilled() -> None:
    teacher, prompts = gpt_oss(), some_prompts(per_domain=8)
    spec = DistilSpec(num_experts=2, moe_intermediate_size=16, steps=2)
    student, report = distil(teacher, spec, prompts)
    assert student.spec.moe is not None and student.spec.moe.expert_bias
    assert next(iter(student.moe_layers())).experts.gate_up_bias_E2F.shape == (2, 32)
    assert all(math.isfinite(loss) for loss in report["loss_after"].values())


def test_likeness_is_the_mean_cosine_of_outputs() -> None:
    model, prompts = mixture(), some_prompts()
    layer = next(iter(model.moe_layers()))
    x_ND = router_inputs(model, prompts, 512)[layer.layer]
    one, other = (ExpertWeights.of(layer, expert).outputs(x_ND) for expert in (0, 3))
    by_hand = sum(float(a @ b / a.norm() / b.norm()) for a, b in zip(one, other, strict=True)) / len(one)
    assert float(likeness(layer, x_ND)[0, 3]) == pytest.approx(by_hand, abs=1e-5)
    assert x_ND.shape[0] == int(prompts.real_NS.sum())


def test_groups_are_joined_by_their_average_likeness() -> None:
    alike = torch.tensor(
        [[1.0, 0.9, 0.0, 0.5], [0.9, 1.0, 0.1, 0.0], [0.0, 0.1, 1.0, 0.3], [0.5, 0.0, 0.3, 1.0]]
    )
    assert grouped(alike, 4) == [[0], [1], [2], [3]]
    # 0 and 1 first; then 2 and 3 (0.3) before {0, 1} and 3 (0.25).
    assert grouped(alike, 2) == [[0, 1], [2, 3]]
    assert grouped(alike, 1) == [[0, 1, 2, 3]]


def joined_pair_by_pair(alike: torch.Tensor, num_groups: int) -> list[list[int]]:
    """The same, every mean taken anew."""
    groups = [[expert] for expert in range(len(alike))]
    while len(groups) > num_groups:
        pairs = [(one, other) for other in range(len(groups)) for one in range(other)]
        one, other = max(pairs, key=lambda pair: float(alike[groups[pair[0]]][:, groups[pair[1]]].mean()))
        groups[one] = sorted(groups[one] + groups.pop(other))
    return groups


@pytest.mark.parametrize("num_groups", [1, 3, 7, 20])
def test_groups_are_those_of_joining_pair_by_pair(num_groups: int) -> None:
    alike = torch.rand(20, 20, generator=torch.Generator().manual_seed(num_groups))
    alike = alike + alike.T
    assert grouped(alike, num_groups) == joined_pair_by_pair(alike, num_groups)
    assert len(grouped(torch.full((20, 20), math.nan), num_groups)) == num_groups


def test_as_many_experts_as_any_family_has_are_grouped_at_once() -> None:
    alike = torch.rand(384, 384, generator=torch.Generator().manual_seed(0))
    began = time.process_time()
    groups = grouped(alike + alike.T, 64)
    # Means taken anew for every pair take minutes.
    assert time.process_time() - began < 20.0
    assert sorted(expert for group in groups for expert in group) == list(range(384))


def test_neurons_that_write_nothing_are_the_first_to_go() -> None:
    teacher, prompts = mixture(moe_intermediate_size=48), some_prompts()
    with torch.no_grad():
        for layer in teacher.moe_layers():
            layer.experts.down_EDF[:, :, 5:21] = 0.0
    spec = DistilSpec(num_experts=4, moe_intermediate_size=32, steps=0)
    student, _ = merged_student(teacher, spec, prompts)
    assert distance(teacher, student) < 1e-5


def test_divergences_are_zero_between_equals_and_right_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert float(kl(logits, logits)) == pytest.approx(0.0)
    p = torch.softmax(logits[1], -1)
    by_hand = float((p * (p / 0.5).log()).sum())
    assert float(kl(logits[1:], logits[:1])) == pytest.approx(by_hand)
    x_TD = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    rows_ED = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    teacher = route(x_TD, rows_ED, top_k=2)
    real_T = torch.tensor([True] * 5 + [False])
    assert float(group_divergence(teacher, teacher, [[0], [1], [2], [3]], real_T)) == pytest.approx(
        0.0, abs=1e-6
    )
    whole = route(x_TD, rows_ED[:1], top_k=1)
    assert float(group_divergence(teacher, whole, [[0, 1, 2, 3]], real_T)) == pytest.approx(0.0, abs=1e-6)


def test_a_teacher_has_nothing_to_teach_itself_but_the_text() -> None:
    teacher, prompts = mixture(), some_prompts()
    spec = DistilSpec(num_experts=4, label_weight=0.25)
    with torch.no_grad():
        loss = distillation_loss(teacher, teacher, [[[0], [1], [2], [3]]] * 2, prompts, spec)
        assert float(loss) == pytest.approx(0.25 * float(mean_loss(teacher, prompts)), rel=1e-4)


def by_hand(
    teacher: Decoder, student: Decoder, groups: list[Any], prompts: Prompts, heat: float
) -> tuple[float, float]:
    """KL of softened logits, and of the choice among groups, token by token and without any of the code under test."""
    seen: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    with torch.no_grad():
        theirs = teacher(prompts.ids_NS, RoutingContext(observe=seen[0].__setitem__)).double()
        ours = student(prompts.ids_NS, RoutingContext(observe=seen[1].__setitem__)).double()
    softened, routed = [], []
    for at in prompts.real_NS.nonzero().tolist():
        p, q = (torch.exp(z[*at] / heat) / torch.exp(z[*at] / heat).sum() for z in (theirs, ours))
        softened.append(float((p * torch.log(p / q)).sum()))
    for (layer, taught), of in zip(seen[0].items(), groups, strict=True):
        each = []
        for at in prompts.real_T.nonzero().flatten().tolist():
            mine = seen[1][layer].probs_TE[at].tolist()
            p = [sum(float(taught.probs_TE[at, expert]) for expert in members) for members in of]
            each.append(sum(one * math.log(one / other) for one, other in zip(p, mine, strict=True)))
        routed.append(sum(each) / len(each))
    return sum(softened) / len(softened), sum(routed) / len(routed)


@pytest.mark.parametrize("heat", [1.0, 3.0])
def test_each_term_of_the_loss_is_what_it_says_with_the_factor_of_the_temperature(heat: float) -> None:
    teacher, prompts = mixture(num_experts=8, top_k=2), some_prompts()
    student, groups = merged_student(teacher, DistilSpec(num_experts=4, steps=0), prompts)
    softened, routed = by_hand(teacher, student, groups, prompts, heat)
    off = {"logit_weight": 0.0, "router_weight": 0.0, "label_weight": 0.0}
    assert softened > 1e-3 and routed > 1e-3

    def loss(**weights: float) -> float:
        spec = DistilSpec.parse({"num_experts": 4, "temperature": heat, **off, **weights})
        return float(distillation_loss(teacher, student, groups, prompts, spec).detach())

    assert loss(logit_weight=0.7) == pytest.approx(0.7 * heat**2 * softened, rel=1e-3)
    assert loss(router_weight=0.3) == pytest.approx(0.3 * routed, rel=1e-3)
    text = float(mean_loss(student, prompts).detach())
    assert loss(label_weight=0.5) == pytest.approx(0.5 * text, rel=1e-4)
    parts = loss(logit_weight=1.0) + loss(router_weight=0.1) + loss(label_weight=0.5)
    assert loss(logit_weight=1.0, router_weight=0.1, label_weight=0.5) == pytest.approx(parts, rel=1e-4)


def test_the_gradient_of_the_logits_keeps_its_size_at_every_temperature() -> None:
    """What T² is for: d/dz of T²·KL is T·(q - p) for each token, with p and q softened by T."""
    teacher, prompts, heat = mixture(num_experts=8, top_k=2), some_prompts(), 3.0
    student, groups = merged_student(teacher, DistilSpec(num_experts=4, steps=0), prompts)
    kept: list[torch.Tensor] = []
    plain = student.forward

    def noting(*args: Any, **more: Any) -> torch.Tensor:
        logits = plain(*args, **more)
        logits.retain_grad()
        kept.append(logits)
        return logits

    student.forward = noting  # type: ignore[method-assign]
    spec = DistilSpec.parse(
        {"num_experts": 4, "temperature": heat, "router_weight": 0.0, "label_weight": 0.0}
    )
    distillation_loss(teacher, student, groups, prompts, spec).backward()
    with torch.no_grad():
        p, q = (torch.softmax(z / heat, -1) for z in (teacher(prompts.ids_NS), kept[0]))
    expected = heat * (q - p) * prompts.real_NS[..., None] / int(prompts.real_NS.sum())
    assert kept[0].grad is not None
    torch.testing.assert_close(kept[0].grad, expected, rtol=1e-3, atol=1e-7)


def moved(**fields: Any) -> tuple[float, float]:
    """How far gates and experts go from the merged student in three steps, relative to their norms."""
    teacher, prompts = mixture(num_experts=8, top_k=2), some_prompts()
    spec = DistilSpec.parse({"num_experts": 4, "steps": 3, "learning_rate": 1e-2, **fields})
    merged, _ = merged_student(teacher, spec, prompts)
    student, _ = distil(teacher, spec, prompts)
    gates, experts = [], []
    with torch.no_grad():
        for one, other in zip(merged.moe_layers(), student.moe_layers(), strict=True):
            gates.append(float((one.router.weight - other.router.weight).norm() / one.router.weight.norm()))
            own, now = one.experts.down_EDF, other.experts.down_EDF
            experts.append(float((own - now).norm() / own.norm()))
    return max(gates), min(experts)


@pytest.mark.parametrize("own", [{"router_learning_rate": 1e-7}, {"router_clip_norm": 1e-12}])
def test_gates_have_a_rate_and_a_clip_of_their_own(own: dict[str, float]) -> None:
    gates, experts = moved()
    held, as_before = moved(**own)
    # A gradient clipped far below AdamW's epsilon moves nothing either.
    assert gates > 1e-3 and held < 1e-2 * gates
    assert as_before == pytest.approx(experts, rel=0.2)
    # And the clip of everything is not theirs alone.
    assert "router_clip_norm" in own or moved(clip_norm=1e-12)[1] < 1e-2 * experts


def test_a_student_larger_than_its_teacher_is_refused() -> None:
    with pytest.raises(SpecError, match="may not be larger than its teacher: 5 is more than 4"):
        distil(mixture(), DistilSpec(num_experts=5), some_prompts())


def markov_prompts(seed: int, per_domain: int, length: int = 24) -> Prompts:
    """Two languages over one alphabet: after each token four others may come, not equally often."""
    languages = torch.Generator().manual_seed(77)
    follow = {code: torch.randint(1, 97, (97, 4), generator=languages) for code in ("law", "code")}
    generator = torch.Generator().manual_seed(seed)

    def told(table: torch.Tensor) -> list[int]:
        tokens = [int(torch.randint(1, 97, (1,), generator=generator))]
        choice = torch.multinomial(torch.tensor([0.6, 0.25, 0.1, 0.05]), length, True, generator=generator)
        for at in choice.tolist():
            tokens.append(int(table[tokens[-1], at]))
        return tokens

    return Prompts.of({code: [told(table) for _ in range(per_domain)] for code, table in follow.items()})


@pytest.mark.slow
def test_the_student_beats_the_same_size_trained_from_scratch_at_equal_steps() -> None:
    learnt, held_out = markov_prompts(1, 192), markov_prompts(2, 32)
    same: dict[str, Any] = {"learning_rate": 5e-3, "batch_prompts": 24, "seed": 3}
    teacher = random_decoder(mixture_spec(num_experts=8, top_k=2), 1, 0.05)
    train(
        teacher, learnt, lambda batch: mean_loss(teacher, batch), steps=160, **{**same, "learning_rate": 1e-2}
    )
    # With every layer, and with one of three left out.
    for less in ({}, {"num_hidden_layers": 2}):
        spec = DistilSpec.parse({"num_experts": 2, "moe_intermediate_size": 16, "steps": 60, **less, **same})
        student, report = distil(teacher, spec, learnt, held_out)
        scratch = random_decoder(student.spec, 2, 0.05)
        assert sum(p.numel() for p in scratch.parameters()) == report["parameters"][1]
        train(scratch, learnt, lambda batch, model=scratch: mean_loss(model, batch), steps=60, **same)
        ours, theirs = report["loss_after"], loss_by_domain(scratch, held_out)
        for code in ("law", "code"):
            assert ours[code] < theirs[code] - 0.1
            assert ours[code] < report["loss_merged"][code]


@pytest.mark.parametrize(
    "learnt",
    [
        lambda model, prompts: distil(model, DistilSpec(num_experts=2, steps=1), prompts),
        lambda model, prompts: specialise_clone(model, SpecialiseCloneSpec(domain="law", steps=1), prompts),
        lambda model, prompts: wake_expert(model, WakeExpertSpec(steps=1), prompts),
    ],
    ids=["distil", "specialise_clone", "wake_expert"],
)
def test_prompts_of_one_token_teach_nothing_and_are_refused_as_that(learnt: Any) -> None:
    model = mixture()
    with pytest.raises(SpecError, match="each of the 2 prompts has one token, and none has a next one"):
        learnt(model, Prompts.of({"law": [[5], [6]]}))
    # Beside longer ones they are carried along, alone in a batch too.
    changed, _report = learnt(model, Prompts.of({"law": [[5, 6, 7], *([[6]] * 8)]}))
    assert all(bool(torch.isfinite(weight).all()) for weight in changed.parameters())
