"""A model whose layers hold experts of several kinds: laid out, counted, saved, taught, and its loads evened by work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

import moe_core
from moe_core.errors import SpecError
from moe_core.experts import MixedExperts
from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations import quantise, upcycle
from moe_core.operations.grow import grow
from moe_core.operations.metrics import work_violation
from moe_core.routers import GateCall, Routing, decide
from moe_core.routers.losses import balance_loss
from moe_core.spec import LayoutSpec, ModelSpec, MoeSpec, cost_of
from moe_core.spec.expert_kinds import ExpertKinds, balance_costs
from moe_core.spec.operations import GrowSpec, QuantiseSpec, UpcycleSpec
from moe_core.training import run_job
from moe_core.training.recipes import tune_router
from moe_core.training.tally import costs_of
from tests.moe_core.tiny import STD, tiny_llama
from tests.moe_core.training.world import RecordingIO, make_world, tune_spec

KINDS: list[dict[str, Any]] = [
    {"kind": "swiglu", "width": 32},
    {"kind": "swiglu", "width": 12, "activation": "gelu"},
    {"kind": "mlp", "width": 20},
    {"kind": "identity"},
    {"kind": "zero"},
    {"kind": "constant"},
]
IDS = torch.randint(0, 97, (2, 15), generator=torch.Generator().manual_seed(2))


def layout(kinds: list[dict[str, Any]] = KINDS, **changes: Any) -> LayoutSpec:
    fields = {"moe_layers": [0, 2], "num_experts": len(kinds), "top_k": 2, "expert_kinds": kinds}
    return LayoutSpec.parse({**fields, **changes})


def mixed_model() -> Decoder:
    return random_decoder(layout().applied_to(tiny_llama()), seed=5, std=STD)


@torch.no_grad()
def test_it_is_saved_and_loaded_to_the_last_bit(tmp_path: Path) -> None:
    model = mixed_model()
    moe_core.save(model, tmp_path / "model")
    again = moe_core.load(tmp_path / "model")
    assert again.spec == model.spec
    assert again.spec.family == "turnout_moe"
    assert torch.equal(again(IDS), model(IDS))
    assert again.generate([1, 5, 9], 12) == model.generate([1, 5, 9], 12)
    names = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    mine = sorted(name.split("experts.")[1] for name in names if "layers.0" in name and ".experts." in name)
    assert mine == [
        "0.w1.weight", "0.w2.weight", "0.w3.weight", "1.w1.weight", "1.w2.weight", "1.w3.weight", "2.w2.weight",
        "2.w3.weight", "5.constant", "5.mix.weight",
    ]  # fmt: skip


@torch.no_grad()
def test_generation_and_one_pass_agree() -> None:
    model = mixed_model()
    text = [1, 5, 9, *model.generate([1, 5, 9], 10)]
    best_S = model(torch.tensor([text]))[0].argmax(-1).tolist()
    assert best_S[2 : len(text) - 1] == text[3:]


def test_its_cost_is_that_of_what_is_built() -> None:
    model = mixed_model()
    cost = cost_of(model.spec)
    assert cost.total == sum(parameter.numel() for parameter in model.parameters())
    experts = [moe.experts for moe in model.moe_layers()]
    assert all(isinstance(layer, MixedExperts) for layer in experts)
    assert cost.params.experts == sum(layer.weights_N.numel() for layer in experts)
    # The two dearest of a layer are the swiglu of 32 and the mlp of 20.
    width = model.spec.hidden_size
    idle = cost.params.experts - 2 * (3 * 32 + 2 * 20) * width
    assert cost.total - cost.active_per_token == idle
    # Such experts are never packed.
    assert cost.bytes["int4"] == cost.bytes["bf16"]


def test_a_layout_names_kinds_that_do_not_fit() -> None:
    for changes, complaint in (
        ({"num_experts": 5}, "expert_kinds names 6 experts; num_experts is 5"),
        ({"moe_intermediate_size": 32}, "expert_kinds has the widths; leave moe_intermediate_size out"),
        ({"expert_kinds": [{"kind": "zero"}] * 6}, "must hold at least one swiglu or mlp expert"),
        ({"expert_kinds": [{"kind": "swiglu", "width": 0}] * 6}, r"0\.swiglu\.width: this must be at least 1, and is 0"),
        ({"expert_kinds": [{"kind": "warp"}] * 6}, "warp|does not match"),
    ):
        with pytest.raises(SpecError, match=complaint):
            layout(**changes)
    with pytest.raises(SpecError, match="must be the width of the widest"):
        fields = layout().applied_to(tiny_llama()).moe
        assert fields is not None
        MoeSpec.parse({**fields.model_dump(), "moe_intermediate_size": 31})
    schema = TypeAdapter(ExpertKinds).json_schema()
    assert set(schema["items"]["discriminator"]["mapping"]) == {
        "swiglu", "mlp", "identity", "zero", "constant",
    }  # fmt: skip


def test_operations_for_like_experts_refuse_it() -> None:
    model = mixed_model()
    with pytest.raises(SpecError, match="different kinds and widths"):
        grow(model, GrowSpec(num_experts=12))
    with pytest.raises(SpecError, match="different kinds and widths"):
        quantise(model, QuantiseSpec())


@torch.no_grad()
def test_upcycling_keeps_the_function_where_every_expert_holds_the_whole() -> None:
    dense = random_decoder(tiny_llama(), seed=6, std=STD)
    whole = [{"kind": "swiglu", "width": 64}, {"kind": "swiglu", "width": 80}, {"kind": "swiglu", "width": 64}]
    model, report = upcycle(dense, UpcycleSpec(layout=layout(whole)))
    assert report["keeps_function"]
    assert torch.allclose(model(IDS), dense(IDS), rtol=1e-4, atol=1e-5)
    other, report = upcycle(dense, UpcycleSpec(layout=layout()))
    assert not report["keeps_function"]
    assert not torch.allclose(other(IDS), dense(IDS), atol=1e-2)
    first = other.layers[0].mlp.experts  # type: ignore[union-attr]
    assert isinstance(first, MixedExperts)
    gate, up = dense.layers[0].mlp.gate_up_proj.weight.chunk(2)  # type: ignore[union-attr]
    assert torch.equal(first.tensors(0)["w1.weight"], gate[:32])
    assert torch.equal(first.tensors(1)["w3.weight"], up[32:44])


def test_every_kind_learns() -> None:
    torch.manual_seed(0)
    model = mixed_model()
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses, before = [], {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(30):
        logits = model(IDS)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    for layer in model.moe_layers():
        experts = layer.experts
        assert isinstance(experts, MixedExperts)
        was = before[f"layers.{layer.layer}.mlp.experts.weights_N"]
        for expert in (0, 1, 2, 5):
            part = slice(experts.offsets[expert], experts.offsets[expert + 1])
            assert not torch.equal(experts.weights_N[part], was[part])


def routing_of(probs_TE: torch.Tensor) -> Routing:
    moe = MoeSpec(moe_layers=(0,), num_experts=probs_TE.shape[1], top_k=1, moe_intermediate_size=4)
    call = GateCall(torch.ones(probs_TE.shape[0], 1), 1, bias_TE=probs_TE.log())
    return decide(moe, {"weight": torch.zeros(probs_TE.shape[1], 1)}, call)


def test_balance_by_work_is_one_where_work_is_even() -> None:
    cost_E = torch.tensor([2.0, 1.0, 0.5])
    even_E = (1 / cost_E) / (1 / cost_E).sum()
    routing, real_T = routing_of(even_E.expand(7, 3)), torch.ones(7, dtype=torch.bool)
    assert float(balance_loss(routing, real_T, even_E, cost_E)) == pytest.approx(1.0)
    # Equal costs are the plain loss, whatever they are.
    uneven = routing_of(torch.tensor([[0.5, 0.3, 0.2]]).expand(7, 3))
    plain = balance_loss(uneven, real_T)
    assert torch.allclose(balance_loss(uneven, real_T, None, torch.full((3,), 4.0)), plain)
    assert float(plain) > 1.0
    assert work_violation(torch.tensor([[1, 2, 4]]), cost_E) == pytest.approx(0.0)
    assert work_violation(torch.tensor([[1, 1, 1]]), cost_E) == pytest.approx(2.0 / 3.5 * 3 - 1)


def test_descending_on_it_evens_the_work_not_the_tokens() -> None:
    generator = torch.Generator().manual_seed(8)
    hidden_TD = torch.randn(4000, 16, generator=generator)
    weight_ED = torch.nn.Parameter(0.3 * torch.randn(4, 16, generator=generator))
    moe = MoeSpec(moe_layers=(0,), num_experts=4, top_k=1, moe_intermediate_size=4, norm_topk_prob=False)
    cost_E, real_T = torch.tensor([2.0, 1.0, 1.0, 0.5]), torch.ones(4000, dtype=torch.bool)
    bias_E = torch.nn.Parameter(torch.zeros(4))
    adam = torch.optim.Adam([weight_ED, bias_E], lr=0.02)
    for _ in range(300):
        call = GateCall(hidden_TD, 1, norm_topk_prob=False, bias_TE=bias_E.expand(4000, 4))
        routing = decide(moe, {"weight": weight_ED}, call)
        adam.zero_grad()
        balance_loss(routing, real_T, cost_E=cost_E).backward()
        adam.step()
    load_1E = torch.bincount(routing.expert_ids_TK.flatten(), minlength=4)[None]
    assert work_violation(load_1E, cost_E) < 0.15
    assert load_1E[0, 3] > 3 * load_1E[0, 0]


def test_what_a_token_costs_is_its_experts_flops_over_the_mean_of_those_that_compute() -> None:
    kinds: ExpertKinds = TypeAdapter(ExpertKinds).validate_python(KINDS)
    # Maps of a token of width 24: three of 32, three of 12, two of 20 neurons.
    flops = [2 * 24 * 3 * 32, 2 * 24 * 3 * 12, 2 * 24 * 2 * 20]
    mean = sum(flops) / 3
    wanted = [*(one / mean for one in flops), 0.25, 0.25, 0.25]
    assert balance_costs(kinds, 24, 0.25) == pytest.approx(wanted)
    spec = layout(free_expert_cost=0.25).applied_to(tiny_llama())
    costs_E = costs_of(spec)
    assert costs_E is not None
    assert costs_E.tolist() == pytest.approx(list(balance_costs(kinds, spec.hidden_size, 0.25)))


def test_a_tuning_job_evens_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str) -> float:
        (tmp_path / name).mkdir()
        io = RecordingIO(make_world(tmp_path / name), tmp_path / name)
        kinds = [{"kind": "swiglu", "width": width} for width in (48, 48, 16, 16)]
        gate = {"kind": "softmax_topk", "selection_bias": True}
        mixed = {"moe_layers": [1, 3], "num_experts": 4, "top_k": 1, "expert_kinds": kinds, "gate": gate}
        moved = {"balance_bias_rate": 0.01, "route_steps": 40, "specialise_steps": 1}
        spec = tune_spec(layout=mixed, routing={"domains": []}, **moved)
        return float(run_job("tune", spec, io)["tuning"]["after"]["work_vio"])

    by_work = run("work")
    monkeypatch.setattr(tune_router, "costs_of", lambda spec: None)
    by_tokens = run("tokens")
    assert by_work < 0.5 * by_tokens


def test_a_tuning_job_teaches_it(tmp_path: Path) -> None:
    """The second domain's expert is an identity: it has no turn, and the job goes through all the same."""
    io = RecordingIO(make_world(tmp_path), tmp_path)
    kinds = [KINDS[0], KINDS[3], KINDS[2], KINDS[5]]
    mixed = {"moe_layers": [1, 3], "num_experts": 4, "top_k": 2, "expert_kinds": kinds}
    result = run_job("tune", tune_spec(layout=mixed), io)
    spec = ModelSpec.parse(result["spec"])
    assert spec.moe is not None and spec.moe.expert_kinds is not None
    steps = [step for step in io.of("step") if step["stage"] == "specialise" and step.get("loss") is not None]
    assert len({step["of"] for step in steps}) == 1 and steps[-1]["of"] == 4
    model = moe_core.load(io.out_dir)
    assert model.spec == spec
    assert cost_of(spec).total == sum(parameter.numel() for parameter in model.parameters())
