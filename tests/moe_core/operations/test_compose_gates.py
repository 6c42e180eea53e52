"""Mixtures with gates of other kinds are composed too, and what is told of a gate is what the gate that runs does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.context import DomainPrior, RoutingContext
from moe_core.model.layers import MoeMlp
from moe_core.operations import compose, compose_gates, grow, release_twins
from moe_core.operations.compose_gates import Made, routed, shifts_cancel, wanted
from moe_core.operations.gate_fit import SLACK, Labelled, cautious_temperature
from moe_core.operations.passes import listening
from moe_core.routers import Routing
from moe_core.spec.foresee import foreseen
from moe_core.spec.operations import ComposeSpec, GrowSpec, ReleaseTwinsSpec
from tests.moe_core.operations.models import IDS, mixture, mixture_spec, some_prompts

SPEC = ComposeSpec(domains=("law", "code"))
PROMPTS = some_prompts(per_domain=48, high=41)
GATES: dict[str, dict[str, Any]] = {
    "plain": {"kind": "softmax_topk"},
    "balanced": {"kind": "softmax_topk", "selection_bias": True},
    "gpt-oss": {"kind": "softmax_topk", "order": "after", "logit_bias": True},
    "balanced afterwards": {"kind": "softmax_topk", "order": "after", "selection_bias": True},
    "sigmoid": {"kind": "sigmoid_groups", "selection_bias": False},
    "DeepSeek-V3": {"kind": "sigmoid_groups", "num_groups": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    "DeepSeek-V2": {
        "kind": "sigmoid_groups", "num_groups": 4, "topk_group": 2, "scores": "softmax", "group_score": "best",
        "selection_bias": False,
    },
    "square roots": {"kind": "sigmoid_groups", "num_groups": 2, "topk_group": 1, "scores": "sqrtsoftplus"},
    "sparsemax": {"kind": "sparsemax"},
    "top_p": {"kind": "top_p"},
    "switch": {"kind": "switch"},
    "gshard_top2": {"kind": "gshard_top2"},
    "noisy_topk": {"kind": "noisy_topk"},
    "sinkhorn": {"kind": "sinkhorn"},
    "quantile": {"kind": "quantile"},
    "base": {"kind": "base"},
}  # fmt: skip
ONE_EXPERT = ("switch", "base")


def kin(gate: str, apart: float = 0.0, **moe: Any) -> list[Decoder]:
    """Mixtures of one trunk, with experts, gates and biases of their own; the second one's biases are `apart` higher."""
    plain = {"num_experts": 8, "top_k": 1 if gate in ONE_EXPERT else 2, "gate": GATES[gate], **moe}
    models = [mixture(1, **plain) for _ in range(2)]
    for place, model in enumerate(models):
        generator = torch.Generator().manual_seed(place)
        with torch.no_grad():
            for layer in model.moe_layers():
                layer.experts.down_EDF.normal_(0.0, 0.2, generator=generator)
                layer.router.weight.normal_(0.0, 0.2, generator=generator)
                for name in {"bias", "selection_bias"} & layer.router.tensors.keys():
                    layer.router.tensors[name].normal_(0.0, 0.1, generator=generator)
                if "selection_bias" in layer.router.tensors:
                    layer.router.tensors["selection_bias"].add_(apart * place)
    return models


def held_out_at(model: Decoder) -> dict[int, tuple[MoeMlp, torch.Tensor, torch.Tensor]]:
    """Layer → itself, the inputs of its router of held-out tokens, and their domains."""
    turn_N = torch.arange(48).repeat(2) % 4
    held_T = PROMPTS.real_T & (turn_N == 3).repeat_interleave(PROMPTS.ids_NS.shape[1])
    seen: dict[int, tuple[MoeMlp, torch.Tensor, torch.Tensor]] = {}

    def note(layer: MoeMlp, x_TD: torch.Tensor) -> None:
        seen[layer.layer] = (layer, x_TD[held_T], PROMPTS.domain_T[held_T])

    with listening(model, note):
        model(PROMPTS.ids_NS)
    return seen


def of_each_domain(figure_N: torch.Tensor, domain_N: torch.Tensor) -> float:
    return float(torch.stack([figure_N[domain_N == c].double().mean() for c in (0, 1)]).mean())


