"""The top-k router against a slow truth, in the nine cases where routers break."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.routers import Routing, route
from tests.moe_core.routers.every_gate import KINDS, WIDTH, asked, mixture, tensors_of

NEG_INF = float("-inf")


def scores(*rows: list[float], top_k: int, **options: object) -> Routing:
    """Route tokens whose logits are given: the router's map is the identity."""
    logits_TE = torch.tensor(rows)
    return route(logits_TE, torch.eye(logits_TE.shape[1]), top_k=top_k, **options)  # type: ignore[arg-type]


def slow_truth(logits: list[float], top_k: int, norm: bool, temperature: float) -> dict[int, float]:
    """Weights by expert in Python floats; ties go to the lower number."""
    top = max(logits)
    exps = [math.exp((x - top) / temperature) for x in logits]
    probs = [e / sum(exps) for e in exps]
    chosen = sorted(range(len(logits)), key=lambda e: (-logits[e], e))[:top_k]
    total = sum(probs[e] for e in chosen) if norm else 1.0
    return {e: probs[e] / total for e in chosen}


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (4, 1), (4, 2), (5, 5), (7, 3)])
def test_it_equals_the_slow_truth(num_experts: int, top_k: int, temperature: float, norm: bool) -> None:
    torch.manual_seed(num_experts * 10 + top_k)
    hidden_TD, weight_ED = torch.randn(33, 12), torch.randn(num_experts, 12)
    routing = route(hidden_TD, weight_ED, top_k=top_k, norm_topk_prob=norm, temperature=temperature)
    raw_TE = (hidden_TD.double() @ weight_ED.double().t()).tolist()
    for ids, weights, logits in zip(
        routing.expert_ids_TK.tolist(), routing.weights_TK.tolist(), raw_TE, strict=True
    ):
        expected = slow_truth(logits, top_k, norm, temperature)
        assert ids == list(expected)
        assert weights == pytest.approx(list(expected.values()), rel=1e-5)


def test_ties_go_to_the_lower_expert() -> None:
    routing = scores([1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], top_k=2)
    assert routing.expert_ids_TK.tolist() == [[1, 2], [0, 1]]
    assert torch.equal(routing.weights_TK, torch.full((2, 2), 0.5))


def test_a_nan_stays_in_its_own_token() -> None:
    routing = scores([1.0, 2.0, 0.0], [float("nan"), 0.0, 0.0], top_k=2)
    assert routing.expert_ids_TK[0].tolist() == [1, 0]
    assert routing.weights_TK[0].isfinite().all()
    assert routing.weights_TK[1].isnan().all()
    assert len(set(routing.expert_ids_TK[1].tolist())) == 2
    assert 0 <= int(routing.expert_ids_TK.min()) <= int(routing.expert_ids_TK.max()) < 3


def test_no_tokens_give_no_rows() -> None:
    routing = route(torch.empty(0, 4), torch.randn(3, 4), top_k=2)
    assert routing.expert_ids_TK.shape == routing.weights_TK.shape == (0, 2)
    assert routing.probs_TE.shape == (0, 3)


def test_one_expert_takes_all() -> None:
    routing = scores([-5.0], [7.0], top_k=1)
    assert routing.expert_ids_TK.tolist() == [[0], [0]]
    assert routing.weights_TK.tolist() == [[1.0], [1.0]]


def test_top_k_of_all_experts_is_the_softmax() -> None:
    routing = scores([0.5, 2.0, -1.0], top_k=3)
    in_order = routing.probs_TE.gather(1, routing.expert_ids_TK)
    assert torch.allclose(routing.weights_TK, in_order, atol=1e-7)
    assert sorted(routing.expert_ids_TK[0].tolist()) == [0, 1, 2]


def test_all_tokens_may_go_to_one_expert() -> None:
    routing = route(torch.ones(100, 2), torch.tensor([[0.0, 0.0], [5.0, 5.0], [0.0, 0.0]]), top_k=1)
    assert torch.equal(routing.expert_ids_TK, torch.ones(100, 1, dtype=torch.long))


