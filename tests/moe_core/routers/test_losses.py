"""Losses of routing against the plain formula, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moe_core.routers import GateCall, Routing, decide, load_of, route
from moe_core.routers.loss_free import moved_bias, remembered
from moe_core.routers.losses import (
    balance_loss,
    importance_loss,
    label_loss,
    sequence_balance_loss,
    share_of_load,
    z_loss,
)
from moe_core.routers.sparsemax import sparsemax
from moe_core.spec.gate import Hierarchical, SigmoidGroups, Sparsemax
from tests.moe_core.routers.every_gate import KINDS, WIDTH, asked, mixture, tensors_of
from tests.moe_core.routers.gate_cases import ask, moe_of


def routed(logits: list[list[float]], top_k: int = 1):
    """A routing whose logits are given: hidden states are the logits, the gate is the identity."""
    logits_TE = torch.tensor(logits, requires_grad=True)
    return logits_TE, route(logits_TE, torch.eye(logits_TE.shape[1]), top_k=top_k)


def test_the_label_loss_is_minus_log_of_the_mapped_experts_probability() -> None:
    _, routing = routed([[0.0, 0.0, 0.0, 0.0], [0.0, math.log(3.0), 0.0, 0.0]])
    labels_NE = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    loss = label_loss(routing, labels_NE, torch.tensor([0, 1]), torch.tensor([True, True]))
    # Half of the probability for the first token (two of four), half for the second (3 of 6).
    assert float(loss.detach()) == pytest.approx(math.log(2.0))


def test_the_label_loss_asks_no_token_for_an_expert_that_is_hidden_from_it() -> None:
    """Of two tokens of the domain of expert 0 the second sees its twin in its place."""
    hidden_2E = torch.tensor([[0.0, 0.0, -math.inf], [-math.inf, 0.0, 0.0]])
    weight_ED = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x_TD = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    routing = route(x_TD, weight_ED, top_k=1, bias_TE=hidden_2E)
    both_T = torch.tensor([True, True])
    loss = label_loss(routing, torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0, 0]), both_T)
    two = (x_TD[0] @ weight_ED.t())[:2]
    assert float(loss) == pytest.approx(float(torch.logsumexp(two, 0) - two[0]), rel=1e-5)
    loss.backward()
    assert torch.isfinite(weight_ED.grad).all() and weight_ED.grad.abs().max() > 0
    none = label_loss(routing, torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([0, 0]), both_T)
    assert float(none) == 0.0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sparsemax"])
@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
def test_the_label_loss_is_of_the_gates_own_shares(kind: str, training: bool) -> None:
    moe = mixture(kind, 8, 2)
    assert moe is not None
    tensors, x_TD = tensors_of(moe, WIDTH), torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(4))
    routing = asked(moe, tensors, x_TD, training)
    labels_NE = torch.zeros(2, 8)
    labels_NE[0, [1, 2]] = labels_NE[1, 5] = 1.0
    domain_T, real_T = torch.arange(30) % 3 - 1, torch.arange(30) % 7 != 0
    shares_T = (routing.probs_TE * labels_NE[domain_T]).sum(-1)
    # Where a table has none of them nothing is asked.
    counted_T = real_T & (domain_T >= 0) & (shares_T > 0.0)
    found = label_loss(routing, labels_NE, domain_T, real_T, moe.gate)
    torch.testing.assert_close(found, -shares_T[counted_T].log().mean())
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(found, routing.logits_TE))


@pytest.mark.parametrize("scores", ["sigmoid", "sqrtsoftplus", "softmax"])
def test_a_score_that_has_underflowed_still_learns_its_label(scores: str) -> None:
    gate = SigmoidGroups.model_validate({"scores": scores, "selection_bias": False})
    logits_TE = torch.tensor([[-300.0, -200.0, 3.0, 0.0]], requires_grad=True)
    routing = ask(gate, logits_TE, 2, bias_TE=torch.tensor([[0.0, 0.0, 0.0, -math.inf]]))
    one_T = torch.ones(1, dtype=torch.bool)
    found = label_loss(routing, torch.tensor([[1.0, 0.0, 0.0, 1.0]]), torch.tensor([0]), one_T, gate)
    (grad_TE,) = torch.autograd.grad(found, logits_TE)
    assert found.isfinite()
    assert grad_TE.isfinite().all()
    assert float(grad_TE[0, 0]) <= -0.49


def test_sparsemax_learns_a_label_by_its_own_loss() -> None:
    logits_TE = torch.tensor([[0.0, 0.2, 5.0], [0.1, 0.0, -0.3], [9.0, 0.0, 0.0]], dtype=torch.float64)
    labels_NE, zeros_T = torch.tensor([[1.0, 1.0, 0.0]]), torch.zeros(3, dtype=torch.long)

    def loss(logits: Tensor) -> Tensor:
        routing = Routing(zeros_T[:, None], logits[:, :1], logits, sparsemax(logits))
        return label_loss(routing, labels_NE, zeros_T, torch.ones(3, dtype=torch.bool), Sparsemax())

    logits_TE.requires_grad_()
    assert torch.autograd.gradcheck(loss, logits_TE)
    (grad_TE,) = torch.autograd.grad(loss(logits_TE), logits_TE)
    # All shares are elsewhere: it is drawn to its own; the last one has all that it could have.
    torch.testing.assert_close(grad_TE[0], torch.tensor([-0.4, -0.6, 1.0], dtype=torch.float64) / 3)
    assert not grad_TE[2].any()
    # The paper's loss, with the nearest shares of the domain's own: 5 - 1/2 less the conjugate of (0, 0.2).
    first = loss(logits_TE[:1].detach().expand(3, 3))
    assert float(first) == pytest.approx(4.5 - (0.6 * 0.2 - (0.4**2 + 0.6**2) / 2))


def test_the_label_loss_heeds_neither_padding_nor_tokens_of_no_domain() -> None:
    logits_TE, routing = routed([[1.0, 0.0], [5.0, 0.0], [-5.0, 0.0]])
    labels_NE = torch.tensor([[1.0, 0.0]])
    loss = label_loss(routing, labels_NE, torch.tensor([0, 0, -1]), torch.tensor([True, False, True]))
    loss.backward()
    assert logits_TE.grad is not None
    assert logits_TE.grad[0].abs().sum() > 0
    assert logits_TE.grad[1:].abs().sum() == 0
    assert float(label_loss(routing, labels_NE, torch.tensor([-1, -1, -1]), torch.tensor([True] * 3))) == 0.0


def test_the_balance_loss_is_one_when_even_and_e_when_one_expert_takes_all() -> None:
    even = [[9.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 0.0, 9.0]]
    _, routing = routed(even)
    assert balance_loss(routing, torch.tensor([True] * 4)).item() == pytest.approx(1.0)
    _, routing = routed([[99.0, 0.0, 0.0, 0.0]] * 4)
    assert balance_loss(routing, torch.tensor([True] * 4)).item() == pytest.approx(4.0)


def test_the_balance_loss_pushes_the_busy_expert_down() -> None:
    logits_TE, routing = routed([[1.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    balance_loss(routing, torch.tensor([True, True, False])).backward()
    assert logits_TE.grad is not None
    # A gradient step goes against the gradient: the busy expert's logit sinks, padding feels nothing.
    assert (logits_TE.grad[:2, 0] > 0).all()
    assert (logits_TE.grad[:2, 1] < 0).all()
    assert logits_TE.grad[2].abs().sum() == 0


def test_the_balance_loss_can_judge_by_a_longer_memory_than_the_batch() -> None:
    _, routing = routed([[9.0, 0.0], [9.0, 0.0]])
    even = balance_loss(routing, torch.tensor([True, True]), torch.tensor([0.5, 0.5]))
    assert float(even) == pytest.approx(1.0)


def test_the_z_loss_of_zero_logits_is_the_square_of_log_e() -> None:
    _, routing = routed([[0.0] * 8, [0.0] * 8])
    assert float(z_loss(routing, torch.tensor([True, False]))) == pytest.approx(math.log(8) ** 2)


def test_padding_and_empty_places_do_not_count_for_balance() -> None:
    _, routing = routed([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    found = balance_loss(routing, torch.tensor([True, True, False]))
    assert found.item() == pytest.approx(1.0)
    emptied = replace(routing, expert_ids_TK=torch.tensor([[0], [1], [-1]]))
    assert load_of(emptied).tolist() == [1, 1]


def test_opposite_imbalances_of_two_layers_do_not_cancel() -> None:
    """Pooled over layers (as one known library does) these two would look even."""
    real = torch.tensor([True, True])
    _, first = routed([[9.0, -9.0]] * 2)
    _, second = routed([[-9.0, 9.0]] * 2)
    each = [balance_loss(routing, real).item() for routing in (first, second)]
    pooled = replace(
        first,
        expert_ids_TK=torch.cat([first.expert_ids_TK, second.expert_ids_TK]),
        probs_TE=torch.cat([first.probs_TE, second.probs_TE]),
    )
    assert each == pytest.approx([2.0, 2.0], rel=1e-3)
    assert balance_loss(pooled, torch.tensor([True] * 4)).item() == pytest.approx(1.0, rel=1e-3)


def test_the_global_batch_form_equals_the_loss_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 6)
    real = torch.rand(40) < 0.8
    whole = routed(logits.tolist(), top_k=2)[1]
    halves = [routed(logits[part].tolist(), top_k=2)[1] for part in (slice(0, 15), slice(15, 40))]
    reals = [real[:15], real[15:]]
    share = share_of_load(sum(load_of(routing, mine) for routing, mine in zip(halves, reals, strict=True)))
    parts = [
        balance_loss(routing, mine, share) * mine.sum() / real.sum()
        for routing, mine in zip(halves, reals, strict=True)
    ]
    torch.testing.assert_close(sum(parts), balance_loss(whole, real))
    alone = [balance_loss(r, m).item() for r, m in zip(halves, reals, strict=True)]
    assert alone != pytest.approx([part.item() for part in parts])


def test_the_sequence_form_is_the_mean_of_the_losses_of_each_sequence() -> None:
    torch.manual_seed(1)
    logits, sequence = torch.randn(30, 5), torch.randint(3, (30,))
    real = torch.rand(30) < 0.7
    routing = routed(logits.tolist(), top_k=2)[1]
    each = []
    for name in range(3):
        own = sequence == name
        each.append(balance_loss(routed(logits[own].tolist(), top_k=2)[1], real[own]))
    torch.testing.assert_close(sequence_balance_loss(routing, real, sequence), torch.stack(each).mean())
    nothing = torch.zeros(30, dtype=torch.bool)
    assert sequence_balance_loss(routing, nothing, sequence).item() == 0.0


def test_two_lopsided_sequences_that_look_even_together_are_seen_one_by_one() -> None:
    _, routing = routed([[9.0, -9.0]] * 3 + [[-9.0, 9.0]] * 3)
    real, sequence = torch.ones(6, dtype=torch.bool), torch.arange(6) // 3
    assert balance_loss(routing, real).item() == pytest.approx(1.0, rel=1e-3)
    assert sequence_balance_loss(routing, real, sequence).item() == pytest.approx(2.0, rel=1e-3)


def test_importance_is_the_squared_variation_of_summed_weights() -> None:
    _, routing = routed([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [5.0, 5.0, 5.0]], top_k=2)
    real = torch.tensor([True, True, False])
    high, low = torch.softmax(torch.tensor([2.0, 1.0]), 0).tolist()
    sums = torch.tensor([high, low + high, low])
    expected = sums.var(correction=0) / sums.mean() ** 2
    torch.testing.assert_close(importance_loss(routing, real), expected)
    _, even = routed([[9.0, 0.0], [0.0, 9.0]])
    assert importance_loss(even, torch.tensor([True, True])).item() == 0.0


@pytest.mark.parametrize("loss", [balance_loss, importance_loss, z_loss])
def test_no_tokens_have_no_loss(loss: Callable[[Routing, Tensor], Tensor]) -> None:
    empty = route(torch.empty(0, 3), torch.eye(3), top_k=1)
    assert loss(empty, torch.empty(0, dtype=torch.bool)).item() == 0.0


def test_the_bias_moves_by_the_sign_of_what_is_missing_and_stays_centred() -> None:
    bias = torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    load = torch.tensor([[10, 2, 2, 2], [0, 0, 0, 0]])
    moved = moved_bias(bias, load, 0.1)
    torch.testing.assert_close(moved[0] - bias[0], torch.tensor([-0.15, 0.05, 0.05, 0.05]))
    assert torch.equal(moved[1], bias[1])
    plain = moved_bias(bias, load, 0.1, centred=False)
    torch.testing.assert_close(plain[0] - bias[0], torch.tensor([-0.1, 0.1, 0.1, 0.1]))


def test_bias_steps_even_out_a_static_skew() -> None:
    """32 experts, top-4, a fixed skew of the scores: MaxVio falls from above 2 to below 0.1."""
    generator = torch.Generator().manual_seed(0)
    skew_E = torch.linspace(0.1, 0.0, 32)
    bias_1E = torch.zeros(1, 32)

    def load(num_tokens: int) -> Tensor:
        scores = torch.rand(num_tokens, 32, generator=generator) * 0.5 + skew_E
        return torch.bincount((scores + bias_1E).topk(4).indices.flatten(), minlength=32)

    def max_vio(load_E: Tensor) -> float:
        return float(load_E.max() / load_E.double().mean() - 1.0)

    before = max_vio(load(8192))
    for _ in range(300):
        bias_1E = moved_bias(bias_1E, load(1024)[None], 1e-3)
    assert before > 0.4
    assert max_vio(load(32768)) < 0.1
    assert remembered(torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), 0.75).tolist() == [[0.25, -0.25]]


def test_the_z_loss_of_a_tree_is_that_of_its_softmaxes_and_keeps_every_map_small() -> None:
    moe = moe_of(Hierarchical(num_domains=2, groups_per_domain=2), 8, 2)
    tensors, x_TD = tensors_of(moe, WIDTH), torch.randn(5, WIDTH)
    found = z_loss(decide(moe, tensors, GateCall(x_TD, 2)), torch.tensor([True] * 4 + [False]))
    squares = []
    for x_D in x_TD[:4]:
        for name, size in (("domain_weight", 2), ("group_weight", 2), ("weight", 2)):
            for siblings in (tensors[name] @ x_D).split(size):
                squares.append(siblings.exp().sum().log().square())
    assert len(squares) == 4 * (1 + 2 + 4)
    torch.testing.assert_close(found, torch.stack(squares).mean())
    grads = torch.autograd.grad(
        found, [tensors[name] for name in ("domain_weight", "group_weight", "weight")]
    )
    assert all(bool(grad.abs().sum() > 0) for grad in grads)
    # A tree of one branch is the flat gate.
    flat = moe_of(Hierarchical(), 8, 2)
    tensors = tensors_of(flat, WIDTH)
    routed_flat, every_T = decide(flat, tensors, GateCall(x_TD, 2)), torch.ones(5, dtype=torch.bool)
    wanted = (x_TD @ tensors["weight"].t()).logsumexp(-1).square().mean()
    torch.testing.assert_close(z_loss(routed_flat, every_T), wanted)