@torch.no_grad()
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_what_is_told_is_what_the_layer_of_the_composed_model_does(gate: str, norm: bool) -> None:
    models = kin(gate, norm_topk_prob=norm, temperature=1.5)
    model, report = compose(models, SPEC, PROMPTS)
    seen = held_out_at(model)
    for told in report["layers"]:
        layer, x_ND, domain_N = seen[told["layer"]]
        routing: Routing = layer.router(x_ND, RoutingContext(), layer.moe_index)
        given_NE = torch.zeros_like(routing.probs_TE)
        given_NE.scatter_add_(1, routing.expert_ids_TK.clamp(min=0), routing.weights_TK)
        given_NC = given_NE.unflatten(-1, (2, 8)).sum(-1)
        # Whether the weight of two models is the same to the last bit hangs on rounding.
        clear_N = (given_NC[:, 0] - given_NC[:, 1]).abs() > 1e-6
        right_N = torch.where(clear_N, (given_NC.argmax(-1) == domain_N).double(), told["token_accuracy"])
        assert told["token_accuracy"] == pytest.approx(of_each_domain(right_N, domain_N), abs=0.02)
        assert told["token_accuracy"] > 0.65
        kept_N = torch.zeros(len(domain_N))
        for place, own in enumerate(models):
            mine_N = domain_N == place
            alone: Routing = dict(enumerate(own.moe_layers()))[layer.moe_index].router(
                x_ND[mine_N], RoutingContext(), layer.moe_index
            )
            ids_NK, weight_NE = alone.expert_ids_TK + 8 * place, given_NE[mine_N]
            chosen_NK = (weight_NE.gather(-1, ids_NK.clamp(min=0)) > 0) & alone.chosen_TK
            kept_N[mine_N] = chosen_NK.sum(-1) / (alone.chosen_TK & (alone.weights_TK > 0)).sum(-1)
        assert told["own_choices"] == pytest.approx(of_each_domain(kept_N, domain_N), abs=0.02)
        assert told["kl"] < told["kl_before"]


@torch.no_grad()
@pytest.mark.parametrize("gate", ["balanced", "DeepSeek-V3", "quantile", "sparsemax"])
def test_the_divergence_is_that_of_the_weights_from_the_models_own_gates(gate: str) -> None:
    models = kin(gate)
    model, report = compose(models, SPEC, PROMPTS)
    for told, (layer, x_ND, domain_N) in zip(report["layers"], held_out_at(model).values(), strict=True):
        made: Routing = layer.router(x_ND, RoutingContext(), layer.moe_index)
        apart_N = torch.zeros(len(domain_N), dtype=torch.float64)
        for row, domain in enumerate(domain_N.tolist()):
            own = list(models[domain].moe_layers())[layer.moe_index].router
            alone: Routing = own(x_ND[row : row + 1], RoutingContext(), layer.moe_index)
            total = float(alone.weights_TK.sum())
            for expert, weight in zip(
                alone.expert_ids_TK[0].tolist(), alone.weights_TK[0].tolist(), strict=True
            ):
                if weight <= 0.0:
                    continue
                at = made.expert_ids_TK[row] == expert + 8 * domain
                share = float(made.weights_TK[row][at].sum() / made.weights_TK[row].sum())
                share = 0.98 * share + 0.01 * float(made.probs_TE[row, expert + 8 * domain]) + 0.01 / 16
                apart_N[row] += weight / total * torch.log(torch.tensor(weight / total / share))
        assert told["kl"] == pytest.approx(of_each_domain(apart_N, domain_N), rel=1e-3)