def test_temperature_zero_is_the_limit() -> None:
    cold, nearly = (scores([1.0, 3.0, 2.0], top_k=2, temperature=t) for t in (0.0, 1e-3))
    assert cold.expert_ids_TK.tolist() == nearly.expert_ids_TK.tolist() == [[1, 2]]
    assert cold.weights_TK.tolist() == [[1.0, 0.0]]
    assert torch.allclose(cold.probs_TE, nearly.probs_TE)


def test_a_high_temperature_is_uniform() -> None:
    assert torch.allclose(
        scores([1.0, 3.0, 2.0], top_k=3, temperature=1e6).probs_TE, torch.full((1, 3), 1 / 3)
    )


def test_sixteen_bit_inputs_are_routed_in_float32() -> None:
    torch.manual_seed(0)
    hidden_TD, weight_ED = torch.randn(64, 32).bfloat16(), torch.randn(8, 32).bfloat16()
    half = route(hidden_TD, weight_ED, top_k=2)
    full = route(hidden_TD.float(), weight_ED.float(), top_k=2)
    assert half.logits_TE.dtype == torch.float32
    assert torch.equal(half.logits_TE, full.logits_TE)


def test_a_prior_bias_shifts_the_choice_and_the_weights() -> None:
    bias_TE = torch.tensor([[0.0, 0.0, 2.0]])
    routing = scores([1.0, 1.5, 0.0], top_k=2, bias_TE=bias_TE)
    same = scores([1.0, 1.5, 2.0], top_k=2)
    assert torch.equal(routing.expert_ids_TK, same.expert_ids_TK)
    assert torch.equal(routing.weights_TK, same.weights_TK)


def test_a_masked_expert_is_never_chosen_and_weighs_nothing() -> None:
    routing = scores([9.0, 1.0, 0.0], top_k=2, bias_TE=torch.tensor([[NEG_INF, 0.0, 0.0]]))
    assert sorted(routing.expert_ids_TK[0].tolist()) == [1, 2]
    assert routing.probs_TE[0, 0] == 0.0
    even_when_pushed = scores(
        [9.0, 1.0, 0.0], top_k=2, bias_TE=torch.tensor([[NEG_INF, 0.0, 0.0]]),
        selection_bias_E=torch.tensor([100.0, 0.0, 0.0]),
    )  # fmt: skip
    assert sorted(even_when_pushed.expert_ids_TK[0].tolist()) == [1, 2]


def test_a_selection_bias_changes_who_is_chosen_but_not_what_they_weigh() -> None:
    plain = scores([2.0, 1.0, 0.0], top_k=3)
    pushed = scores(
        [2.0, 1.0, 0.0], top_k=1, norm_topk_prob=False, selection_bias_E=torch.tensor([0.0, 0.0, 1.0])
    )
    assert pushed.expert_ids_TK.tolist() == [[2]]
    assert pushed.weights_TK[0, 0] == plain.probs_TE[0, 2]


def test_forced_experts_keep_the_routers_own_weights() -> None:
    forced_TK = torch.tensor([[2, 0]])
    routing = scores([2.0, 1.0, 0.0], top_k=2, forced_TK=forced_TK)
    assert torch.equal(routing.expert_ids_TK, forced_TK)
    assert torch.allclose(routing.weights_TK, torch.softmax(torch.tensor([[0.0, 2.0]]), -1))


def test_forcing_the_unlikeliest_experts_gives_finite_weights() -> None:
    routing = scores([0.0, -500.0, -500.0], top_k=2, forced_TK=torch.tensor([[1, 2]]))
    assert routing.weights_TK.tolist() == [[0.5, 0.5]]


