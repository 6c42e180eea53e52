"""Gates that even out loads by themselves: Sinkhorn, quantiles, expert choice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moe_core.routers import GateCall, Routing, decide, load_of
from moe_core.routers.sinkhorn import _evened, sinkhorn
from moe_core.routers.thresholds import balancing_bias
from moe_core.spec import MoeSpec
from moe_core.spec.gate import ExpertChoice, Quantile, Sinkhorn
from tests.moe_core.routers.gate_cases import ask, tensors_of

NEG_INF = float("-inf")


def skewed(num_tokens: int = 512, num_experts: int = 8, seed: int = 0) -> Tensor:
    """Logits that like the first experts much more than the last."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, num_experts, generator=generator) + torch.linspace(2.0, 0.0, num_experts)


def max_vio(routing: Routing) -> float:
    load_E = load_of(routing).double()
    return float(load_E.max() / load_E.mean() - 1.0)


def test_sinkhorn_equals_scaling_rows_and_columns_in_turn() -> None:
    logits = skewed(12, 3)
    matrix = logits.double().exp()
    for _ in range(50):
        matrix = matrix / matrix.sum(0) * 12 / 3
        matrix = matrix / matrix.sum(1, keepdim=True)
    torch.testing.assert_close(sinkhorn(logits, 50).exp(), matrix)
    torch.testing.assert_close(matrix.sum(0), torch.full((3,), 4.0, dtype=torch.float64), rtol=1e-3, atol=0)


def slow_logs(rows: list[list[float]], num_iterations: int) -> list[list[float]]:
    """The same in logarithms, number by number, with sums that are exact."""

    def total(logs: list[float]) -> float:
        top = max(logs)
        return top + math.log(math.fsum(math.exp(log - top) for log in logs))

    share = math.log(len(rows) / len(rows[0]))
    for _ in range(num_iterations):
        columns = [total([row[expert] for row in rows]) for expert in range(len(rows[0]))]
        rows = [[log - column + share for log, column in zip(row, columns, strict=True)] for row in rows]
        rows = [[log - total(row) for log in row] for row in rows]
    return rows


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_sinkhorn_keeps_the_order_of_what_underflows(scale: float) -> None:
    logits = scale * skewed(40, 5)
    logits[:10, 1] = NEG_INF
    rows = slow_logs(logits.tolist(), 20)
    torch.testing.assert_close(sinkhorn(logits, 20), torch.tensor(rows, dtype=torch.float64))
    bias = torch.zeros(40, 5).masked_fill(logits == NEG_INF, NEG_INF)
    found = ask(Sinkhorn(), logits.masked_fill(logits == NEG_INF, 0.0), 3, training=True, bias_TE=bias)
    wanted = [sorted(range(5), key=lambda expert: -row[expert])[:3] for row in rows]
    assert found.expert_ids_TK.tolist() == wanted


