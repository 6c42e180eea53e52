"""Autocast narrows the model around a gate; the gate decides as if it were not there, in whatever precision it is asked."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from moe_core.model import RoutingContext
from moe_core.model.init import random_decoder
from moe_core.routers import Routing, route
from moe_core.spec import CapacitySpec, LayoutSpec
from tests.moe_core.routers.every_gate import KINDS, WIDTH, asked, gate_of, mixture, tensors_of, weighed
from tests.moe_core.tiny import STD, tiny_llama


def narrowed() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def assert_same(found: Routing, plain: Routing) -> None:
    for name in (field.name for field in fields(Routing)):
        one, other = getattr(found, name), getattr(plain, name)
        if isinstance(other, Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other), name
    for one, other in zip(weighed(found), weighed(plain), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


def test_route_is_the_same_under_autocast() -> None:
    torch.manual_seed(0)
    hidden_TD, weight_ED = torch.randn(512, 64), 0.2 * torch.randn(64, 64)
    plain = route(hidden_TD, weight_ED, top_k=8)
    with narrowed():
        assert_same(route(hidden_TD, weight_ED, top_k=8), plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
@pytest.mark.parametrize("overflow", [None, "learned"])
def test_every_gate_and_its_gradients_are_the_same_under_autocast(
    kind: str, training: bool, overflow: str | None
) -> None:
    moe = mixture(kind, 8, 2)
    assert moe is not None
    if overflow is not None and kind not in ("soft", "expert_choice", "base"):
        capacity = CapacitySpec.parse({"train_factor": 0.7, "eval_factor": 0.7, "overflow": overflow})
        moe = moe.model_copy(update={"capacity": capacity})
    tensors = tensors_of(moe, WIDTH)
    x_TD = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(3)).requires_grad_()
    learning = [x_TD, *(tensor for tensor in tensors.values() if tensor.requires_grad)]

    def gradients_of(found: Routing) -> tuple[Tensor, ...]:
        objective = torch.stack([value.square().sum() for value in weighed(found)]).sum()
        return torch.autograd.grad(objective, learning, allow_unused=True, materialize_grads=True)

    plain = asked(moe, tensors, x_TD, training)
    with narrowed():
        found = asked(moe, tensors, x_TD, training)
    assert_same(found, plain)
    # Backward outside the context, as torch wants it.
    for one, other in zip(gradients_of(found), gradients_of(plain), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True], ids=["serving", "training"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_gate_takes_hidden_states_of_any_precision(
    kind: str, training: bool, dtype: torch.dtype
) -> None:
    moe = mixture(kind, 8, 2)
    assert moe is not None
    tensors = tensors_of(moe, WIDTH)
    x_TD = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(3)).to(dtype)
    found, plain = (asked(moe, tensors, x, training) for x in (x_TD, x_TD.float()))
    for one, other in zip(weighed(found), weighed(plain), strict=True):
        assert one.dtype in (torch.float32, torch.float64)
        torch.testing.assert_close(one.float(), other, rtol=1e-4, atol=1e-6)


def test_slots_are_mixed_in_float32_under_autocast() -> None:
    moe = mixture("soft", 4, 2)
    assert moe is not None
    x_TD = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(3))
    mix = asked(moe, tensors_of(moe, WIDTH), x_TD, False).mix
    assert mix is not None
    slots_RD = mix.slots_of(x_TD)
    tokens_TD = mix.tokens_of(slots_RD)
    with narrowed():
        assert torch.equal(mix.slots_of(x_TD), slots_RD)
        assert torch.equal(mix.tokens_of(slots_RD), tokens_TD)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_learns_under_autocast_and_its_gates_stay_float32(kind: str) -> None:
    moe = mixture(kind, 4, 2)
    assert moe is not None
    layout = {"moe_layers": (0, 2), "num_experts": 4, "top_k": moe.top_k, "norm_topk_prob": False}
    spec = LayoutSpec.parse({**layout, "gate": gate_of(kind, 4)}).applied_to(tiny_llama())
    model = random_decoder(spec, 3, STD)
    seen: dict[int, Routing] = {}
    ids = torch.arange(24).view(2, 12)
    context = RoutingContext(observe=seen.__setitem__, training=True, rng=torch.Generator().manual_seed(0))
    with narrowed():
        logits = model(ids, context)
        assert logits.dtype == torch.bfloat16
    torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten()).backward()
    for routing in seen.values():
        assert all(value.dtype == torch.float32 for value in weighed(routing))
        assert routing.logits_TE.dtype == torch.float32
    for layer in model.moe_layers():
        for name, tensor in layer.router.tensors.items():
            assert not tensor.requires_grad or name == "overflow_weight" or tensor.grad is not None, name
