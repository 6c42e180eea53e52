"""Full experts: nothing is lost without being counted, whatever the policy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_core.routers import GateCall, Routing, decide
from moe_core.routers.losses import balance_loss, importance_loss
from moe_core.routers.sinkhorn import sinkhorn
from moe_core.spec import CapacitySpec, MoeSpec
from moe_core.spec.gate import Quantile, Sinkhorn, SoftmaxTopk
from tests.moe_core.routers.gate_cases import moe_of, tensors_of

POLICIES = ["drop", "residual", "next_best", "learned"]


def limited(
    logits: Tensor, top_k: int, policy: str, factor: float = 1.0, priority: str = "position", **call: object
) -> tuple[dict[str, Tensor], Routing]:
    """Softmax top-k on given logits with a capacity."""
    capacity = CapacitySpec.parse({"train_factor": factor, "overflow": policy, "priority": priority})
    moe = moe_of(SoftmaxTopk(), logits.shape[1], top_k, capacity=capacity)
    tensors = {**tensors_of(moe, logits.shape[1]), "weight": torch.eye(logits.shape[1])}
    return tensors, decide(moe, tensors, GateCall(logits, top_k, training=True, **call))  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 40), st.integers(1, 6), st.integers(1, 6), st.sampled_from(POLICIES), st.floats(0.1, 3.0),
    st.sampled_from(["position", "weight"]), st.integers(0, 2**31), st.booleans(),
)  # fmt: skip
def test_every_choice_is_kept_rerouted_or_dropped_and_no_expert_overflows(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    policy: str,
    factor: float,
    priority: str,
    seed: int,
    coarse: bool,
) -> None:
    top_k = min(top_k, num_experts)
    logits = torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed))
    logits = (logits + torch.linspace(2, 0, num_experts)).round() if coarse else logits
    _, found = limited(logits, top_k, policy, factor, priority)
    over = found.overflow
    assert over is not None
    assert (over.kept_TK.int() + over.rerouted_TK.int() + over.dropped_TK.int() == 1).all()
    assert int(over.kept_TK.sum() + over.rerouted_TK.sum() + over.dropped_TK.sum()) == num_tokens * top_k
    limit = CapacitySpec(train_factor=factor).tokens_an_expert(num_tokens, num_experts, top_k, training=True)
    assert limit is not None
    load = torch.bincount(found.expert_ids_TK[found.chosen_TK], minlength=num_experts)
    assert int(load.max()) <= limit
    assert torch.equal(found.chosen_TK, ~over.dropped_TK)
    for row in found.expert_ids_TK.tolist():
        chosen = [expert for expert in row if expert >= 0]
        assert len(chosen) == len(set(chosen))
    if policy in ("drop", "residual"):
        assert not over.rerouted_TK.any()
    elif num_tokens:
        # A dropped choice had nowhere to go: every expert with room is the token's already.
        for token in over.dropped_TK.any(-1).nonzero()[:, 0].tolist():
            roomy = set((load < limit).nonzero()[:, 0].tolist())
            assert roomy <= set(found.expert_ids_TK[token].tolist())
    passed = 0.0 if over.passed_T is None else over.passed_T
    if policy != "drop":
        lost = (torch.softmax(logits.gather(1, over.wanted_TK), -1) * over.dropped_TK).sum(-1)
        whole = found.weights_TK.sum(-1) + (passed if policy == "residual" else lost)
        torch.testing.assert_close(whole, torch.ones(num_tokens))


def test_six_tokens_by_hand() -> None:
    # Everybody wants expert 0; a factor of 1 gives it 3 of the 6 places.
    logits = torch.tensor([[2.0, 1.0]] * 6)
    _, dropped = limited(logits, 1, "drop")
    assert dropped.expert_ids_TK[:, 0].tolist() == [0, 0, 0, -1, -1, -1]
    _, passed = limited(logits, 1, "residual")
    assert passed.overflow is not None
    assert passed.overflow.passed_T is not None
    assert passed.overflow.passed_T.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    _, rerouted = limited(logits, 1, "next_best")
    assert rerouted.expert_ids_TK[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_the_heavier_go_first_where_weight_decides() -> None:
    logits = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    for priority, expected in (("position", [0, 0, -1, -1]), ("weight", [-1, 0, -1, 0])):
        moe = moe_of(
            SoftmaxTopk(),
            2,
            1,
            norm_topk_prob=False,
            capacity=CapacitySpec(train_factor=1.0, priority=priority),
        )
        call = GateCall(logits, 1, norm_topk_prob=False, training=True)
        found = decide(moe, {"weight": torch.eye(2)}, call)
        assert found.expert_ids_TK[:, 0].tolist() == expected


def test_all_firsts_come_before_all_seconds() -> None:
    # Two places an expert. Expert 1 is the second of tokens 0 and 1 and the first of 2 and 3.
    logits = torch.tensor([[3.0, 2.0, 0.0], [3.0, 2.0, 0.0], [0.0, 3.0, 2.0], [0.0, 3.0, 2.0]])
    _, found = limited(logits, 2, "drop", 0.75)
    assert found.expert_ids_TK.tolist() == [[0, -1], [0, -1], [1, 2], [1, 2]]


def test_next_best_never_scores_less_than_dropping() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 6) + torch.linspace(3, 0, 6)
    scores = [
        float((torch.softmax(logits, -1).gather(1, found.expert_ids_TK.clamp(min=0)) * found.chosen_TK).sum())
        for found in (limited(logits, 2, policy)[1] for policy in ("drop", "next_best"))
    ]
    assert scores[1] > scores[0]


def test_a_rerouted_token_goes_to_its_best_expert_with_room() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0]] * 2 + [[0.0, 0.0, 5.0, 0.0]])
    _, found = limited(logits, 1, "next_best")
    # One place an expert: the second token's next best (2) was taken by the third, whose first choice it is.
    assert found.expert_ids_TK[:, 0].tolist() == [0, 3, 2]


def test_the_learnt_correction_decides_and_learns() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0]] * 2)
    tensors, same = limited(logits, 1, "learned")
    assert same.expert_ids_TK[:, 0].tolist() == [0, 2]
    assert same.weights_TK.tolist() == [[1.0], [1.0]]
    same.weights_TK.sum().backward()
    grad = tensors["overflow_weight"].grad
    assert grad is not None
    # More weight for the expert that took over, less for the others: only the rerouted token teaches.
    torch.testing.assert_close(grad.sum(0), torch.zeros(4), atol=1e-6, rtol=0)
    assert (grad[2] > 0).all()
    moe = moe_of(SoftmaxTopk(), 4, 1, capacity=CapacitySpec(train_factor=1.0, overflow="learned"))
    taught = torch.zeros(4, 4)
    taught[1] = 1.0
    call = GateCall(logits, 1, training=True)
    found = decide(moe, {"weight": torch.eye(4), "overflow_weight": taught}, call)
    assert found.expert_ids_TK[:, 0].tolist() == [0, 1]


def test_padding_takes_no_place() -> None:
    logits = torch.tensor([[2.0, 0.0]] * 6)
    real = torch.tensor([False, False, True, True, False, True])
    _, found = limited(logits, 1, "drop", 4 / 3, real_T=real)
    assert found.expert_ids_TK[:, 0].tolist() == [-1, -1, 0, 0, -1, -1]


def test_balance_is_judged_by_what_tokens_wanted() -> None:
    logits = torch.tensor([[2.0, 0.0]] * 6)
    _, found = limited(logits, 1, "next_best")
    _, free = limited(logits, 1, "next_best", 100.0)
    real = torch.ones(6, dtype=torch.bool)
    assert balance_loss(found, real) == balance_loss(free, real) > 1.5


@pytest.mark.parametrize("policy", POLICIES)
def test_importance_is_judged_by_what_tokens_wanted(policy: str) -> None:
    """Its value and its gradient are those of the gate without a limit."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(16, 4, generator=generator) + torch.tensor([2.0, 1.0, 0.0, 0.0])
    real_T = torch.arange(16) != 5
    found = []
    for factor in (1.0, 100.0):
        logits_TE = logits.clone().requires_grad_()
        _, routing = limited(logits_TE, 2, policy, factor, real_T=real_T)
        loss = importance_loss(routing, real_T)
        found.append((loss, *torch.autograd.grad(loss, logits_TE)))
        assert importance_loss(routing.detached(), real_T).grad_fn is None
    (loss, grad_TE), (free, free_grad_TE) = [(one.detach(), grad) for one, grad in found]
    assert float(loss) == pytest.approx(float(free)) and float(free) > 0.3
    torch.testing.assert_close(grad_TE, free_grad_TE)
    assert grad_TE.abs().sum() > 0


