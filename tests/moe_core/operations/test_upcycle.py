"""Upcycling keeps the function at birth, where it says so, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moe_core
from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations import grow
from moe_core.operations.upcycle import keeps_function, plan_upcycle
from moe_core.operations.upcycle import upcycle as upcycle_with
from moe_core.spec import LayoutSpec
from moe_core.spec.operations import GrowSpec, UpcycleSpec
from tests.moe_core.tiny import STD, tiny_llama, tiny_mixtral

IDS = torch.arange(1, 25).view(2, 12)
ALL = (0, 1, 2)
KEPT: dict[str, dict[str, Any]] = {
    "every layer": {},
    "some layers": {"moe_layers": (0, 2)},
    "one expert": {"num_experts": 1, "top_k": 1},
    "top 1": {"top_k": 1},
    "k equals E": {"num_experts": 3, "top_k": 3},
    "shared": {"num_shared_experts": 1},
    "wider": {"moe_intermediate_size": 80},
    "wider with shared": {"moe_intermediate_size": 80, "num_shared_experts": 1, "shared_intermediate_size": 70},
    "narrow beside shared": {"moe_intermediate_size": 16, "num_shared_experts": 1},
    "complement of shared": {
        "moe_intermediate_size": 40, "num_shared_experts": 1, "shared_intermediate_size": 24,
    },
    "overlap with shared": {"moe_intermediate_size": 60, "num_shared_experts": 1, "shared_intermediate_size": 24},
}  # fmt: skip
NOT_KEPT: dict[str, dict[str, Any]] = {
    "narrow": {"moe_intermediate_size": 16, "num_experts": 8, "top_k": 4},
    "narrow with a narrow shared one": {
        "moe_intermediate_size": 16, "num_shared_experts": 1, "shared_intermediate_size": 16,
    },
    "not renormalised": {"norm_topk_prob": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def dense() -> Decoder:
    return random_decoder(tiny_llama(), 6, STD)


def layout(fields: dict[str, Any]) -> LayoutSpec:
    return LayoutSpec.parse({"moe_layers": ALL, "num_experts": 4, "top_k": 2, **fields})


def upcycle(dense: Decoder, laid: LayoutSpec, seed: int, **options: Any) -> Decoder:
    return upcycle_with(dense, UpcycleSpec(layout=laid, seed=seed, **options))[0]


@torch.no_grad()
def distance(one: Decoder, other: Decoder) -> float:
    return float((one(IDS) - other(IDS)).norm() / one(IDS).norm())


@pytest.mark.parametrize("case", KEPT)
def test_outputs_are_kept(dense: Decoder, case: str) -> None:
    laid = layout(KEPT[case])
    assert keeps_function(dense.spec, laid)
    mixture = upcycle(dense, laid, seed=3, router_std=0.5)
    assert mixture.spec == laid.applied_to(dense.spec)
    assert distance(dense, mixture) < 2e-6


@pytest.mark.parametrize("case", NOT_KEPT)
def test_it_does_not_claim_to_keep_what_it_cannot(dense: Decoder, case: str) -> None:
    laid = layout(NOT_KEPT[case])
    assert not keeps_function(dense.spec, laid)
    assert distance(dense, upcycle(dense, laid, seed=3, router_std=0.5)) > 1e-2


def test_every_dense_neuron_finds_a_place(dense: Decoder) -> None:
    plan = plan_upcycle(dense.spec, layout(NOT_KEPT["narrow"]))
    covered = {neuron for share in plan.routed for neuron in range(share.start, share.start + share.count)}
    assert covered == set(range(64))


def test_slices_are_right_on_average_over_a_uniform_router(dense: Decoder) -> None:
    laid = layout({"moe_intermediate_size": 16, "num_experts": 4, "top_k": 4})
    assert distance(dense, upcycle(dense, laid, seed=3, router_std=0.0)) < 2e-6


def test_without_renormalising_a_uniform_router_keeps_the_function(dense: Decoder) -> None:
    laid = layout({"norm_topk_prob": False})
    assert distance(dense, upcycle(dense, laid, seed=3, router_std=0.0)) < 2e-6


def test_equal_seeds_give_equal_models_and_others_do_not(dense: Decoder) -> None:
    one, same, other = (upcycle(dense, layout({}), seed, noise=0.1) for seed in (1, 1, 2))
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_noise_tells_twins_apart_and_leaves_the_shared_expert(dense: Decoder) -> None:
    mixture = upcycle(dense, layout({"num_shared_experts": 1}), 1, noise=0.1)
    quiet = upcycle(dense, layout({"num_shared_experts": 1}), 1)
    for noisy, still in zip(mixture.moe_layers(), quiet.moe_layers(), strict=True):
        assert not torch.equal(noisy.experts.down_EDF[0], noisy.experts.down_EDF[1])
        assert torch.equal(still.experts.down_EDF[0], still.experts.down_EDF[1])
        assert noisy.shared_expert is not None
        assert still.shared_expert is not None
        assert torch.equal(noisy.shared_expert.down_proj.weight, still.shared_expert.down_proj.weight)
    assert 1e-3 < distance(dense, mixture) < 1.0


def test_the_dense_model_is_left_as_it_was_and_shares_no_memory(dense: Decoder) -> None:
    before = [parameter.clone() for parameter in dense.parameters()]
    mixture = upcycle(dense, layout({}), 1)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, dense.parameters(), strict=True))


def test_sixteen_bit_models_upcycle_to_sixteen_bits_with_exact_halves() -> None:
    dense = random_decoder(tiny_llama(), 6, STD, torch.bfloat16)
    mixture = upcycle(dense, layout({"num_shared_experts": 1}), 1)
    moe = next(iter(mixture.moe_layers()))
    assert mixture.dtype == torch.bfloat16
    assert moe.router.weight.dtype == torch.float32
    assert moe.shared_expert is not None
    halves = moe.shared_expert.down_proj.weight + moe.experts.down_EDF[0]
    assert torch.equal(halves, dict(dense.named_parameters())["layers.0.mlp.down_proj.weight"])


def test_a_mixture_cannot_be_upcycled_again() -> None:
    with pytest.raises(SpecError, match="already a mixture"):
        upcycle(random_decoder(tiny_mixtral(), 1), layout({}), 1)


CUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "two slices": (2, {"num_experts": 8, "top_k": 4}),
    "four slices": (4, {"num_experts": 16, "top_k": 8}),
    "one copy": (4, {"num_experts": 4, "top_k": 4}),
    "k equals E": (2, {"num_experts": 6, "top_k": 6}),
}


@pytest.mark.parametrize("case", CUTS)
def test_copies_cut_into_slices_keep_the_function(dense: Decoder, case: str) -> None:
    granularity, fields = CUTS[case]
    laid = layout(fields)
    mixture, report = upcycle_with(dense, UpcycleSpec(layout=laid, granularity=granularity, router_std=0.5))
    assert report == {
        "kind": "upcycle",
        "keeps_function": True,
        "granularity": granularity,
        "scale": granularity,
    }
    assert mixture.spec.moe is not None
    assert mixture.spec.moe.moe_intermediate_size == 64 // granularity
    assert distance(dense, mixture) < 2e-6


def test_slices_whose_gates_are_their_own_do_not_keep_it(dense: Decoder) -> None:
    mixture = upcycle(dense, layout({"num_experts": 8, "top_k": 4}), 3, granularity=2, router_std=0.5)
    with torch.no_grad():
        for moe in mixture.moe_layers():
            moe.router.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(moe.layer))
    assert distance(dense, mixture) > 1e-2


@pytest.mark.parametrize(("copies", "granularity", "top_k"), [(4, 2, 4), (8, 4, 8), (8, 1, 2)])
def test_slices_are_scaled_as_megatron_scales_them(
    dense: Decoder, copies: int, granularity: int, top_k: int
) -> None:
    fields = {"num_experts": copies * granularity, "top_k": top_k}
    spec = UpcycleSpec(
        layout=layout({**fields, "norm_topk_prob": False}), granularity=granularity, router_std=0.0
    )
    mixture, report = upcycle_with(dense, spec)
    # Softmax before top-k: expansion · granularity² / topk; after it: granularity.
    assert report["scale"] == pytest.approx(copies * granularity**2 / top_k)
    assert distance(dense, mixture) < 2e-6
    renormalised = UpcycleSpec(layout=layout(fields), granularity=granularity)
    assert upcycle_with(dense, renormalised)[1]["scale"] == granularity


def test_a_width_that_cannot_be_cut_is_refused(dense: Decoder) -> None:
    with pytest.raises(SpecError, match=r"intermediate_size \(64\) must be divisible by granularity \(3\)"):
        upcycle(dense, layout({"num_experts": 6, "top_k": 3}), 1, granularity=3)
    with pytest.raises(ValueError, match=r"top_k \(3\) must be divisible by granularity \(2\)"):
        UpcycleSpec(layout=layout({"num_experts": 6, "top_k": 3}), granularity=2)


GATES: dict[str, dict[str, Any]] = {
    "after": {"gate": {"kind": "softmax_topk", "order": "after"}, "norm_topk_prob": False},
    "deepseek": {"gate": {"kind": "sigmoid_groups", "routed_scaling_factor": 2.5}},
    "deepseek, free": {
        "gate": {"kind": "sigmoid_groups", "routed_scaling_factor": 2.5},
        "norm_topk_prob": False,
    },
    "sparsemax": {"gate": {"kind": "sparsemax"}},
    "top p": {"gate": {"kind": "top_p"}},
    "switch": {"gate": {"kind": "switch"}, "top_k": 1},
    "hash": {"gate": {"kind": "hash"}},
    "base": {"gate": {"kind": "base"}, "top_k": 1},
    "soft": {"gate": {"kind": "soft"}},
    "expert choice": {"gate": {"kind": "expert_choice"}},
    "full": {"capacity": {"eval_factor": 0.5, "overflow": "drop"}},
}


@pytest.mark.parametrize("case", GATES)
def test_what_it_says_of_a_gate_is_true(dense: Decoder, case: str) -> None:
    laid = layout(GATES[case])
    mixture, report = upcycle_with(dense, UpcycleSpec(layout=laid, router_std=0.5, seed=4))
    assert report["keeps_function"] == keeps_function(dense.spec, laid)
    assert (distance(dense, mixture) < 2e-6) == report["keeps_function"]


@pytest.mark.parametrize("case", ["after", "deepseek", "top p"])
def test_slices_under_another_gate_are_what_it_says(dense: Decoder, case: str) -> None:
    laid = layout({**GATES[case], "num_experts": 8, "top_k": 4})
    mixture, report = upcycle_with(dense, UpcycleSpec(layout=laid, granularity=2, router_std=0.5, seed=4))
    assert (distance(dense, mixture) < 2e-6) == report["keeps_function"]


@pytest.mark.parametrize("case", ["switch", "base", "deepseek, free"])
def test_a_gate_that_treats_all_alike_keeps_the_function(dense: Decoder, case: str) -> None:
    assert distance(dense, upcycle(dense, layout(GATES[case]), 3, router_std=0.0)) < 2e-6


def test_a_cost_of_free_experts_is_kept_where_no_expert_is_free(dense: Decoder, tmp_path: Path) -> None:
    layout = {"moe_layers": [0], "num_experts": 4, "free_expert_cost": 0.5}
    model, _ = upcycle_with(dense, UpcycleSpec.parse({"layout": layout}))
    moe_core.save(model, tmp_path / "m")
    assert moe_core.load(tmp_path / "m").spec == model.spec
    assert grow(model, GrowSpec(num_experts=8))[0].spec.moe.num_experts == 8


def test_slices_are_not_dealt_by_a_table(dense: Decoder) -> None:
    layout = {"moe_layers": [0], "num_experts": 4, "top_k": 2, "gate": {"kind": "hash"}}
    with pytest.raises(SpecError, match="choose granularity 1, or another gate"):
        upcycle_with(dense, UpcycleSpec.parse({"layout": layout, "granularity": 2}))
