"""AdamW on float32 masters, against torch's own, and to the last bit over a restore."""

from __future__ import annotations

import pytest
import torch

from moe_core.errors import CheckpointError, NonFiniteLoss
from moe_core.kernels.cpu import optimising
from moe_core.operations.learning import FINAL_SHARE, learning_rate_at
from moe_core.training.optimiser import MasterAdamW


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"a": torch.ones(3, 4, dtype=dtype), "b": torch.zeros(5, dtype=dtype)}


def test_it_is_adamw() -> None:
    mine, theirs = weights(), [w.requires_grad_() for w in weights().values()]
    optimiser = MasterAdamW(mine, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(5):
        optimiser.step(gradients(step), 0.01, clip_norm=1e9, clip_each=False)
        for weight, gradient in zip(theirs, gradients(step), strict=True):
            weight.grad = gradient
        reference.step()
    torch.testing.assert_close(list(mine.values()), [w.detach() for w in theirs])


def test_small_steps_add_up_although_the_model_is_in_bfloat16() -> None:
    # A step of 1e-4 is less than half a unit in the last place of 1.0: without masters it would never move.
    model = weights(torch.bfloat16)
    optimiser = MasterAdamW(model)
    for _ in range(100):
        optimiser.step([torch.ones(3, 4), torch.ones(5)], 1e-4, clip_norm=1e9, clip_each=False)
    assert float(model["a"][0, 0]) == pytest.approx(0.99, abs=0.004)


def test_clipping_each_leaves_a_quiet_weight_alone() -> None:
    loud = [torch.full((3, 4), 100.0), torch.full((5,), 0.1)]
    each, together = MasterAdamW(weights()), MasterAdamW(weights())
    seen: dict[str, list[torch.Tensor]] = {}
    for name, optimiser, clip_each in (("each", each, True), ("together", together, False)):
        optimiser.step([g.clone() for g in loud], 1.0, clip_norm=1.0, clip_each=clip_each)
        seen[name] = [optimiser.tensors()[f"{w}.exp_avg"] * 10 for w in ("a", "b")]
    assert float(seen["each"][0].norm()) == pytest.approx(1.0, rel=1e-4)
    assert float(seen["each"][1].norm()) == pytest.approx(0.1 * 5**0.5, rel=1e-4)
    assert float(seen["together"][1].norm()) < 0.001


def test_it_goes_on_to_the_last_bit_after_a_restore() -> None:
    straight, first, second = weights(torch.bfloat16), weights(torch.bfloat16), weights(torch.bfloat16)
    whole, before = MasterAdamW(straight), MasterAdamW(first)
    for step in range(6):
        whole.step(gradients(step), 0.01, 1.0, clip_each=True)
        if step < 3:
            before.step(gradients(step), 0.01, 1.0, clip_each=True)
    after = MasterAdamW(second)
    after.restore({name: tensor.clone() for name, tensor in before.tensors().items()})
    for step in range(3, 6):
        after.step(gradients(step), 0.01, 1.0, clip_each=True)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, after.tensors()[name]), name
    assert all(torch.equal(straight[name], second[name]) for name in straight)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = weights()
    optimiser = MasterAdamW(model)
    bad = gradients(0)
    bad[1][2] = float("nan")
    with pytest.raises(NonFiniteLoss, match="gradient of b"):
        optimiser.step(bad, 0.1, 1.0, clip_each=True)
    assert torch.equal(model["a"], torch.ones(3, 4))


def test_a_checkpoint_of_another_layout_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds no a"):
        MasterAdamW(weights()).restore({})


def test_the_rate_rises_to_its_peak_and_falls_to_a_tenth() -> None:
    rates = [learning_rate_at(step, 50, 2.0) for step in range(50)]
    assert max(rates) == pytest.approx(2.0)
    assert rates[0] < rates[3]
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(2.0 * FINAL_SHARE, rel=0.05)
    assert learning_rate_at(0, 1, 2.0) == pytest.approx(2.0)


@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("clip_norm", [1e9, 0.5])
def test_blocks_of_16_bit_gradients_are_what_the_whole_in_float32_is(
    clip_norm: float, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled:
        monkeypatch.setattr(optimising, "supports", lambda *tensors: False)
    shape = (3, 700, 257)
    generator = torch.Generator().manual_seed(5)
    gradient = torch.randn(shape, generator=generator).bfloat16()
    ours, whole = torch.ones(shape, dtype=torch.bfloat16), torch.ones(shape, requires_grad=True)
    optimiser = MasterAdamW({"a": ours}, weight_decay=0.1)
    reference = torch.optim.AdamW([whole], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(3):
        norm = optimiser.step([gradient], 0.01, clip_norm, clip_each=False)
        whole.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_([whole], clip_norm)
        reference.step()
    assert norm == pytest.approx(float(gradient.double().norm()), rel=1e-5)
    torch.testing.assert_close(optimiser.masters["a"], whole.detach())
    assert torch.equal(ours, optimiser.masters["a"].bfloat16())
