"""Growth keeps the function at its moment, by every method and down any chain; copies that compete do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moe_core
from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.context import DomainPrior, RoutingContext
from moe_core.operations import add_expert, grow, release_twins
from moe_core.operations.parts import per_expert, spec_with, tensors_of, with_experts
from moe_core.operations.passes import loads
from moe_core.routers import GateCall, Routing
from moe_core.routers.softmax_topk import PLAIN
from moe_core.routers.twins import hash_of, with_one_of_twins
from moe_core.spec.operations import AddExpertSpec, GrowSpec, ReleaseTwinsSpec
from moe_core.spec.twins import TwinsSpec
from tests.moe_core.operations.models import IDS, distance, gpt_oss, mixture, some_prompts

METHODS = ("twin", "double_k", "split")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "not renormalised": {"norm_topk_prob": False},
    "shared expert": {"num_shared_experts": 1, "shared_intermediate_size": 24},
    "one expert": {"num_experts": 1, "top_k": 1},
    "k equals E": {"num_experts": 2, "top_k": 2},
    "warm": {"temperature": 2.5},
}


def grown(model: Decoder, num_experts: int, method: str) -> Decoder:
    return grow(model, GrowSpec.parse({"num_experts": num_experts, "method": method}))[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_the_function_is_kept(method: str, kind: str) -> None:
    model = mixture(**KINDS[kind])
    assert model.spec.moe is not None
    assert distance(model, grown(model, 2 * model.spec.moe.num_experts, method)) < 4e-6


TOKENS_CHOOSE = ("sparsemax", "top_p", "switch", "gshard_top2", "noisy_topk", "sinkhorn", "quantile", "base")


def biased_mixture(kind: str) -> Decoder:
    """Of the gate, with a balancing bias that counts and every map drawn."""
    top_k = 1 if kind in ("switch", "base") else 2
    model = mixture(gate={"kind": kind, "selection_bias": True}, top_k=top_k, norm_topk_prob=kind != "switch")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in model.moe_layers():
            layer.router.tensors["selection_bias"].normal_(0.0, 0.1, generator=generator)
    return model


@pytest.mark.parametrize("kind", TOKENS_CHOOSE)
def test_twins_keep_it_under_every_gate_whose_tokens_choose(kind: str) -> None:
    model = biased_mixture(kind)
    twins = grown(model, 16, "twin")
    added, _ = add_expert(model, AddExpertSpec(source=1))
    for other in (twins, added, release_twins(twins, ReleaseTwinsSpec(hold=0.0))[0]):
        assert distance(model, other) < 4e-6
    for old, new in zip(model.moe_layers(), twins.moe_layers(), strict=True):
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor, per_expert(old)[name].repeat(4, *[1] * (tensor.ndim - 1))), name
    copies = with_experts(model, [[*range(4), *range(4)]] * 2, spec_with(model.spec, num_experts=8))
    # Where a token has one expert and its weight is a score of its own, nothing is lost to a copy.
    assert (distance(model, copies) > 1e-3) == (kind != "base")


@pytest.mark.parametrize("method", METHODS)
def test_it_is_kept_where_experts_have_biases(method: str) -> None:
    model = gpt_oss()
    assert model.spec.moe is not None and model.spec.moe.expert_bias
    assert distance(model, grown(model, 4 * model.spec.moe.num_experts, method)) < 4e-6


@pytest.mark.parametrize("method", METHODS)
def test_it_is_kept_at_every_step_from_two_to_sixty_four(method: str) -> None:
    first = model = mixture(num_experts=2, top_k=1)
    for num_experts in (4, 8, 16, 32, 64):
        model = grown(model, num_experts, method)
        assert model.spec.moe is not None
        assert model.spec.moe.num_experts == num_experts
        assert model.spec.moe.top_k == (1 if method == "twin" else num_experts // 2)
        assert distance(first, model) < 4e-6


def test_growing_at_once_is_growing_step_by_step() -> None:
    model = mixture(num_experts=2, top_k=2)
    for method in METHODS:
        at_once, in_steps = grown(model, 8, method), grown(grown(model, 4, method), 8, method)
        assert at_once.spec == in_steps.spec
        pairs = zip(at_once.parameters(), in_steps.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_copies_that_compete_for_the_same_places_do_not_keep_it() -> None:
    model = mixture()
    order = [*range(4), *range(4)]
    doubled = with_experts(model, [order] * 2, spec_with(model.spec, num_experts=8))
    assert distance(model, doubled) > 0.1


def test_halves_that_are_not_doubled_on_the_way_back_do_not_keep_it() -> None:
    model = mixture()
    split = grown(model, 8, "split")
    with torch.no_grad():
        for layer in split.moe_layers():
            layer.experts.down_EDF.mul_(0.5)
    assert distance(model, split) > 0.1


def test_old_experts_and_their_gates_stay_bit_for_bit() -> None:
    model = mixture()
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    for method in ("twin", "double_k"):
        for old, new in zip(model.moe_layers(), grown(model, 16, method).moe_layers(), strict=True):
            for name, tensor in per_expert(new).items():
                assert all(torch.equal(tensor[e], per_expert(old)[name][e % 4]) for e in range(16)), name
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())


def test_twins_share_the_tokens_that_their_one_expert_had() -> None:
    model, prompts = mixture(), some_prompts(per_domain=40)
    before, after = loads(model, prompts), loads(grown(model, 16, "twin"), prompts)
    assert torch.equal(after.view(2, 4, 4).sum(1), before)
    # Over a few hundred tokens every twin of a busy expert is seen.
    busy = before.argmax(-1)
    assert all(int(after[layer].view(4, 4)[:, busy[layer]].min()) > 0 for layer in range(2))


def test_a_grown_model_survives_the_disk(tmp_path: Path) -> None:
    model = grown(mixture(), 8, "twin")
    moe_core.save(model, tmp_path / "m")
    back = moe_core.load(tmp_path / "m")
    assert back.spec == model.spec
    with torch.no_grad():
        assert torch.equal(back(IDS), model(IDS))


def weight_of(twins: TwinsSpec) -> torch.Tensor:
    return torch.randn(len(twins.roots), 24, generator=torch.Generator().manual_seed(3))


def seen_TE(twins: TwinsSpec, x_TD: torch.Tensor, bias_TE: torch.Tensor | None = None) -> torch.Tensor:
    call = with_one_of_twins(twins, PLAIN, {"weight": weight_of(twins)}, GateCall(x_TD, 1, bias_TE=bias_TE))
    assert call.bias_TE is not None
    return call.bias_TE > float("-inf")


@pytest.mark.parametrize("hold", [None, 0.0, 0.5, 100.0])
def test_every_token_sees_exactly_one_of_each_set_of_twins(hold: float | None) -> None:
    twins = TwinsSpec(roots=(0, 1, 0, 1, 0, 5), hold=hold)
    x_TD = torch.randn(300, 24, generator=torch.Generator().manual_seed(1))
    seen = seen_TE(twins, x_TD)
    for members in ((0, 2, 4), (1, 3), (5,)):
        assert seen[:, members].sum(-1).tolist() == [1] * 300
    assert seen_TE(twins, x_TD[:0]).shape == (0, 6)


def test_with_hold_0_the_gate_chooses_and_with_much_of_it_the_hash_does() -> None:
    x_TD = torch.randn(300, 24, generator=torch.Generator().manual_seed(1))
    released = TwinsSpec(roots=(0, 1, 0, 1), hold=0.0)
    logits_TE = x_TD @ weight_of(released).t()
    free = seen_TE(released, x_TD)
    assert torch.equal(free[:, 0], logits_TE[:, 0] > logits_TE[:, 2])
    hashed = seen_TE(TwinsSpec(roots=(0, 1, 0, 1)), x_TD)
    assert torch.equal(seen_TE(TwinsSpec(roots=(0, 1, 0, 1), hold=100.0), x_TD), hashed)
    # The hash is neither constant nor the same for both sets.
    assert 90 < int(hashed[:, 0].sum()) < 210
    assert 60 < int((hashed[:, 0] == hashed[:, 1]).sum()) < 240


def test_a_hash_hangs_on_the_token_alone() -> None:
    x_TD = torch.randn(50, 24, generator=torch.Generator().manual_seed(1))
    assert torch.equal(hash_of(x_TD)[7:8], hash_of(x_TD[7:8]))
    twins = TwinsSpec(roots=(0, 0))
    assert torch.equal(seen_TE(twins, x_TD)[7:8], seen_TE(twins, x_TD[7:8]))


def test_a_twin_that_a_domain_masks_gives_way_to_the_other() -> None:
    x_TD = torch.randn(300, 24, generator=torch.Generator().manual_seed(1))
    bias_TE = torch.zeros(300, 4)
    bias_TE[:, 0] = float("-inf")
    assert seen_TE(TwinsSpec(roots=(0, 1, 0, 1)), x_TD, bias_TE)[:, [0, 2]].tolist() == [[False, True]] * 300


def test_a_domain_prior_still_pulls() -> None:
    model = grown(mixture(), 8, "twin")
    bias_1LE = torch.zeros(1, 2, 8)
    bias_1LE[:, :, [3, 7]] = 1e4
    ids: list[torch.Tensor] = []

    def observe(layer: int, routing: Routing) -> None:
        ids.append(routing.expert_ids_TK)

    domain_T = torch.zeros(24, dtype=torch.long)
    with torch.no_grad():
        model(IDS, RoutingContext(domain_T=domain_T, prior=DomainPrior(bias_1LE, 2), observe=observe))
    assert {int(first) % 4 for first in torch.cat(ids)[:, 0]} == {3}


def test_an_added_expert_keeps_the_function_and_all_others() -> None:
    model = mixture()
    added, report = add_expert(model, AddExpertSpec(source=2))
    assert report["expert"] == 4
    assert distance(model, added) < 4e-6
    for old, new in zip(model.moe_layers(), added.moe_layers(), strict=True):
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor[:4], per_expert(old)[name])
            assert torch.equal(tensor[4], per_expert(old)[name][2])
    again, _ = add_expert(added, AddExpertSpec(source=1))
    assert again.spec.moe is not None
    assert again.spec.moe.twins == TwinsSpec(roots=(0, 1, 2, 3, 2, 1))
    assert distance(model, again) < 4e-6


def test_twins_are_released_by_degrees_and_the_same_at_every_degree_while_they_are_equal() -> None:
    model = mixture()
    twins = grown(model, 8, "twin")
    for hold in (4.0, 1.0, 0.0):
        assert distance(model, release_twins(twins, ReleaseTwinsSpec(hold=hold))[0]) < 4e-6
    assert (
        distance(model, add_expert(release_twins(twins, ReleaseTwinsSpec())[0], AddExpertSpec(source=4))[0])
        < 4e-6
    )


def test_what_cannot_be_kept_is_refused() -> None:
    model = mixture()
    with pytest.raises(SpecError, match="6.*must be 4 times a power of two"):
        grow(model, GrowSpec(num_experts=6))
    with pytest.raises(SpecError, match="must be divisible by 64"):
        grow(mixture(top_k=1), GrowSpec(num_experts=256, method="split"))
    twins = grown(model, 8, "twin")
    with pytest.raises(SpecError, match="other twins than before"):
        grow(twins, GrowSpec(num_experts=16, method="split"))
    with pytest.raises(SpecError, match="has twins already"):
        add_expert(twins, AddExpertSpec(source=0))
    for method in ("split", "double_k"):
        with pytest.raises(
            SpecError, match="'sparsemax' would not choose together .* method 'twin'"
        ) as refused:
            grow(mixture(gate={"kind": "sparsemax"}), GrowSpec(num_experts=8, method=method))
        assert [place for place, _ in refused.value.faults] == [("method",)]
    with pytest.raises(SpecError, match="under gate 'expert_choice' experts pick their tokens"):
        grow(mixture(gate={"kind": "expert_choice"}), GrowSpec(num_experts=8))
    crowded = mixture(capacity={"train_factor": 1.0, "eval_factor": 1.0})
    with pytest.raises(SpecError, match="without capacity") as refused:
        grow(crowded, GrowSpec(num_experts=8))
    assert "gate 'softmax_topk' does not" not in str(refused.value)
    with pytest.raises(SpecError, match="no twins to release"):
        release_twins(model, ReleaseTwinsSpec())
    with pytest.raises(SpecError, match="expert 9 is outside"):
        add_expert(model, AddExpertSpec(source=9))
    with pytest.raises(ValueError, match="lowest of its twins"):
        TwinsSpec(roots=(1, 1))
    with pytest.raises(SpecError, match="name 2 experts; num_experts is 4"):
        spec_with(model.spec, twins={"roots": (0, 0)})


@pytest.mark.parametrize("method", ["double_k", "split", "twin"])
@pytest.mark.parametrize(
    "gate",
    [
        {"kind": "softmax_topk", "selection_bias": True},
        {"kind": "sigmoid_groups", "scores": "softmax"},
        {"kind": "sigmoid_groups", "scores": "softmax", "num_groups": 2, "group_score": "best"},
        {"kind": "sigmoid_groups"},
    ],
    ids=["softmax", "softmax scores", "softmax scores in groups", "sigmoid"],
)
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_a_bias_that_picks_experts_weighs_as_much_after_growth(gate, method: str, std: float) -> None:
    model = mixture(gate=gate)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.moe_layers():
            layer.router.tensors["selection_bias"].normal_(0.0, std, generator=generator)
    grown, report = grow(model, GrowSpec(num_experts=16, method=method))
    assert report["keeps_function"] and distance(model, grown) < 4e-6