@pytest.mark.parametrize("stored", [None, [0.0] * 8, [0.3, -0.2, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_sinkhorn_gives_no_masked_expert_while_an_open_one_is_left(
    temperature: float, stored: list[float] | None
) -> None:
    logits = 3.0 * torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(500, 8)
    bias[:, :3] = NEG_INF
    found = ask(
        Sinkhorn(),
        logits,
        4,
        training=True,
        temperature=temperature,
        bias_TE=bias,
        selection_bias_E=None if stored is None else torch.tensor(stored),
    )
    assert (found.expert_ids_TK >= 3).all()


@pytest.mark.parametrize("spoilt", [NEG_INF, float("inf"), float("nan")])
def test_a_token_without_an_open_expert_or_number_leaves_the_others_even(spoilt: float) -> None:
    logits = skewed(64, 4)
    alone = ask(Sinkhorn(), logits, 2, training=True)
    bias = torch.zeros(65, 4)
    bias[64] = spoilt
    beside = ask(Sinkhorn(), torch.cat([logits, logits[:1]]), 2, training=True, bias_TE=bias)
    assert torch.equal(beside.expert_ids_TK[:64], alone.expert_ids_TK)


def test_sinkhorn_leaves_logits_in_float64_as_they_were() -> None:
    logits_TE = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before_TE = logits_TE.clone()
    _evened(logits_TE, None, 20)
    assert torch.equal(logits_TE, before_TE)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_selection_bias_of_sinkhorn_is_on_one_scale_in_training_and_serving(scale: float) -> None:
    """Every token has the same logits, each turned on by one: they are even, and there is nothing to scale."""
    row = scale * torch.randn(16, generator=torch.Generator().manual_seed(0))
    logits = torch.stack([row.roll(turn) for turn in range(16)])
    bias = torch.linspace(-0.3, 0.3, 16)
    trained, served = (
        ask(Sinkhorn(), logits, 2, training=training, selection_bias_E=bias) for training in (True, False)
    )
    assert torch.equal(trained.expert_ids_TK, served.expert_ids_TK)
    assert not torch.equal(served.expert_ids_TK, ask(Sinkhorn(), logits, 2).expert_ids_TK)


@pytest.mark.parametrize("gate", [Sinkhorn(), Quantile()], ids=lambda gate: gate.kind)
@pytest.mark.parametrize("top_k", [1, 2])
def test_loads_are_even_while_training_and_the_gates_own_when_serving(
    gate: Sinkhorn | Quantile, top_k: int
) -> None:
    logits = skewed()
    plain = ask(gate, logits, top_k)
    even = ask(gate, logits, top_k, training=True)
    assert max_vio(plain) > 1.0
    assert max_vio(even) < (0.02 if gate.kind == "quantile" else 0.35)
    chosen = logits.gather(1, even.expert_ids_TK)
    torch.testing.assert_close(even.weights_TK, torch.softmax(chosen, -1))
    assert torch.equal(even.probs_TE, plain.probs_TE)


@pytest.mark.parametrize("gate", [Quantile(), ExpertChoice()], ids=lambda gate: gate.kind)
def test_what_a_gate_evens_by_itself_is_tokens_and_not_work(gate: Quantile | ExpertChoice) -> None:
    kinds = [{"kind": "swiglu", "width": width} for width in (64, 8, 8, 8)]
    fields = {"moe_layers": (0,), "num_experts": 4, "top_k": 1, "moe_intermediate_size": 64}
    moe = MoeSpec.parse({**fields, "gate": gate, "expert_kinds": kinds})
    weights = {**tensors_of(moe, 4), "weight": torch.eye(4)}
    found = decide(moe, weights, GateCall(skewed(400, 4), 1, training=True))
    costs = moe.balance_costs(4)
    assert costs is not None and costs[0] > 7 * costs[1]
    assert max_vio(found) < 0.01


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"), [(100, 7, 2), (64, 4, 3), (5, 8, 1), (30, 3, 3)]
)
def test_quantiles_give_each_expert_its_share_where_it_does_not_divide(
    num_tokens: int, num_experts: int, top_k: int
) -> None:
    scores = torch.softmax(skewed(num_tokens, num_experts), -1)
    bias_E = balancing_bias(scores, top_k, 40, torch.zeros(num_experts))
    ids = (scores + bias_E).topk(top_k).indices
    load = torch.bincount(ids.flatten(), minlength=num_experts)
    fair = num_tokens * top_k / num_experts
    assert (load - fair).abs().max() <= 1.0 + num_experts * abs(round(fair) - fair)
    assert float(bias_E.sum()) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("case", ["skewed", "ties", "masked", "one nan"])
def test_quantiles_equal_ranking_every_token_anew(case: str, top_k: int) -> None:
    scores = torch.softmax(skewed(83, 7), -1)
    if case == "ties":
        scores = (4 * scores).round()
    if case == "masked":
        scores[:40, :2] = NEG_INF
    if case == "one nan":
        scores[9] = float("nan")
    found = balancing_bias(scores, top_k, 6, torch.linspace(-0.2, 0.2, 7))
    assert torch.equal(found, slow_bias(scores, top_k, 6, torch.linspace(-0.2, 0.2, 7)))


@pytest.mark.parametrize(("spread", "skew"), [(1.0, 1.0), (5.0, 5.0), (8.0, 3.0)])
def test_quantiles_even_loads_where_the_softmax_saturates(spread: float, skew: float) -> None:
    """In float32 the likeliest experts of many tokens have a share of exactly one, which leaves no threshold between them."""
    generator = torch.Generator().manual_seed(1)
    logits = spread * torch.randn(2048, 64, generator=generator) + skew * torch.randn(64, generator=generator)
    found = ask(Quantile(), logits, 8, training=True)
    assert max_vio(found) < 0.05
    torch.testing.assert_close(
        found.weights_TK, torch.softmax(logits.gather(1, found.expert_ids_TK), -1), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("num_rounds", [1, 6])
def test_quantiles_equal_ranking_every_token_anew_where_values_move_far(num_rounds: int) -> None:
    """More experts than are kept of a token, so that what falls out of them has to be searched again."""
    generator = torch.Generator().manual_seed(2)
    logits = 2.0 * torch.randn(301, 40, generator=generator) + 3.0 * torch.randn(40, generator=generator)
    scores = torch.softmax(logits, -1)
    scores[:50, 3:] = NEG_INF
    scores[50:90, 7] = NEG_INF
    start = torch.randn(40, generator=generator)
    found = balancing_bias(scores, 3, num_rounds, start)
    assert torch.equal(found, slow_bias(scores, 3, num_rounds, start))


def slow_bias(scores_TE: Tensor, top_k: int, num_rounds: int, start_E: Tensor) -> Tensor:
    """One expert after the other, all tokens' other experts sorted for each."""
    bias_E, num_experts = start_E.clone(), scores_TE.shape[1]
    for turn in range(num_rounds * num_experts):
        expert = turn % num_experts
        others_TE = scores_TE + bias_E
        others_TE[:, expert] = NEG_INF
        to_beat_T = others_TE.sort(-1, descending=True).values[:, top_k - 1]
        missing_T = (to_beat_T - scores_TE[:, expert]).sort().values
        missing_T = missing_T[missing_T.isfinite()]
        share = round(scores_TE.shape[0] * top_k / num_experts)
        if 0 < share < missing_T.shape[0]:
            bias_E[expert] = (missing_T[share - 1] + missing_T[share]) / 2
    return bias_E - bias_E.mean()


def test_the_found_bias_can_be_stored_and_served() -> None:
    logits = skewed()
    found = ask(Quantile(), logits, 2, training=True)
    served = ask(Quantile(), logits, 2, tensors={"selection_bias": found.statistics["selection_bias"]})
    assert torch.equal(served.expert_ids_TK, found.expert_ids_TK)


@pytest.mark.parametrize("gate", [Sinkhorn(), Quantile(), ExpertChoice()], ids=lambda gate: gate.kind)
def test_padding_and_nan_change_nothing_for_the_others(gate: Sinkhorn | Quantile | ExpertChoice) -> None:
    logits = skewed(60, 4)
    alone = ask(gate, logits, 2, training=True)
    padded = torch.cat([torch.full((20, 4), 50.0), logits])
    real = torch.arange(80) >= 20
    beside = ask(gate, padded, 2, training=True, real_T=real)
    assert torch.equal(beside.expert_ids_TK[20:], alone.expert_ids_TK)
    spoilt = logits.clone()
    spoilt[7, 0] = float("nan")
    found = ask(gate, spoilt, 2, training=True)
    others = torch.arange(60) != 7
    assert found.weights_TK[others].isfinite().all()
    assert (found.expert_ids_TK[others] >= 0).any(-1).float().mean() > 0.7


@pytest.mark.parametrize("gate", [Sinkhorn(), Quantile()], ids=lambda gate: gate.kind)
def test_a_mask_holds_while_loads_are_evened(gate: Sinkhorn | Quantile) -> None:
    bias = torch.zeros(200, 4)
    bias[:100, 0] = NEG_INF
    found = ask(gate, skewed(200, 4), 2, training=True, bias_TE=bias)
    assert (found.expert_ids_TK[:100] != 0).all()
    assert (found.expert_ids_TK[100:] == 0).any()
    everywhere = torch.tensor([[NEG_INF, 0.0, 0.0, 0.0]]).expand(200, -1)
    nobody = ask(gate, skewed(200, 4), 2, training=True, bias_TE=everywhere)
    assert load_of(nobody)[0] == 0
    assert nobody.weights_TK.isfinite().all()


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(("num_tokens", "top_k"), [(24, 2), (25, 2), (7, 1), (1, 1)])
def test_expert_choice_equals_a_loop_over_experts(num_tokens: int, top_k: int, factor: float) -> None:
    logits = skewed(num_tokens, 5, seed=num_tokens)
    found = ask(ExpertChoice(capacity_factor=factor), logits, top_k)
    probs = torch.softmax(logits, -1)
    count = min(num_tokens, -int(-(factor * num_tokens * top_k / 5) // 1))
    expected = torch.zeros_like(probs)
    for expert in range(5):
        column = probs[:, expert].tolist()
        for token in sorted(range(num_tokens), key=lambda t: (-column[t], t))[:count]:
            expected[token, expert] = column[token]
    seen = torch.zeros_like(probs).scatter_add(1, found.expert_ids_TK.clamp(min=0), found.weights_TK)
    torch.testing.assert_close(seen, expected)
    assert load_of(found).tolist() == [count] * 5


def test_expert_choice_may_give_a_token_all_experts_or_none() -> None:
    # The first token is everybody's best, the last nobody's.
    logits = torch.tensor([[0.0, 0.0], [5.0, 0.0], [-5.0, -5.0]])
    assert ask(ExpertChoice(), torch.zeros(2, 2), 1).expert_ids_TK.tolist() == [[0, 1], [-1, -1]]
    found = ask(ExpertChoice(capacity_factor=0.6), logits, 1)
    assert found.expert_ids_TK.tolist() == [[1, -1], [0, -1], [-1, -1]]


def test_an_expert_never_picks_a_token_that_may_not_have_it() -> None:
    bias = torch.tensor([[NEG_INF, 0.0], [NEG_INF, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = ask(ExpertChoice(capacity_factor=2.0), torch.zeros(4, 2), 1, bias_TE=bias)
    assert load_of(found).tolist() == [2, 4]
    assert (found.expert_ids_TK[:2] != 0).all()


@pytest.mark.parametrize("gate", [Sinkhorn(), Quantile(), ExpertChoice()], ids=lambda gate: gate.kind)
def test_no_tokens_one_expert_and_all_experts(gate: Sinkhorn | Quantile | ExpertChoice) -> None:
    assert ask(gate, torch.empty(0, 3), 2, training=True).expert_ids_TK.shape[0] == 0
    assert (ask(gate, torch.zeros(3, 1), 1, training=True).expert_ids_TK == 0).all()
    every = ask(gate, skewed(10, 3), 3, training=True)
    assert load_of(every).tolist() == [10, 10, 10]