def test_serving_has_the_limit_of_its_own_and_forced_ids_none() -> None:
    logits = torch.tensor([[2.0, 0.0]] * 6)
    moe = moe_of(SoftmaxTopk(), 2, 1, capacity=CapacitySpec(train_factor=1.0))
    assert decide(moe, {"weight": torch.eye(2)}, GateCall(logits, 1)).overflow is None
    forced = GateCall(logits, 1, training=True, forced_TK=torch.zeros(6, 1, dtype=torch.long))
    assert decide(moe, {"weight": torch.eye(2)}, forced).overflow is None


def test_a_nan_is_counted_and_stays_in_its_token() -> None:
    logits = torch.tensor([[2.0, 0.0], [float("nan"), 0.0], [2.0, 0.0], [2.0, 0.0]])
    _, found = limited(logits, 1, "next_best")
    over = found.overflow
    assert over is not None
    assert (over.kept_TK.int() + over.rerouted_TK.int() + over.dropped_TK.int() == 1).all()
    assert found.weights_TK[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("priority", ["position", "weight"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_a_nan_takes_no_place_that_a_number_may_want(priority: str, policy: str, factor: float) -> None:
    """The others are served as if it were padding, and what it wanted is counted as dropped."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 6, generator=generator) + torch.linspace(2, 0, 6)
    logits[7] = float("nan")
    others = torch.arange(40) != 7
    # Padding does not count for the limit, which is the same: 39 tokens of the padded batch, 40 of the other.
    _, padded = limited(logits, 2, policy, factor * 40 / 39, priority, real_T=others)
    _, found = limited(logits, 2, policy, factor, priority)
    assert torch.equal(found.expert_ids_TK, padded.expert_ids_TK)
    assert torch.equal(found.weights_TK[others], padded.weights_TK[others])
    assert found.overflow is not None
    assert found.overflow.dropped_TK[7].all()
    assert found.weights_TK.isfinite().all()


def test_who_was_turned_away_first_asks_first_for_the_places_that_are_left() -> None:
    """By weight: the heavier of two that are turned away has the next best, wherever it stands in the batch."""
    logits = torch.tensor([[3.0, 2.0, 0.0], [5.0, 2.0, 0.0], [9.0, 0.0, 0.0]])
    capacity = CapacitySpec(train_factor=1.0, overflow="next_best", priority="weight")
    moe = moe_of(SoftmaxTopk(), 3, 1, norm_topk_prob=False, capacity=capacity)
    call = GateCall(logits, 1, norm_topk_prob=False, training=True)
    found = decide(moe, {"weight": torch.eye(3)}, call)
    assert found.expert_ids_TK[:, 0].tolist() == [2, 1, 0]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_very_large_batch_is_limited_too(policy: str) -> None:
    logits = torch.randn(20_000, 8) + torch.linspace(2, 0, 8)
    _, found = limited(logits, 2, policy)
    load = torch.bincount(found.expert_ids_TK[found.chosen_TK], minlength=8)
    assert int(load.max()) <= 5000
    if policy in ("next_best", "learned"):
        assert load.sum() > 39_000


def test_the_next_best_is_the_one_that_the_gate_would_have_chosen_next() -> None:
    moe = MoeSpec.parse(
        {
            "moe_layers": (0,), "num_experts": 3, "top_k": 1, "moe_intermediate_size": 8,
            "gate": {"kind": "softmax_topk", "selection_bias": True},
            "capacity": {"train_factor": None, "eval_factor": 1.0, "overflow": "next_best"},
        }
    )  # fmt: skip
    weights = {
        "weight": torch.tensor([[3.0, 0], [2, 0], [1.9, 0]]),
        "selection_bias": torch.tensor([0.0, -5, 0]),
    }
    routing = decide(moe, weights, GateCall(torch.tensor([[1.0, 0], [1, 0]]), 1, num_experts=3))
    assert routing.expert_ids_TK.tolist() == [[0], [2]]


@pytest.mark.parametrize("kind", ["sinkhorn", "sinkhorn with a bias", "quantile"])
def test_the_next_best_of_evened_loads_is_that_of_the_evened_scores(kind: str) -> None:
    """One after the other, those that are turned away take the expert with room that the evened scores put first.

    A single round of evening leaves loads that a capacity still cuts.
    """
    # Of this seed the order in which a gate serves would reroute otherwise, for each of the kinds.
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(96, 4, generator=generator) + torch.tensor([3.0, 1.0, 0.0, 0.0])
    bias_E = torch.tensor([0.2, 0.0, -0.1, 0.0]) if kind == "sinkhorn with a bias" else None
    capacity = CapacitySpec(train_factor=1.0, overflow="next_best")
    gate = Quantile(num_iterations=1) if kind == "quantile" else Sinkhorn(num_iterations=1)
    moe = moe_of(gate, 4, 1, capacity=capacity)
    weights = {**tensors_of(moe, 4), "weight": torch.eye(4)}
    found = decide(moe, weights, GateCall(logits, 1, training=True, selection_bias_E=bias_E))
    if kind == "quantile":
        scores_TE = torch.softmax(logits.double(), -1) + found.statistics["selection_bias"]
    else:
        shares_TE = sinkhorn(logits, 1)
        scores_TE = shares_TE if bias_E is None else shares_TE.exp() + bias_E
    wanted_T = scores_TE.argmax(-1)
    assert found.overflow is not None and torch.equal(found.overflow.wanted_TK[:, 0], wanted_T)
    room = [24] * 4
    expected = [-1] * 96
    for waiting in (True, False):
        for token in range(96):
            order = [int(wanted_T[token])] if waiting else scores_TE[token].argsort(descending=True).tolist()
            if expected[token] < 0 and (free := [expert for expert in order if room[expert]]):
                expected[token] = free[0]
                room[free[0]] -= 1
    assert found.expert_ids_TK[:, 0].tolist() == expected
    served_T = logits[found.overflow.rerouted_TK[:, 0]].topk(2).indices[:, 1]
    assert not torch.equal(served_T, found.expert_ids_TK[found.overflow.rerouted_TK[:, 0], 0])


def test_what_overflows_stays_in_the_groups_that_its_token_chose() -> None:
    moe = MoeSpec.parse(
        {
            "moe_layers": (0,), "num_experts": 8, "top_k": 2, "moe_intermediate_size": 8,
            "gate": {"kind": "sigmoid_groups", "num_groups": 2, "topk_group": 1, "selection_bias": False},
            "capacity": {"train_factor": None, "eval_factor": 1.0, "overflow": "next_best"},
        }
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    hidden_TD = torch.randn(64, 16, generator=generator)
    weights = {"weight": torch.randn(8, 16, generator=generator)}
    call = GateCall(hidden_TD, 2, num_experts=8)
    free = decide(moe.model_copy(update={"capacity": None}), weights, call)
    routing = decide(moe, weights, call)
    assert routing.overflow is not None and int(routing.overflow.rerouted_TK.sum()) > 0
    own_T = free.expert_ids_TK[:, 0] // 4
    filled_TK = routing.expert_ids_TK >= 0
    assert (routing.expert_ids_TK // 4 == own_T[:, None])[filled_TK].all()
