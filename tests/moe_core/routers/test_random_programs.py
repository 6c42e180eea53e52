"""What holds for every gate under every mixture of prior, twins, capacity, padding and temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.model.context import DomainPrior, RoutingContext
from moe_core.routers import Routing, decide
from moe_core.spec import MoeSpec, RoutingSpec
from tests.moe_core.routers.every_gate import KINDS, WIDTH, gate_of
from tests.moe_core.routers.gate_cases import VOCAB, tensors_of

MODES = ("none", "bias", "mask", "floor")


@dataclass
class Program:
    """A layer, a domain map, and tokens to route."""

    moe: MoeSpec
    policy: RoutingSpec
    tensors: dict[str, Tensor]
    x_TD: Tensor
    domain_T: Tensor
    real_T: Tensor | None
    training: bool
    seed: int

    def routed(self, rows: Tensor | None = None, *, with_prior: bool = True) -> Routing:
        """The decision on all tokens, or on some of them alone."""
        at = torch.arange(len(self.x_TD)) if rows is None else rows
        context = RoutingContext(
            domain_T=self.domain_T[at],
            prior=self.prior() if with_prior else None,
            token_ids_T=at * 7 % VOCAB,
            sequence_T=at * 2 // max(1, len(self.x_TD)),
            real_T=None if self.real_T is None else self.real_T[at],
            training=self.training,
            rng=torch.Generator().manual_seed(self.seed),
        )
        return decide(context.rule(self.moe), self.tensors, context.call(self.moe, 0, self.x_TD[at]))

    def prior(self) -> DomainPrior | None:
        """What the map does; None for nothing."""
        moe = self.moe
        fit: dict[str, Any] = {"num_moe_layers": 1, "num_experts": moe.num_experts, "top_k": moe.top_k}
        if self.policy.prior_mode == "none":
            return None
        return DomainPrior.from_routing(self.policy, twins=moe.twins, gate=moe.gate.kind, **fit)


def numbers(num_experts: int, at_least: int = 1) -> st.SearchStrategy[list[int]]:
    every = st.integers(0, num_experts - 1)
    return st.lists(every, min_size=at_least, max_size=num_experts, unique=True)


@st.composite
def programs(draw: st.DrawFn, *, capacity: bool = True, training: bool = True) -> Program:
    kind, num_experts = draw(st.sampled_from(KINDS)), draw(st.sampled_from([2, 4, 6, 8]))
    gate: dict[str, Any] = gate_of(kind, num_experts).model_dump()
    if kind == "sigmoid_groups":
        gate["scores"] = draw(st.sampled_from(["sigmoid", "softmax", "sqrtsoftplus"]))
        gate |= draw(st.sampled_from([{}, {"num_groups": 2}, {"num_groups": 2, "topk_group": 2}]))
    fixed = {"switch": 1, "base": 1, "gshard_top2": 2}
    fields: dict[str, Any] = {
        "moe_layers": (0,), "num_experts": num_experts, "moe_intermediate_size": 8, "gate": gate,
        "top_k": fixed.get(kind) or draw(st.integers(1, min(3, num_experts))),
        "norm_topk_prob": draw(st.booleans()), "temperature": draw(st.sampled_from([0.5, 1.0, 2.0])),
    }  # fmt: skip
    if draw(st.booleans()) and kind != "soft":
        hold = draw(st.sampled_from([None, 0.0, 0.7, 100.0]))
        fields["twins"] = {"roots": [*range(num_experts // 2)] * 2, "hold": hold}
    if capacity and draw(st.booleans()) and kind not in ("soft", "expert_choice", "base"):
        overflow = draw(st.sampled_from(["drop", "residual", "next_best", "learned"]))
        factor = draw(st.sampled_from([0.4, 1.0, 2.0]))
        fields["capacity"] = {"train_factor": factor, "eval_factor": factor, "overflow": overflow}
    mode = draw(st.sampled_from([mode for mode in MODES if (kind, mode) != ("hash", "floor")]))
    domains = [
        {"code": f"d{row}", "name_en": "D", "name_zh": "域", "experts": draw(numbers(num_experts))}
        for row in range(draw(st.integers(1, 3)))
    ]
    policy = {
        "domains": domains, "prior_mode": mode, "prior_strength": draw(st.sampled_from([0.5, 3.0, 50.0])),
        "prior_floor": draw(st.sampled_from([0.0, 0.3, 0.9])), "general_experts": draw(numbers(num_experts, 0)),
    }  # fmt: skip
    seed, num_tokens = draw(st.integers(0, 1 << 20)), draw(st.sampled_from([0, 1, 5, 23]))
    rng = torch.Generator().manual_seed(seed)
    try:
        moe = MoeSpec.parse(fields)
        tensors = {name: tensor.detach() for name, tensor in tensors_of(moe, WIDTH, seed, 0.3).items()}
        program = Program(
            moe, RoutingSpec.parse(policy), tensors,
            torch.randn(num_tokens, WIDTH, generator=rng), torch.randint(-1, len(domains), (num_tokens,), generator=rng),
            torch.rand(num_tokens, generator=rng) < 0.8 if draw(st.booleans()) else None,
            training and draw(st.booleans()), seed,
        )  # fmt: skip
        program.prior()
    except SpecError:
        # Groups or a mask that leave too few: refused before anything is routed.
        assume(False)
    return program


QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@QUICK
@given(programs())
def test_every_choice_is_one_expert_once_and_every_share_a_number(program: Program) -> None:
    found, num_experts = program.routed(), program.moe.num_experts
    ids_TK, weights_TK = found.expert_ids_TK, found.weights_TK
    filled_TK = found.chosen_TK
    assert ((ids_TK >= -1) & (ids_TK < num_experts)).all()
    counts_TE = torch.zeros(len(ids_TK), num_experts + 1).scatter_add(
        1, ids_TK.where(filled_TK, num_experts), torch.ones_like(weights_TK)
    )
    assert int(counts_TE[:, :num_experts].max() if len(ids_TK) else 0) <= 1
    assert weights_TK.isfinite().all()
    assert (weights_TK[~filled_TK] == 0.0).all()
    torch.testing.assert_close(found.probs_TE.sum(-1), torch.ones(len(ids_TK)))
    whole_T = (
        filled_TK.any(-1)
        if found.overflow is None
        else filled_TK.any(-1) & ~found.overflow.dropped_TK.any(-1)
    )
    chance = program.moe.gate.kind == "gshard_top2" and program.training
    if program.moe.gate.sums_to_one(program.moe.norm_topk_prob) and found.mix is None and not chance:
        torch.testing.assert_close(weights_TK.sum(-1)[whole_T], torch.ones(int(whole_T.sum())))


@QUICK
@given(programs())
def test_kept_rerouted_and_dropped_are_all_choices_and_no_expert_is_over_full(program: Program) -> None:
    found, moe = program.routed(), program.moe
    if found.overflow is None:
        return
    over = found.overflow
    parts_TK = over.kept_TK.long() + over.rerouted_TK.long() + over.dropped_TK.long()
    assert torch.equal(parts_TK, (over.wanted_TK >= 0).long())
    assert torch.equal(found.chosen_TK, over.kept_TK | over.rerouted_TK)
    num_real = len(program.x_TD) if program.real_T is None else int(program.real_T.sum())
    assert moe.capacity is not None
    limit = moe.capacity.tokens_an_expert(num_real, moe.num_experts, moe.top_k, training=program.training)
    load_E = torch.bincount(found.expert_ids_TK[found.chosen_TK], minlength=moe.num_experts)
    assert int(load_E.max()) <= (limit or 0)
    if program.real_T is not None:
        assert not found.chosen_TK[~program.real_T].any()
    if not moe.gate.leaves_places_empty and moe.twins is None and moe.gate.kind != "gshard_top2":
        assert int(parts_TK.sum()) == num_real * moe.top_k


@QUICK
@given(programs())
def test_a_domain_uses_no_expert_that_is_masked_for_it_and_no_root_twice(program: Program) -> None:
    found, moe = program.routed(), program.moe
    whole = program.policy.with_twins(moe.twins)
    for row, domain in enumerate(whole.domains):
        ids_RK = found.expert_ids_TK[program.domain_T == row]
        used = set(ids_RK[ids_RK >= 0].tolist())
        # While training BASE may deal one, to even loads; it has no weight.
        if program.policy.prior_mode == "mask" and not (moe.gate.kind == "base" and program.training):
            assert used <= {*domain.experts, *whole.general_experts}
    if moe.twins is not None:
        for ids in found.expert_ids_TK.tolist():
            roots = [moe.twins.roots[expert] for expert in ids if expert >= 0]
            assert len(set(roots)) == len(roots)


@QUICK
@given(programs(capacity=False, training=False))
def test_what_a_domain_does_to_a_request_does_not_hang_on_its_company(program: Program) -> None:
    if program.moe.gate.sees_the_batch or len(program.x_TD) < 2:
        return
    found = program.routed()
    half_R = torch.randperm(len(program.x_TD), generator=torch.Generator().manual_seed(program.seed))[::2]
    alone = program.routed(half_R)
    torch.testing.assert_close(alone.probs_TE, found.probs_TE[half_R], rtol=1e-3, atol=1e-4)
    # Sums round by the shape of a product; a choice that this turns over is no matter of company.
    assert float((alone.expert_ids_TK == found.expert_ids_TK[half_R]).float().mean()) >= 0.9
    free_T = program.domain_T < 0
    unguided = program.routed(with_prior=False)
    assert torch.equal(unguided.expert_ids_TK[free_T], found.expert_ids_TK[free_T])
    assert torch.equal(unguided.weights_TK[free_T], found.weights_TK[free_T])