@pytest.mark.parametrize(
    "gate", ["balanced", "balanced afterwards", "DeepSeek-V3", "square roots", "quantile"]
)
def test_what_all_biases_of_a_model_have_in_common_decides_nothing_between_models(
    gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = kin(gate, apart=3.0)
    model, report = compose(models, SPEC, PROMPTS)
    assert all(told["token_accuracy"] > 0.65 for told in report["layers"])
    for place, source in enumerate(models):
        for ours, theirs in zip(model.moe_layers(), source.moe_layers(), strict=True):
            own = slice(8 * place, 8 * place + 8)
            moved = ours.router.tensors["selection_bias"][own] - theirs.router.tensors["selection_bias"]
            assert torch.allclose(moved, moved[:1].expand_as(moved), atol=1e-6)
    # Left where they were, tokens go to the one model, and the report says so.
    monkeypatch.setattr(compose_gates, "level_biases", lambda *_: None)
    left = compose(models, SPEC, PROMPTS)[1]["layers"]
    assert sum(told["own_choices"] for told in left) < 0.9 * sum(
        told["own_choices"] for told in report["layers"]
    )
    if gate != "square roots":
        # Their scores have no end, so that sharp rows get over any bias.
        assert all(told["token_accuracy"] <= 0.55 for told in left)


@torch.no_grad()
@pytest.mark.parametrize("gate", [name for name in GATES if name not in ("sigmoid", "base")])
def test_a_model_that_a_mask_leaves_alone_has_its_function_where_shifts_cancel(gate: str) -> None:
    models = kin(gate, apart=0.5)
    model, _ = compose(models, SPEC, PROMPTS)
    assert model.spec.moe is not None
    for place, source in enumerate(models):
        mask_1LE = torch.full((1, 2, 16), float("-inf"))
        mask_1LE[:, :, 8 * place : 8 * place + 8] = 0.0
        context = RoutingContext(domain_T=torch.zeros(24, dtype=torch.long), prior=DomainPrior(mask_1LE, 2))
        theirs_BSV = source(IDS)
        apart = float((model(IDS, context) - theirs_BSV).norm() / theirs_BSV.norm())
        assert (apart < 1e-5) is shifts_cancel(model.spec.moe)


@torch.no_grad()
def from_their_models(model: Decoder, models: list[Decoder]) -> float:
    """How far the answers to the prompts of each domain are from those of its own model."""
    apart = []
    for place, source in enumerate(models):
        mine = PROMPTS.take(torch.nonzero(PROMPTS.domain_N == place)[:, 0].tolist())
        ours, theirs = (one(mine.ids_NS)[mine.real_NS] for one in (model, source))
        apart.append(float((ours - theirs).norm() / theirs.norm()))
    return sum(apart) / 2


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("fit", ["ridge", "mean"])
def test_scores_of_single_experts_stay_nearer_to_their_models_where_others_are_pushed_down(
    fit: str, norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised to one end of a sigmoid, experts of one model would be told apart no more."""
    models, spec = (
        kin("DeepSeek-V3", norm_topk_prob=norm),
        ComposeSpec.parse({**SPEC.model_dump(), "gate": fit}),
    )
    grounded, _ = compose(models, spec, PROMPTS)
    monkeypatch.setattr(compose_gates, "shifts_cancel", lambda _moe: True)
    raised, _ = compose(models, spec, PROMPTS)
    assert from_their_models(grounded, models) < from_their_models(raised, models) - 0.02


def test_groups_stay_those_of_one_model_and_as_many_are_chosen() -> None:
    model, _ = compose(kin("DeepSeek-V3"), SPEC, PROMPTS)
    moe = model.spec.moe
    assert moe is not None and moe.gate.kind == "sigmoid_groups"
    assert (moe.num_experts, moe.gate.num_groups, moe.gate.topk_group) == (16, 8, 2)
    assert (moe.top_k, moe.gate.routed_scaling_factor) == (2, 2.5)


@torch.no_grad()
@pytest.mark.parametrize("gate", ["balanced", "DeepSeek-V3"])
def test_the_temperature_is_the_highest_of_those_that_are_as_good(gate: str) -> None:
    models = kin(gate)
    routers = [next(iter(model.moe_layers())).router for model in models]
    generator = torch.Generator().manual_seed(3)
    domain_N = torch.arange(200) % 2
    x_ND = torch.randn(200, 48, generator=generator)
    x_ND[:, 0] += 2.0 * domain_N - 1.0
    seen, rows_CD = Labelled(x_ND, domain_N, torch.arange(200)), torch.zeros(2, 48, dtype=torch.float64)
    rows_CD[:, 0] = torch.tensor([-1.0, 1.0])
    joined = next(iter(compose(models, SPEC, PROMPTS)[0].moe_layers())).router
    joined.weight.copy_(torch.cat([router.weight for router in routers]))
    made = Made.of(joined, rows_CD, routers, seen)
    found = cautious_temperature(made.cost)
    tried = {t: made.cost(1.0 / t) for t in (2.0**power for power in range(-10, 11))}
    assert made.cost(1.0 / found) <= min(tried.values()) + SLACK + 1e-9
    assert all(cost > min(tried.values()) + SLACK for t, cost in tried.items() if t > 1.3 * found)
    assert torch.allclose(wanted(routers, seen).sum(-1), torch.ones(200, dtype=torch.float64))
    assert torch.allclose(routed(made.routing(1.0)).sum(-1), torch.ones(200, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["expert_choice", "hash", "soft", "hierarchical"])
def test_a_gate_to_which_no_row_can_be_added_is_refused_before(kind: str) -> None:
    models = [mixture(seed, gate={"kind": kind}) for seed in (1, 2)]
    with pytest.raises(
        SpecError, match=f"gate '{kind}' does not score every expert for each token alone.*compose"
    ):
        compose(models, SPEC, PROMPTS)
    with pytest.raises(SpecError, match=f"gate '{kind}' does not score"):
        foreseen(mixture_spec(gate={"kind": kind}), SPEC)


@torch.no_grad()
def test_twins_are_composed_once_the_gate_alone_chooses_between_them() -> None:
    twins = [grow(model, GrowSpec(num_experts=16))[0] for model in kin("balanced")]
    with pytest.raises(SpecError, match="a hash has a say between twins.*operation release_twins"):
        compose(twins, SPEC, PROMPTS)
    released = [release_twins(model, ReleaseTwinsSpec())[0] for model in twins]
    model, report = compose(released, SPEC, PROMPTS)
    assert model.spec.moe is not None and model.spec.moe.twins is not None
    assert model.spec.moe.twins.roots == (*range(8), *range(8), *range(16, 24), *range(16, 24))
    assert all(told["token_accuracy"] > 0.65 for told in report["layers"])
    for place, source in enumerate(released):
        mask_1LE = torch.full((1, 2, 32), float("-inf"))
        mask_1LE[:, :, 16 * place : 16 * place + 16] = 0.0
        context = RoutingContext(domain_T=torch.zeros(24, dtype=torch.long), prior=DomainPrior(mask_1LE, 2))
        theirs_BSV = source(IDS)
        assert float((model(IDS, context) - theirs_BSV).norm() / theirs_BSV.norm()) < 1e-5
