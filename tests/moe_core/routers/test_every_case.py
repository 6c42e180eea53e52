"""Every gate in the cases where routing breaks, while it learns and while it serves; and nothing lost where experts are full."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_core.routers import Routing, load_of
from moe_core.spec import CapacitySpec
from tests.moe_core.routers.every_gate import KINDS, WIDTH, asked, mixture, tensors_of, weighed

NUM_EXPERTS, TOP_K = 8, 2
HUGE = 4096


def drawn(num_tokens: int) -> Tensor:
    return torch.randn(num_tokens, WIDTH, generator=torch.Generator().manual_seed(num_tokens))


def poisoned() -> Tensor:
    x_TD = drawn(13)
    x_TD[4] = float("nan")
    return x_TD


# Experts, top_k, and the hidden states (T, D).
CASES: dict[str, tuple[int, int, Callable[[], Tensor]]] = {
    "ties": (NUM_EXPERTS, TOP_K, lambda: torch.zeros(16, WIDTH)),
    "nan": (NUM_EXPERTS, TOP_K, poisoned),
    "no tokens": (NUM_EXPERTS, TOP_K, lambda: torch.empty(0, WIDTH)),
    "one expert": (1, 1, lambda: drawn(5)),
    "k equals E": (4, 4, lambda: drawn(9)),
    "all to one": (NUM_EXPERTS, TOP_K, lambda: drawn(1).expand(16, -1)),
    "one empty": (NUM_EXPERTS, TOP_K, lambda: drawn(24)),
    # 37 · 2 is a multiple of nothing that a kernel works in.
    "odd rows": (NUM_EXPERTS, TOP_K, lambda: drawn(37)),
    "huge": (NUM_EXPERTS, TOP_K, lambda: drawn(HUGE)),
}
# Gates whose experts take as many tokens each by construction, and the one whose table leaves no choice to the case.
EVEN = ("base", "expert_choice", "sinkhorn", "quantile")
# Where a gate has one number of places, a layer of as many experts is its case of k = E.
ONLY = {"switch": 1, "base": 1, "gshard_top2": 2}


def size_of(kind: str, case: str) -> tuple[int, int]:
    """Experts and top_k of a gate in a case."""
    num_experts, top_k, _ = CASES[case]
    return (ONLY.get(kind, num_experts),) * 2 if case == "k equals E" else (num_experts, top_k)


def decided(
    kind: str, case: str, training: bool, capacity: CapacitySpec | None = None
) -> tuple[Tensor, Routing, dict[str, Tensor]] | None:
    """What a gate decides in a case; None where the gate cannot have so many experts or places."""
    num_experts, top_k = size_of(kind, case)
    moe = mixture(kind, num_experts, top_k)
    if moe is None:
        return None
    moe = moe.model_copy(update={"capacity": capacity})
    tensors = tensors_of(moe, WIDTH, std=0.5)
    x_TD = CASES[case][2]().clone().requires_grad_()
    call: dict[str, object] = {}
    if case == "one empty":
        bias_TE = torch.zeros(x_TD.shape[0], num_experts)
        bias_TE[:, 5] = float("-inf")
        call["bias_TE"] = bias_TE
    return x_TD, asked(moe, tensors, x_TD, training, **call), tensors


def sound(num_tokens: int, case: str) -> Tensor:
    """(T,) bool: the tokens that hold numbers."""
    return torch.arange(num_tokens) != (4 if case == "nan" else -1)


@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_decision_is_whole_in_every_case(kind: str, case: str, training: bool) -> None:
    found = decided(kind, case, training)
    if found is None:
        pytest.skip(f"{kind} has no such layer")
    x_TD, routing, tensors = found
    num_tokens, num_experts = x_TD.shape[0], size_of(kind, case)[0]
    sound_T = sound(num_tokens, case)
    ids_TK = routing.expert_ids_TK
    assert ids_TK.shape == routing.weights_TK.shape
    assert ids_TK.shape[0] == num_tokens
    assert ids_TK.dtype == torch.int64
    assert {routing.weights_TK.dtype, routing.logits_TE.dtype, routing.probs_TE.dtype} == {torch.float32}
    assert routing.probs_TE.shape == (num_tokens, num_experts)
    assert ((ids_TK >= -1) & (ids_TK < num_experts)).all()
    # No expert twice.
    sorted_TK = ids_TK.sort(-1).values
    assert not ((sorted_TK[:, 1:] == sorted_TK[:, :-1]) & (sorted_TK[:, 1:] >= 0)).any()
    # No weight in an empty place, none below zero, all of them numbers.
    weights_TK = routing.weights_TK[sound_T].detach()
    assert (weights_TK[ids_TK[sound_T] < 0] == 0.0).all()
    assert weights_TK.isfinite().all()
    assert (weights_TK >= 0.0).all()
    torch.testing.assert_close(
        routing.probs_TE[sound_T].sum(-1), torch.ones(int(sound_T.sum())), rtol=1e-4, atol=1e-4
    )
    assert int(load_of(routing).sum()) == int(routing.chosen_TK.sum())
    _holds(case, kind, routing, training)
    if case != "nan":
        objective = sum((value.square()).sum() for value in weighed(routing))
        learning = [x_TD, *(tensor for tensor in tensors.values() if tensor.requires_grad)]
        for gradient in torch.autograd.grad(objective, learning, allow_unused=True, materialize_grads=True):
            assert gradient.isfinite().all()


def _holds(case: str, kind: str, routing: Routing, training: bool) -> None:
    """What the case itself is about."""
    by_token = not (kind == "hash" or (training and kind in (*EVEN, "noisy_topk")) or kind == "expert_choice")
    if case == "ties" and by_token:
        assert (routing.expert_ids_TK[:, 0] == 0).all()
    if case == "all to one" and by_token:
        assert (routing.expert_ids_TK[:, 0] == routing.expert_ids_TK[0, 0]).all()
    if case == "one expert":
        assert ((routing.expert_ids_TK == 0) | (routing.expert_ids_TK == -1)).all()
    if (
        case == "k equals E"
        and kind not in ("sparsemax", "top_p", "expert_choice")
        and not (kind == "gshard_top2" and training)
    ):
        assert set(load_of(routing).tolist()) == {9}
    if case == "one empty" and not (kind == "base" and training):
        assert load_of(routing)[5] == 0
        assert (routing.probs_TE[:, 5] == 0.0).all()
    if case == "huge" and training and kind in ("base", "quantile", "expert_choice"):
        load_E = load_of(routing).double()
        assert float(load_E.max() / load_E.mean()) < 1.03


@pytest.mark.parametrize("policy", ["drop", "residual", "next_best", "learned"])
@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "huge"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("soft", "base", "expert_choice")])
def test_every_choice_is_kept_rerouted_or_dropped(kind: str, case: str, training: bool, policy: str) -> None:
    capacity = CapacitySpec.parse({"train_factor": 0.8, "eval_factor": 0.8, "overflow": policy})
    found = decided(kind, case, training, capacity)
    free = decided(kind, case, training)
    if found is None or free is None:
        pytest.skip(f"{kind} has no such layer")
    routing, wanted = found[1], free[1]
    over = routing.overflow
    assert over is not None
    # The choice before any expert was full is that of a layer without a capacity.
    assert torch.equal(over.wanted_TK, wanted.expert_ids_TK)
    parts_TK = over.kept_TK.int() + over.rerouted_TK.int() + over.dropped_TK.int()
    assert torch.equal(parts_TK, wanted.chosen_TK.int())
    if not (kind in ("sparsemax", "top_p") or (kind == "gshard_top2" and training)):
        assert int(parts_TK.sum()) == wanted.expert_ids_TK.numel()
    num_tokens = found[0].shape[0]
    num_experts, _ = size_of(kind, case)
    top_k = wanted.expert_ids_TK.shape[1]
    limit = capacity.tokens_an_expert(num_tokens, num_experts, top_k, training=training)
    assert limit is not None
    placed = routing.expert_ids_TK[routing.chosen_TK]
    assert int(torch.bincount(placed, minlength=num_experts).max()) <= limit
    if policy in ("drop", "residual"):
        assert not over.rerouted_TK.any()