def test_gradients_reach_router_and_hidden_states() -> None:
    hidden_TD = torch.randn(6, 5, dtype=torch.float32, requires_grad=True)
    weight_ED = torch.randn(4, 5, requires_grad=True)
    route(hidden_TD, weight_ED, top_k=2).weights_TK[:, 0].sum().backward()
    for grad in (hidden_TD.grad, weight_ED.grad):
        assert isinstance(grad, Tensor)
        assert grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("hidden_shape", "weight_shape", "top_k", "temperature", "complaint"),
    [
        ((3, 4), (5, 6), 1, 1.0, "must be"),
        ((3, 4), (5, 4), 6, 1.0, r"top_k \(6\) must be between 1 and the number of experts \(5\)"),
        ((3, 4), (5, 4), 0, 1.0, "top_k"),
        ((3, 4), (5, 4), 1, -1.0, "temperature"),
        ((3, 4), (5, 4), 1, float("nan"), "temperature"),
    ],
)
def test_it_names_what_does_not_fit(
    hidden_shape: tuple[int, int],
    weight_shape: tuple[int, int],
    top_k: int,
    temperature: float,
    complaint: str,
) -> None:
    with pytest.raises(SpecError, match=complaint):
        route(torch.zeros(hidden_shape), torch.zeros(weight_shape), top_k=top_k, temperature=temperature)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"bias_TE": torch.zeros(3, 4)}, r"bias_TE \(3, 4\) must be \(T, E\) = \(2, 4\)"),
        ({"bias_TE": torch.zeros(4)}, r"bias_TE \(4,\) must be \(T, E\) = \(2, 4\)"),
        ({"selection_bias_E": torch.zeros(3)}, r"selection_bias_E \(3,\) must be \(E,\) = \(4,\)"),
        ({"selection_bias_E": torch.zeros(2, 4)}, r"selection_bias_E \(2, 4\) must be \(E,\) = \(4,\)"),
        ({"forced_TK": torch.tensor([[0, 1]])}, r"forced_TK \(1, 2\) must be \(T, K\) = \(2, 2\)"),
        ({"forced_TK": torch.tensor([[0], [1]])}, r"forced_TK \(2, 1\) must be \(T, K\) = \(2, 2\)"),
        ({"forced_TK": torch.tensor([0, 1])}, r"forced_TK \(2,\) must be \(T, K\) = \(2, 2\)"),
        ({"forced_TK": torch.tensor([[0, 1], [2, 9]])}, "holds expert 9; there are 4"),
        ({"forced_TK": torch.tensor([[0, 1], [-1, 2]])}, "holds expert -1; there are 4"),
        ({"forced_TK": torch.tensor([[0, 1], [2, 2]])}, "names expert 2 twice"),
        ({"forced_TK": torch.tensor([[0.0, 1], [2, 3]])}, "must be int64, not torch.float32"),
        ({"bias_TE": torch.tensor([[0.0] * 4, [NEG_INF] * 4])}, "masks all 4 experts of token 1"),
    ],
)
def test_it_names_what_is_given_beside_and_does_not_fit(given: dict[str, Tensor], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        route(torch.zeros(2, 8), torch.zeros(4, 8), top_k=2, **given)  # type: ignore[arg-type]


def test_hidden_states_that_are_no_floats_are_refused() -> None:
    with pytest.raises(SpecError, match=r"floating, not torch\.int64"):
        route(torch.zeros(2, 8, dtype=torch.int64), torch.zeros(4, 8), top_k=2)


def test_values_on_another_device_are_not_waited_for() -> None:
    """A tensor without values stands for one whose values would have to be waited for."""
    forced_TK = torch.empty(2, 2, dtype=torch.int64, device="meta")
    bias_TE = torch.empty(2, 4, device="meta")
    found = route(
        torch.empty(2, 8, device="meta"), torch.empty(4, 8, device="meta"), top_k=2,
        bias_TE=bias_TE, forced_TK=forced_TK,
    )  # fmt: skip
    assert found.weights_TK.shape == (2, 2)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"bias_TE": torch.zeros(1, 4)}, "bias_TE"),
        ({"noise_TE": torch.zeros(2, 3)}, "noise_TE"),
        ({"selection_bias_E": torch.zeros(5)}, "selection_bias_E"),
        ({"forced_TK": torch.zeros(3, 2, dtype=torch.int64)}, "forced_TK"),
    ],
)
def test_every_gate_refuses_what_does_not_fit(given: dict[str, Tensor], complaint: str) -> None:
    for kind in KINDS:
        moe = mixture(kind, 4, 2)
        assert moe is not None
        with pytest.raises(SpecError, match=complaint):
            asked(moe, tensors_of(moe, WIDTH), torch.zeros(2, WIDTH), False, **given)
