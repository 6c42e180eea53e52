"""Every gate in a whole decoder: it runs, it learns, it is saved and comes back, and the domain prior reaches it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_core import load, save
from moe_core.model import Decoder, DomainPrior, RoutingContext
from moe_core.model.init import random_decoder
from moe_core.model.layers import MoeMlp
from moe_core.routers import Routing
from moe_core.spec import CapacitySpec, GateSpec, LayoutSpec, cost_of
from moe_core.spec.gate import Base, Gate, Hash, Hierarchical, NoisyTopk, SigmoidGroups, Soft, SoftmaxTopk
from tests.moe_core.tiny import STD, tiny_llama

GATES: list[type[Gate]] = list(get_args(get_args(GateSpec)[0]))
CHANGES: dict[str, dict[str, object]] = {
    "hash": {"weights": "learned"}, "hierarchical": {"num_domains": 2, "groups_per_domain": 2},
    "sigmoid_groups": {"num_groups": 2}, "switch": {"logit_bias": True, "selection_bias": True},
}  # fmt: skip
VARIED = [gate.model_validate(CHANGES.get(gate.model_fields["kind"].default, {})) for gate in GATES]
IDS = torch.arange(24).view(2, 12) * 3 % 97
NEG_INF = float("-inf")


def decoder(gate: Gate, capacity: CapacitySpec | None = None, **layout: object) -> Decoder:
    """A tiny decoder with 4 experts in two of its layers; weights are not renormalised, so that all gates can learn."""
    top_k = 1 if gate.complaint(4, 2) else 2
    fields = {"moe_layers": (0, 2), "num_experts": 4, "top_k": top_k, "norm_topk_prob": False, **layout}
    spec = LayoutSpec.parse({**fields, "gate": gate, "capacity": capacity}).applied_to(tiny_llama())
    return random_decoder(spec, 3, STD)


def routings(model: Decoder, ids_BS: Tensor = IDS, **context: object) -> list[Routing]:
    seen: dict[int, Routing] = {}
    model(ids_BS, RoutingContext(observe=seen.__setitem__, **context))  # type: ignore[arg-type]
    return list(seen.values())


@pytest.mark.parametrize("gate", VARIED, ids=lambda gate: gate.kind)
@pytest.mark.parametrize("training", [False, True])
def test_it_runs_and_a_gradient_reaches_every_tensor_that_learns(gate: Gate, training: bool) -> None:
    # Eight, so that each level of the hierarchy has something to choose from.
    model = decoder(gate, num_experts=8)
    context = RoutingContext(training=training, rng=torch.Generator().manual_seed(0))
    logits = model(IDS, context)
    assert logits.isfinite().all()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten()).backward()
    for layer in model.moe_layers():
        for name, tensor in layer.router.tensors.items():
            learns = tensor.requires_grad and (name != "noise_weight" or training)
            assert (tensor.grad is not None and bool(tensor.grad.abs().sum() > 0)) == learns, name


@pytest.mark.parametrize(
    "gate", [*VARIED, Hash(choice="balanced"), Base(centroids="semantic")], ids=lambda g: g.kind
)
def test_a_saved_model_comes_back_with_its_gate(gate: Gate, tmp_path: Path) -> None:
    model = decoder(
        gate, None if gate.kind in ("soft", "base", "expert_choice") else CapacitySpec(overflow="learned")
    )
    again = load(save(model, tmp_path / "model"))
    assert again.spec == model.spec
    with torch.inference_mode():
        assert torch.equal(again(IDS), model(IDS))
    assert cost_of(model.spec).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("policy", ["drop", "residual", "next_best", "learned"])
def test_what_an_expert_has_no_room_for_is_treated_as_said(policy: str) -> None:
    capacity = CapacitySpec.parse({"train_factor": 0.5, "overflow": policy})
    model = decoder(SoftmaxTopk(), capacity, norm_topk_prob=True)
    layer = next(model.moe_layers())
    x_TD = torch.randn(24, 48)
    seen: list[Routing] = []
    context = RoutingContext(training=True, observe=lambda _, routing: seen.append(routing))
    with torch.inference_mode():
        out_TD = layer(x_TD, context)
        expected_TD = torch.zeros_like(x_TD)
        over = seen[0].overflow
        assert over is not None
        for token in range(24):
            for expert, weight in zip(seen[0].expert_ids_TK[token], seen[0].weights_TK[token], strict=True):
                if expert >= 0:
                    one = replace(
                        seen[0], expert_ids_TK=expert.view(1, 1), weights_TK=weight.view(1, 1), overflow=None
                    )
                    expected_TD[token] += layer.experts(x_TD[token : token + 1], one)[0]
            if over.passed_T is not None:
                expected_TD[token] += over.passed_T[token] * x_TD[token]
    torch.testing.assert_close(out_TD, expected_TD, rtol=1e-4, atol=1e-5)
    assert over.dropped_TK.any()


def test_soft_experts_see_mixtures_and_answer_mixtures() -> None:
    model = decoder(Soft(slots_per_expert=3))
    layer = next(model.moe_layers())
    x_TD = torch.randn(10, 48)
    with torch.inference_mode():
        order = torch.randperm(10)
        torch.testing.assert_close(layer(x_TD[order], None), layer(x_TD, None)[order], rtol=1e-4, atol=1e-5)


def prior(bias_NE: Tensor) -> DomainPrior:
    return DomainPrior(bias_NE[:, None, :].expand(-1, 2, -1), 1)


@pytest.mark.parametrize("gate", VARIED, ids=lambda gate: gate.kind)
def test_two_requests_of_one_batch_have_priors_of_their_own(gate: Gate) -> None:
    """Domain 0 may use experts 0 and 1 only, domain 1 the others; the second sequence has another domain."""
    model = decoder(gate)
    bias_NE = torch.tensor([[0.0, 0.0, NEG_INF, NEG_INF], [NEG_INF, NEG_INF, 0.0, 0.0]])
    domain_T = torch.tensor([0, 1]).repeat_interleave(12)
    for routing in routings(model, prior=prior(bias_NE), domain_T=domain_T):
        ids_TK = routing.expert_ids_TK
        first, second = ids_TK[:12], ids_TK[12:]
        assert (first[first >= 0] < 2).all()
        assert (second[second >= 0] >= 2).all()
        assert (routing.probs_TE[:12, 2:] == 0).all()
        assert routing.weights_TK.isfinite().all()


@pytest.mark.parametrize("gate", [g for g in VARIED if g.kind != "hash"], ids=lambda gate: gate.kind)
def test_a_push_and_a_floor_move_every_gate(gate: Gate) -> None:
    model = decoder(gate)
    domain_T = torch.zeros(24, dtype=torch.long)
    mine_NE = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    free = routings(model)[0].probs_TE[:, 1].mean()
    pushed = routings(model, prior=prior(3.0 * mine_NE), domain_T=domain_T)[0].probs_TE[:, 1].mean()
    floor = DomainPrior(torch.zeros(1, 2, 4), 1, floor_NL=torch.tensor([[0.9, 0.0]]), mine_NE=mine_NE)
    first, second = routings(model, prior=floor, domain_T=domain_T)
    assert pushed > free
    assert first.probs_TE[:, 1].mean() > free
    assert first.probs_TE[:, 1].min().item() >= 0.9 - 1e-5
    assert float(torch.softmax(second.logits_TE, -1)[:, 1].min()) < 0.5


def test_a_floor_changes_only_what_is_below_it_and_keeps_proportions() -> None:
    model = decoder(SoftmaxTopk())
    mine_NE = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    floor = DomainPrior(torch.zeros(2, 2, 4), 1, floor_NL=torch.full((2, 2), 0.4), mine_NE=mine_NE)
    domain_T = torch.tensor([0, 1, -1]).repeat(8)
    plain = routings(model)[0].probs_TE
    found = routings(model, prior=floor, domain_T=domain_T)[0].probs_TE
    for token, domain in enumerate(domain_T.tolist()):
        mine = mine_NE[domain].bool() if domain >= 0 else torch.zeros(4, dtype=torch.bool)
        share = float(plain[token, mine].sum())
        if domain < 0 or share >= 0.4:
            torch.testing.assert_close(found[token], plain[token])
            continue
        expected = torch.where(mine, plain[token] * 0.4 / share, plain[token] * 0.6 / (1 - share))
        torch.testing.assert_close(found[token], expected, rtol=1e-4, atol=1e-6)


class CountingCalls(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def calls_of(layer: MoeMlp, context: RoutingContext | None) -> list[str]:
    x_TD = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), CountingCalls() as counting:
        layer.router(x_TD, context or RoutingContext(), layer.moe_index)
    return counting.calls


def test_a_prior_that_is_not_used_costs_not_one_operation() -> None:
    layer = next(decoder(SoftmaxTopk()).moe_layers())
    plain = calls_of(layer, None)
    with_prior = prior(torch.ones(1, 4))
    domain_T = torch.zeros(6, dtype=torch.long)
    assert calls_of(layer, RoutingContext(prior=with_prior)) == plain
    assert calls_of(layer, RoutingContext(domain_T=domain_T)) == plain
    used = calls_of(layer, RoutingContext(prior=with_prior, domain_T=domain_T))
    assert len(plain) <= 8
    assert len(used) <= len(plain) + 3
    floor = DomainPrior(torch.zeros(1, 2, 4), 1, floor_NL=torch.full((1, 2), 0.4), mine_NE=torch.ones(1, 4))
    # A floor alone adds no bias of zeros.
    assert not floor.has_bias


def test_a_hash_gate_generates_with_the_words_it_is_given() -> None:
    model = decoder(Hash(choice="balanced"))
    prompt = [3, 14, 15, 92]
    seen = routings(model, torch.tensor([prompt]))
    table = next(model.moe_layers()).router.tensors["table"].long()
    assert torch.equal(seen[0].expert_ids_TK, table[prompt])
    assert len(model.generate(prompt, 4)) == 4


def test_the_temperature_schedule_is_part_of_the_model() -> None:
    schedule = {"kind": "linear", "start": 4.0, "end": 1.0, "num_steps": 10, "step": 5}
    model = decoder(SoftmaxTopk(), temperature_schedule=schedule)
    plain = decoder(SoftmaxTopk())
    raw = routings(plain)[0].logits_TE
    for step, temperature in ((None, 2.5), (0, 4.0), (10, 1.0)):
        torch.testing.assert_close(routings(model, step=step)[0].logits_TE, raw / temperature)


def test_routers_are_float32_in_a_bfloat16_model() -> None:
    for gate in (Hierarchical(num_domains=2), SigmoidGroups(), Hash(choice="balanced")):
        spec = decoder(gate).spec
        for layer in Decoder(spec, torch.bfloat16).moe_layers():
            assert {tensor.dtype for tensor in layer.router.tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    "gate", [SoftmaxTopk(), Hash(), SigmoidGroups(), NoisyTopk()], ids=lambda gate: gate.kind
)
def test_routers_stay_as_they_are_when_a_model_is_narrowed(gate: Gate) -> None:
    model = decoder(gate)
    before = [
        {name: tensor.clone() for name, tensor in layer.router.tensors.items()}
        for layer in model.moe_layers()
    ]
    model.to(torch.bfloat16)
    assert model.dtype is torch.bfloat16
    for layer, tensors in zip(model.moe_layers(), before, strict=True):
        assert layer.router.tensors.keys() == tensors.keys()
        assert all(torch.equal(layer.router.tensors[name], tensor) for name, tensor in tensors.items())
        assert {tensor.dtype for tensor in layer.router.tensors.values()} == {torch.float32}
