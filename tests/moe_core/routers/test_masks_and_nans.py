"""What no gate may do: let a mask's -inf into a gradient, or a NaN of one token into the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_core.model import DomainPrior, RoutingContext
from moe_core.model.init import random_decoder
from moe_core.routers import load_of, route
from moe_core.routers.call import Floor
from moe_core.routers.sigmoid_groups import expert_scores
from moe_core.spec import LayoutSpec
from moe_core.spec.gate import SigmoidGroups
from tests.moe_core.routers.every_gate import KINDS, WIDTH, asked, gate_of, mixture, tensors_of, weighed
from tests.moe_core.tiny import STD, tiny_llama

NEG_INF = float("-inf")
NUM_TOKENS, NUM_EXPERTS = 12, 4


def masks() -> dict[str, Tensor]:
    """Biases (T, E): one expert masked, all but top_k, halves for different tokens, one expert masked for a sequence."""
    free = torch.zeros(NUM_TOKENS, NUM_EXPERTS)
    one, two, halves, sequence = free.clone(), free.clone(), free.clone(), free.clone()
    one[:, 3] = NEG_INF
    two[:, 2:] = NEG_INF
    halves[:6, 2:] = halves[6:, :2] = NEG_INF
    sequence[:6, 1] = NEG_INF
    return {"one": one, "all but two": two, "halves": halves, "one sequence": sequence}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
@pytest.mark.parametrize("mask", masks())
def test_a_mask_leaves_every_gradient_finite(kind: str, training: bool, mask: str) -> None:
    moe = mixture(kind, NUM_EXPERTS, 2)
    assert moe is not None
    tensors = tensors_of(moe, WIDTH)
    x_TD = torch.randn(NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(3)).requires_grad_()
    routing = asked(moe, tensors, x_TD, training, bias_TE=masks()[mask])
    generator = torch.Generator().manual_seed(4)
    objective = sum(
        (value * torch.rand(value.shape, generator=generator)).sum() for value in weighed(routing)
    )
    assert torch.isfinite(objective)
    learning = [x_TD, *(tensor for tensor in tensors.values() if tensor.requires_grad)]
    for gradient in torch.autograd.grad(objective, learning, allow_unused=True, materialize_grads=True):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "soft"])
@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
def test_a_mask_that_leaves_fewer_than_k_leaves_places_empty(kind: str, training: bool) -> None:
    """Of the first six tokens each has one expert left, and nothing else is named, weighed or counted."""
    moe = mixture(kind, NUM_EXPERTS, 2)
    assert moe is not None
    x_TD = torch.randn(NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))
    bias_TE = torch.zeros(NUM_TOKENS, NUM_EXPERTS)
    bias_TE[:6, [0, 1, 3]] = NEG_INF
    routing = asked(moe, tensors_of(moe, WIDTH), x_TD, training, bias_TE=bias_TE)
    if kind == "base" and training:
        # To even loads it may deal what is masked; that has no weight.
        assert not routing.weights_TK[:6][routing.expert_ids_TK[:6] != 2].any()
        return
    assert set(routing.expert_ids_TK[:6].flatten().tolist()) <= {2, -1}
    assert (routing.expert_ids_TK[:6] == 2).sum(-1).max() <= 1
    assert not routing.weights_TK[routing.expert_ids_TK < 0].any()
    later_TK = routing.expert_ids_TK[6:]
    assert int(load_of(routing)[[0, 1, 3]].sum()) == int(((later_TK >= 0) & (later_TK != 2)).sum())


def test_the_plain_gate_of_hidden_states_leaves_them_empty_too() -> None:
    bias_TE = torch.tensor([[NEG_INF, 0.0, NEG_INF], [0.0, 0.0, 0.0]])
    routing = route(torch.zeros(2, 3), torch.eye(3), top_k=2, bias_TE=bias_TE)
    assert routing.expert_ids_TK.tolist() == [[1, -1], [0, 1]]
    assert routing.weights_TK.tolist() == [[1.0, 0.0], [0.5, 0.5]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
@pytest.mark.parametrize("of_all", ["none", "some", "all"])
def test_a_floor_leaves_every_gradient_finite(kind: str, training: bool, of_all: str) -> None:
    moe = mixture(kind, NUM_EXPERTS, 2)
    assert moe is not None
    tensors = tensors_of(moe, WIDTH)
    x_TD = torch.randn(NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(3)).requires_grad_()
    mine_TE = torch.zeros(NUM_TOKENS, NUM_EXPERTS, dtype=torch.bool)
    mine_TE[:, : {"none": 0, "some": 1, "all": NUM_EXPERTS}[of_all]] = True
    routing = asked(moe, tensors, x_TD, training, floor=Floor(torch.full((NUM_TOKENS,), 0.7), mine_TE))
    objective = sum((value.square()).sum() for value in weighed(routing))
    learning = [x_TD, *(tensor for tensor in tensors.values() if tensor.requires_grad)]
    for gradient in torch.autograd.grad(objective, learning, allow_unused=True, materialize_grads=True):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
@pytest.mark.parametrize("side", ["own", "others", "some of both"])
def test_a_floor_beside_a_mask_leaves_every_gradient_finite(kind: str, training: bool, side: str) -> None:
    """As twins that are hidden make it: where all of a side is masked there is nothing to move."""
    moe = mixture(kind, NUM_EXPERTS, 2)
    assert moe is not None
    tensors = tensors_of(moe, WIDTH)
    x_TD = torch.randn(NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(3)).requires_grad_()
    mine_TE = torch.zeros(NUM_TOKENS, NUM_EXPERTS, dtype=torch.bool)
    mine_TE[:, :2] = True
    bias_TE = torch.zeros(NUM_TOKENS, NUM_EXPERTS)
    bias_TE[:, {"own": [0, 1], "others": [2, 3], "some of both": [1, 2]}[side]] = NEG_INF
    floor = Floor(torch.full((NUM_TOKENS,), 0.7), mine_TE)
    routing = asked(moe, tensors, x_TD, training, floor=floor, bias_TE=bias_TE)
    objective = sum((value.square()).sum() for value in weighed(routing))
    learning = [x_TD, *(tensor for tensor in tensors.values() if tensor.requires_grad)]
    for gradient in torch.autograd.grad(objective, learning, allow_unused=True, materialize_grads=True):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("scores", ["sigmoid", "softmax", "sqrtsoftplus"])
def test_every_score_function_has_finite_gradients_under_a_mask_and_far_down(scores: str) -> None:
    gate = SigmoidGroups.model_validate({"scores": scores})
    logits_TE = torch.tensor([[NEG_INF, -300.0, -150.0, -104.0, -20.5, -19.5, -3.0, 2.0, 40.0]])
    found_TE = expert_scores(gate, logits_TE.requires_grad_())
    (gradient_TE,) = torch.autograd.grad((found_TE * torch.arange(1.0, 10.0)).sum(), logits_TE)
    assert gradient_TE.isfinite().all()
    exact_TE = expert_scores(gate, logits_TE.detach().double())
    torch.testing.assert_close(found_TE.double(), exact_TE, rtol=1e-6, atol=1e-37)
    if scores == "sqrtsoftplus":
        plain_TE = torch.nn.functional.softplus(logits_TE.detach().double()).sqrt()
        torch.testing.assert_close(exact_TE, plain_TE, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_under_a_mask_can_take_a_step(kind: str) -> None:
    """Two requests of one batch, each with half of the experts, through a whole decoder."""
    moe = mixture(kind, NUM_EXPERTS, 2)
    assert moe is not None
    layout = {
        "moe_layers": (0, 2),
        "num_experts": NUM_EXPERTS,
        "top_k": moe.top_k,
        "moe_intermediate_size": 16,
    }
    spec = LayoutSpec.parse({**layout, "gate": gate_of(kind, NUM_EXPERTS)}).applied_to(tiny_llama())
    model = random_decoder(spec, 3, STD)
    bias_NE = torch.tensor([[0.0, 0.0, NEG_INF, NEG_INF], [NEG_INF, NEG_INF, 0.0, 0.0]])
    seen: dict[int, object] = {}
    rows_T = torch.tensor([0, 1]).repeat_interleave(12)
    context = RoutingContext(
        prior=DomainPrior(bias_NE[:, None, :].expand(-1, 2, -1), moe.top_k),
        domain_T=rows_T, sequence_T=rows_T, observe=seen.__setitem__,
        training=True, rng=torch.Generator().manual_seed(0),
    )  # fmt: skip
    ids = torch.arange(24).view(2, 12)
    loss = torch.nn.functional.cross_entropy(model(ids, context).flatten(0, 1), ids.flatten())
    for routing in seen.values():
        loss = loss + 0.1 * sum(routing.losses.values())  # type: ignore[attr-defined]
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_own_token(kind: str, training: bool, poison: float) -> None:
    moe = mixture(kind, NUM_EXPERTS, 2)
    assert moe is not None
    tensors = tensors_of(moe, WIDTH)
    x_TD = torch.randn(NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))
    x_TD[4] = poison
    others = torch.arange(NUM_TOKENS) != 4
    found = asked(moe, tensors, x_TD, training)
    for name, loss in found.losses.items():
        assert loss.isfinite(), name
    if found.mix is None:
        assert found.weights_TK[others].isfinite().all()
        assert found.probs_TE[others].isfinite().all()
        return
    answered_TD = found.mix.tokens_of(torch.tanh(found.mix.slots_of(x_TD)))
    assert answered_TD[others].isfinite().all()
    assert answered_TD[4].isnan().all()
    # Slots are made as if it were padding.
    clean_TD = torch.where(others[:, None], x_TD, 0.0)
    padded = asked(moe, tensors, clean_TD, training, real_T=others)
    assert padded.mix is not None
    torch.testing.assert_close(found.mix.slots_of(x_TD), padded.mix.slots_of(clean_TD))


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_of_nan_has_no_finite_weight(kind: str) -> None:
    moe = mixture(kind, NUM_EXPERTS, 2)
    assert moe is not None
    x_TD = torch.randn(NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))
    x_TD[4] = float("nan")
    found = asked(moe, tensors_of(moe, WIDTH), x_TD, False)
    # Expert choice picks no such token.
    assert found.weights_TK[4].isnan().any() or (found.expert_ids_TK[4] < 0).all()
