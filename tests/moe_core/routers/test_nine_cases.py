"""Every gate in the nine cases: ties, NaN, no token, one expert, all experts chosen, all tokens alike, an expert that nobody
sees, a number of tokens that no block divides, and very many; and no choice is ever lost where experts are full."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moe_core.routers import GateCall, Routing, decide
from moe_core.routers.gates import GATES
from moe_core.spec import CapacitySpec, MoeSpec
from moe_core.spec.gate import (
    Base,
    ExpertChoice,
    Gate,
    GshardTop2,
    Hash,
    Hierarchical,
    NoisyTopk,
    Quantile,
    SigmoidGroups,
    Sinkhorn,
    Soft,
    SoftmaxTopk,
    Sparsemax,
    Switch,
    TopP,
)
from tests.moe_core.routers.gate_cases import VOCAB, moe_of, tensors_of

EXPERTS, WIDTH = 8, 16
# Name → gate, and how many experts it gives a token.
EVERY: dict[str, tuple[Gate, int]] = {
    "softmax before": (SoftmaxTopk(), 3),
    "softmax after": (SoftmaxTopk(order="after", logit_bias=True), 3),
    "sigmoid": (SigmoidGroups(routed_scaling_factor=2.5), 3),
    "sigmoid groups": (SigmoidGroups(num_groups=4, topk_group=2), 3),
    "sparsemax": (Sparsemax(), 3),
    "top p": (TopP(p=0.6), 3),
    "switch": (Switch(jitter=0.1), 1),
    "gshard": (GshardTop2(), 2),
    "noisy": (NoisyTopk(), 3),
    "sinkhorn": (Sinkhorn(), 3),
    "quantile": (Quantile(), 3),
    "expert choice": (ExpertChoice(), 3),
    "base": (Base(), 1),
    "soft": (Soft(), 3),
    "hash": (Hash(), 3),
    "hash, learnt weights": (Hash(weights="learned"), 3),
    "hierarchical": (Hierarchical(num_domains=2, groups_per_domain=2), 3),
}
# Where a token's experts hang on its own hidden state and on nothing else.
ALONE = [name for name, (gate, _) in EVERY.items() if not gate.sees_the_batch]
BY_STATE = [name for name in ALONE if not name.startswith("hash")]
TRAINING = pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
GATE = pytest.mark.parametrize("name", EVERY)


def test_no_gate_is_left_out() -> None:
    assert {gate.kind for gate, _ in EVERY.values()} == GATES.keys()  # type: ignore[attr-defined]


def hidden(num_tokens: int, seed: int = 1) -> Tensor:
    return torch.randn(num_tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def ask(
    name: str,
    x_TD: Tensor,
    *,
    training: bool = False,
    num_experts: int = EXPERTS,
    top_k: int | None = None,
    capacity: CapacitySpec | None = None,
    **call: Any,
) -> tuple[Routing, MoeSpec]:
    gate, usual = EVERY[name]
    if num_experts == 1:
        gate = gate.model_copy(update={"num_groups": 1, "topk_group": 1} if name == "sigmoid groups" else {})
        gate = Hierarchical() if name == "hierarchical" else gate
    moe = moe_of(gate, num_experts, top_k or usual, capacity=capacity)
    weights = tensors_of(moe, x_TD.shape[1])
    tokens_T = torch.arange(x_TD.shape[0]) % VOCAB
    with torch.no_grad():
        found = decide(
            moe, weights,
            GateCall(
                x_TD, moe.top_k, training=training, rng=torch.Generator().manual_seed(2), num_experts=num_experts,
                token_ids_T=call.pop("token_ids_T", tokens_T), **call,
            ),
        )  # fmt: skip
    return found, moe


def check(found: Routing, moe: MoeSpec, num_tokens: int) -> None:
    """What every decision is, whichever gate made it."""
    ids_TK, weights_TK = found.expert_ids_TK, found.weights_TK
    assert ids_TK.shape == weights_TK.shape == (num_tokens, moe.num_places)
    assert found.probs_TE.shape == (num_tokens, moe.num_experts)
    assert ids_TK.dtype == torch.int64
    assert bool(((ids_TK >= -1) & (ids_TK < moe.num_experts)).all())
    assert bool(weights_TK.isfinite().all())
    assert bool((weights_TK >= 0.0).all())
    assert bool((weights_TK[ids_TK < 0] == 0.0).all())
    # No expert twice: sorted, neighbours differ unless both places are empty.
    sorted_TK = ids_TK.sort(-1).values
    assert bool(((sorted_TK[:, 1:] != sorted_TK[:, :-1]) | (sorted_TK[:, 1:] < 0)).all())
    torch.testing.assert_close(found.probs_TE.sum(-1), torch.ones(num_tokens), rtol=0, atol=1e-5)
    if not moe.gate.leaves_places_empty and moe.capacity is None and not isinstance(moe.gate, GshardTop2):
        assert bool((ids_TK >= 0).all())


@TRAINING
@GATE
def test_ties(name: str, training: bool) -> None:
    """A hidden state of zeros says nothing: the decision is a decision all the same, and the same each time."""
    (one, moe), (other, _) = (ask(name, torch.zeros(9, WIDTH), training=training) for _ in range(2))
    check(one, moe, 9)
    assert torch.equal(one.expert_ids_TK, other.expert_ids_TK)
    settled = name in (
        "softmax before",
        "sigmoid",
        "sigmoid groups",
        "sparsemax",
        "top p",
        "switch",
        "gshard",
    )
    if settled and not training:
        wanted = torch.arange(moe.num_places).expand(9, -1)
        kept_TK = one.expert_ids_TK >= 0
        assert torch.equal(one.expert_ids_TK[kept_TK], wanted[kept_TK])


@pytest.mark.parametrize("name", BY_STATE)
def test_nan_stays_in_its_token(name: str) -> None:
    x_TD = hidden(9)
    whole, moe = ask(name, x_TD)
    x_TD[4] = float("nan")
    found, _ = ask(name, x_TD)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(found.expert_ids_TK[others], whole.expert_ids_TK[others])
    torch.testing.assert_close(found.weights_TK[others], whole.weights_TK[others], rtol=1e-6, atol=1e-7)
    ids_K = found.expert_ids_TK[4]
    assert bool(((ids_K >= -1) & (ids_K < moe.num_experts)).all())


@TRAINING
@pytest.mark.parametrize("name", [name for name in EVERY if name not in BY_STATE])
def test_nan_makes_no_impossible_choice(name: str, training: bool) -> None:
    x_TD = hidden(9)
    x_TD[4] = float("nan")
    found, moe = ask(name, x_TD, training=training)
    assert bool(((found.expert_ids_TK >= -1) & (found.expert_ids_TK < moe.num_experts)).all())
    if name.startswith("hash"):
        # The table does not look at the hidden state.
        assert torch.equal(found.expert_ids_TK, ask(name, hidden(9))[0].expert_ids_TK)


@TRAINING
@GATE
def test_no_token(name: str, training: bool) -> None:
    found, moe = ask(name, hidden(0), training=training)
    check(found, moe, 0)


@TRAINING
@pytest.mark.parametrize("name", [name for name in EVERY if name != "gshard"])
def test_one_expert(name: str, training: bool) -> None:
    found, moe = ask(name, hidden(9), training=training, num_experts=1, top_k=1)
    check(found, moe, 9)
    assert set(found.expert_ids_TK.flatten().tolist()) <= {0, -1}
    assert found.probs_TE.tolist() == [[1.0]] * 9


@TRAINING
@pytest.mark.parametrize("name", [name for name, (_, top_k) in EVERY.items() if top_k == 3 and name != "sigmoid groups"])
def test_all_experts_are_chosen(name: str, training: bool) -> None:
    found, moe = ask(name, hidden(9), training=training, top_k=EXPERTS)
    check(found, moe, 9)
    if not moe.leaves_places_empty:
        assert found.expert_ids_TK.sort(-1).values.tolist() == [list(range(EXPERTS))] * 9


def test_two_of_two_experts_are_chosen() -> None:
    found, moe = ask("gshard", hidden(9), num_experts=2)
    check(found, moe, 9)
    assert found.expert_ids_TK.sort(-1).values.tolist() == [[0, 1]] * 9


@pytest.mark.parametrize("name", ALONE)
def test_tokens_that_are_alike_go_to_the_same_experts(name: str) -> None:
    x_TD = hidden(1).expand(33, -1).contiguous()
    found, moe = ask(name, x_TD, token_ids_T=torch.full((33,), 7))
    check(found, moe, 33)
    assert len(found.expert_ids_TK.unique(dim=0)) == 1


@TRAINING
@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith("hash")])
def test_an_expert_that_nobody_may_see_gets_nobody(name: str, training: bool) -> None:
    bias_TE = torch.zeros(33, EXPERTS)
    bias_TE[:, 5] = float("-inf")
    found, moe = ask(name, hidden(33), training=training, bias_TE=bias_TE)
    check(found, moe, 33)
    assert not bool((found.expert_ids_TK == 5).any())
    if found.mix is not None:
        assert not bool(found.mix.dispatch_RT[found.mix.expert_R1[:, 0] == 5].any())


@pytest.mark.parametrize("name", ALONE)
def test_a_token_is_decided_alike_whatever_number_of_others_is_with_it(name: str) -> None:
    """131 is prime: no block of any kernel divides it, nor 131 times k."""
    x_TD = hidden(131)
    found, moe = ask(name, x_TD)
    check(found, moe, 131)
    few, _ = ask(name, x_TD[:7])
    assert torch.equal(found.expert_ids_TK[:7], few.expert_ids_TK)
    torch.testing.assert_close(found.weights_TK[:7], few.weights_TK, rtol=1e-5, atol=1e-6)


@TRAINING
@pytest.mark.parametrize("name", [name for name in EVERY if name not in ALONE])
def test_a_number_of_tokens_that_nothing_divides(name: str, training: bool) -> None:
    found, moe = ask(name, hidden(131), training=training)
    check(found, moe, 131)


@GATE
def test_very_many_tokens(name: str) -> None:
    found, moe = ask(name, hidden(40_009))
    check(found, moe, 40_009)


LIMITED = [name for name, (gate, _) in EVERY.items() if not isinstance(gate, Soft | ExpertChoice | Base)]


@TRAINING
@pytest.mark.parametrize("overflow", ["drop", "residual", "next_best", "learned"])
@pytest.mark.parametrize("name", LIMITED)
def test_kept_and_rerouted_and_dropped_are_all_choices(name: str, overflow: str, training: bool) -> None:
    capacity = CapacitySpec(train_factor=0.6, eval_factor=0.7, overflow=overflow)
    for num_tokens in (0, 1, 67):
        found, moe = ask(name, hidden(num_tokens), training=training, capacity=capacity)
        over = found.overflow
        assert over is not None
        sets_TK = over.kept_TK.int() + over.rerouted_TK.int() + over.dropped_TK.int()
        assert torch.equal(sets_TK, (over.wanted_TK >= 0).int())
        if not (moe.gate.leaves_places_empty or (training and name == "gshard")):
            assert int(sets_TK.sum()) == num_tokens * moe.top_k
        assert torch.equal(over.kept_TK | over.rerouted_TK, found.expert_ids_TK >= 0)
        limit = capacity.tokens_an_expert(num_tokens, EXPERTS, moe.top_k, training=training)
        load_E = torch.bincount(found.expert_ids_TK[found.expert_ids_TK >= 0], minlength=EXPERTS)
        assert limit is not None
        assert int(load_E.max()) <= limit
