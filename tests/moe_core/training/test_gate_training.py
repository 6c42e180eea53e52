"""What a tuning job may do to gates while they learn, each shown to take effect: bias, capacity, noise, temperature, norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from moe_core.checkpoint.hashes import hashes_of
from moe_core.checkpoint.store import load
from moe_core.errors import SpecError
from moe_core.model import RoutingContext
from moe_core.model.layers import Router
from moe_core.routers import Routing
from moe_core.spec import ModelSpec, TuneSpec
from moe_core.training import run_job
from tests.moe_core.training.world import RecordingIO, pause, tune_spec

BIASED = {"kind": "softmax_topk", "selection_bias": True}
SCHEDULE = {"kind": "linear", "start": 3.0, "end": 1.0, "num_steps": 8, "step": 2}


def laid(**layout: Any) -> dict[str, Any]:
    return {"moe_layers": [1, 3], "num_experts": 4, "top_k": 2, **layout}


def quick(**changes: Any) -> dict[str, Any]:
    """Routers alone: no expert is taught, no control beside."""
    return tune_spec(**{"specialise_steps": 0, "control": False, **changes})


def tensors(io: RecordingIO) -> dict[str, torch.Tensor]:
    return {
        f"{mlp.layer}.{name}": t
        for mlp in load(io.out_dir).moe_layers()
        for name, t in mlp.router.tensors.items()
    }


class Seen:
    """Every decision of a gate while it was training, with what it was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[RoutingContext, Routing]] = []
        plain = Router.forward

        def noting(router: Router, x_TD: torch.Tensor, context: RoutingContext, moe_index: int) -> Routing:
            routing = plain(router, x_TD, context, moe_index)
            if context.training:
                self.calls.append((context, routing))
            return routing

        monkeypatch.setattr(Router, "forward", noting)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def test_the_balancing_bias_moves_by_its_rate_and_is_saved(io: RecordingIO) -> None:
    run_job("tune", quick(layout=laid(gate=BIASED), balance_bias_rate=0.01), io)
    for layer in (1, 3):
        bias_E = tensors(io)[f"{layer}.selection_bias"]
        assert float(bias_E.abs().max()) > 0.0
        # Centred at every step, and no step is longer than two rates.
        assert abs(float(bias_E.mean())) < 1e-6
        assert float(bias_E.abs().max()) <= 4 * 2 * 0.01 + 1e-6


def test_without_a_rate_it_stays(io: RecordingIO) -> None:
    run_job("tune", quick(layout=laid(gate=BIASED)), io)
    assert not tensors(io)["1.selection_bias"].any()


def test_the_bias_evens_loads_that_nothing_else_evens(world: Path, tmp_path: Path) -> None:
    """No balance loss, no labels: what falls is the bias's doing."""
    figures = {}
    for rate in (0.0, 0.03):
        io = RecordingIO(world, tmp_path / str(rate))
        routing = {**tune_spec()["routing"], "balance_weight": 0.0, "label_weight": 0.0}
        spec = quick(
            layout=laid(gate=BIASED),
            routing=routing,
            route_steps=24,
            balance_bias_rate=rate,
            route_learning_rate=1e-6,
            router_std=0.3,
        )
        figures[rate] = run_job("tune", spec, io)["tuning"]
    assert figures[0.0]["after"]["max_vio"] == pytest.approx(figures[0.0]["before"]["max_vio"], abs=0.02)
    assert figures[0.03]["after"]["max_vio"] < 0.6 * figures[0.0]["after"]["max_vio"]


def test_a_gate_that_solves_its_bias_leaves_it_in_the_model(io: RecordingIO) -> None:
    run_job("tune", quick(layout=laid(gate={"kind": "quantile"})), io)
    assert tensors(io)["1.selection_bias"].any()


def test_a_rate_without_a_bias_is_refused_with_the_way_out(io: RecordingIO) -> None:
    with pytest.raises(SpecError, match="set selection_bias in the layout's gate, or balance_bias_rate to 0"):
        run_job("tune", quick(balance_bias_rate=0.01), io)


def test_a_rate_beside_a_gate_that_solves_its_bias_is_refused_while_it_explores(
    world: Path, tmp_path: Path
) -> None:
    """What is solved anew for each batch is not moved; a gate that chooses as when serving solves nothing."""
    solving = {"layout": laid(gate={"kind": "quantile"}), "balance_bias_rate": 0.01}
    with pytest.raises(SpecError, match="balance_bias_rate to 0, or explore to false") as found:
        run_job("tune", quick(**solving), RecordingIO(world, tmp_path / "exploring"))
    assert [place for place, _ in found.value.faults] == [("balance_bias_rate",)]
    io = RecordingIO(world, tmp_path / "serving")
    run_job("tune", quick(**solving, explore=False), io)
    assert float(tensors(io)["1.selection_bias"].abs().max()) >= 0.01


def test_capacity_limits_experts_while_they_learn_and_is_not_saved(io: RecordingIO, seen: Seen) -> None:
    result = run_job("tune", quick(capacity={"train_factor": 0.5, "overflow": "residual"}), io)
    dropped = sum(int(r.overflow.dropped_TK.sum()) for _, r in seen.calls if r.overflow is not None)
    assert seen.calls and all(routing.overflow is not None for _, routing in seen.calls)
    assert dropped > 0
    assert ModelSpec.parse(result["spec"]).moe.capacity is None  # type: ignore[union-attr]


def test_a_capacity_for_serving_is_refused_for_it_would_not_be_saved() -> None:
    asked = quick(capacity={"train_factor": None, "eval_factor": 0.5})
    with pytest.raises(SpecError, match=r"capacity.eval_factor \(0.5\) does nothing .* layout") as found:
        TuneSpec.parse(asked)
    assert [place for place, _ in found.value.faults] == [("capacity", "eval_factor")]


def test_the_capacity_of_the_layout_counts_in_training(io: RecordingIO, seen: Seen) -> None:
    run_job("tune", quick(layout=laid(capacity={"train_factor": 0.5, "eval_factor": None})), io)
    assert seen.calls and all(routing.overflow is not None for _, routing in seen.calls)


def test_gates_that_do_not_explore_choose_as_when_serving(io: RecordingIO, seen: Seen) -> None:
    run_job("tune", quick(layout=laid(capacity={"train_factor": 0.5}), explore=False), io)
    assert not seen.calls


def test_weight_decay_pulls_at_the_maps_of_gates(world: Path, tmp_path: Path) -> None:
    norms: list[float] = []
    for decay in (0.0, 20.0):
        io = RecordingIO(world, tmp_path / str(decay))
        run_job("tune", quick(layout=laid(gate={"kind": "softmax_topk"}), weight_decay=decay), io)
        maps = [mlp.router.tensors["weight"] for mlp in load(io.out_dir).moe_layers()]
        norms.append(min(float(weight_ED.detach().norm()) for weight_ED in maps))
    assert norms[1] < 0.5 * norms[0]


def test_noise_falls_to_nothing_at_the_last_step(io: RecordingIO, seen: Seen) -> None:
    run_job("tune", quick(gate_noise=0.8, num_threads=1), io)
    noise = [context.noise for context, _ in seen.calls]
    # Two layers a step.
    assert noise[::2] == pytest.approx([0.8, 0.8 * 2 / 3, 0.8 / 3, 0.0])


def test_noise_changes_what_is_learnt_and_only_by_its_seed(world: Path, tmp_path: Path) -> None:
    found = []
    for number, changes in enumerate(
        [{}, {"gate_noise": 0.8}, {"gate_noise": 0.8}, {"gate_noise": 0.8, "seed": 1}]
    ):
        io = RecordingIO(world, tmp_path / str(number))
        run_job("tune", quick(**changes), io)
        found.append(tensors(io)["1.weight"])
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[3])


def test_learnt_noise_learns(io: RecordingIO) -> None:
    run_job("tune", quick(layout=laid(gate={"kind": "noisy_topk"})), io)
    assert tensors(io)["1.noise_weight"].any()


def test_the_temperature_goes_on_with_the_steps_and_is_saved_where_it_stopped(
    io: RecordingIO, seen: Seen
) -> None:
    result = run_job("tune", quick(temperature_schedule=SCHEDULE, num_threads=1), io)
    assert [context.step for context, _ in seen.calls[::2]] == [2, 3, 4, 5]
    moe = load(io.out_dir).spec.moe
    assert moe is not None and moe.temperature_schedule is not None
    assert moe.temperature_schedule.step == 2 + 4
    assert moe.temperature_at() == pytest.approx(1.5)
    assert result["spec"]["moe"]["temperature_schedule"]["step"] == 6


def test_the_schedule_of_a_layout_moves_too(io: RecordingIO) -> None:
    run_job("tune", quick(layout=laid(temperature_schedule={**SCHEDULE, "step": 0})), io)
    moe = load(io.out_dir).spec.moe
    assert moe is not None and moe.temperature_schedule is not None and moe.temperature_schedule.step == 4


def test_a_model_whose_family_cannot_say_a_schedule_becomes_one_of_ours(
    io: RecordingIO, world: Path, tmp_path: Path
) -> None:
    from moe_core.checkpoint.store import copy_tokenizer, save
    from moe_core.model.init import random_decoder
    from tests.moe_core.tiny import tiny_family

    spec = tiny_family("olmoe")
    vocab = load(world / "model").spec.vocab_size
    spec = spec.model_copy(update={"vocab_size": vocab})
    directory = save(random_decoder(spec, 1, 0.1), tmp_path / "olmoe")
    copy_tokenizer(world / "model", directory)
    (directory / "config.json").chmod(0o644)
    io.inputs = {**io.inputs, "model": directory}
    result = run_job("tune", quick(layout=None, temperature_schedule=SCHEDULE), io)
    assert result["spec"]["family"] == "turnout_moe"
    tuned = load(io.out_dir)
    assert tuned.spec.moe is not None and tuned.spec.moe.temperature_schedule is not None


def test_the_clip_of_gates_is_their_own(world: Path, tmp_path: Path) -> None:
    found = []
    for number, clip in enumerate([None, 1.0, 1e-12]):
        io = RecordingIO(world, tmp_path / str(number))
        run_job("tune", quick(route_clip_norm=clip), io)
        found.append(tensors(io)["1.weight"])
    # None is clip_norm, which is 1; with hardly any gradient Adam's epsilon holds the gate where it was.
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("gate", [BIASED, {"kind": "noisy_topk", "selection_bias": True}])
def test_a_paused_run_goes_on_to_the_same_bytes_with_all_of_it(
    world: Path, tmp_path: Path, gate: dict[str, Any]
) -> None:
    spec = quick(
        layout=laid(gate=gate), balance_bias_rate=0.01, gate_noise=0.5, temperature_schedule=SCHEDULE,
        capacity={"train_factor": 1.0},
    )  # fmt: skip
    whole, halted = RecordingIO(world, tmp_path / "whole"), RecordingIO(world, tmp_path / "halted")
    run_job("tune", spec, whole)
    pause(halted, spec, "route", 2)
    run_job("tune", spec, halted)
    assert hashes_of(halted.out_dir) == hashes_of(whole.out_dir)


@pytest.mark.parametrize(
    "field", [{"balance_bias_rate": 1.5}, {"gate_noise": -1}, {"route_clip_norm": 0}, {"gate_loss_weight": -1},
              {"capacity": {"train_factor": 0}}, {"temperature_schedule": {"start": 0}},
              {"explore": False, "gate_noise": 0.1}],
)  # fmt: skip
def test_numbers_out_of_bounds_are_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(
        ValidationError, match=next(iter(field)) if len(field) == 1 else "leave explore at true"
    ):
        TuneSpec.model_validate(tune_spec(**field))


@pytest.mark.parametrize("steps", [0, 1])
def test_a_hold_on_twins_needs_steps_to_fall_in(steps: int) -> None:
    with pytest.raises(SpecError, match=rf"twin_hold \(1.5\) falls .* route_steps is {steps}; give") as found:
        TuneSpec.parse(tune_spec(twin_hold=1.5, route_steps=steps))
    assert found.value.faults[0][0] == ("twin_hold",)
    assert TuneSpec.parse(tune_spec(twin_hold=0.0, route_steps=steps)).twin_hold_at(0) == 0.0
    two = TuneSpec.parse(tune_spec(twin_hold=1.5, route_steps=2))
    assert [two.twin_hold_at(step) for step in (0, 1)] == [1.5, 0.0]


def test_a_learnt_overflow_needs_its_tensors(io: RecordingIO) -> None:
    with pytest.raises(SpecError, match="set it in the layout, or choose drop"):
        run_job("tune", quick(capacity={"train_factor": 1.0, "overflow": "learned"}), io)


def test_twins_are_released_over_the_steps_and_stay_so(world: Path, tmp_path: Path, seen: Seen) -> None:
    """Dealt by a hash at first, then held less and less; the model that is saved leaves the choice to the gate."""
    dense = RecordingIO(world, tmp_path / "mixture")
    upcycle = {"kind": "upcycle", "layout": laid(num_experts=2, top_k=1), "noise": 0.1}
    run_job("operate", {"operation": upcycle, "dtype": "float32"}, dense)
    grown = RecordingIO(world, tmp_path / "grown")
    grown.inputs = {**grown.inputs, "model": dense.out_dir}
    run_job("operate", {"operation": {"kind": "grow", "num_experts": 4}, "dtype": "float32"}, grown)
    io = RecordingIO(world, tmp_path / "tuned")
    io.inputs = {**io.inputs, "model": grown.out_dir}
    seen.calls.clear()
    result = run_job("tune", quick(layout=None, twin_hold=1.5, specialise_steps=4), io)
    holds = sorted({context.twin_hold for context, _ in seen.calls}, reverse=True)
    assert holds == pytest.approx([1.5, 1.0, 0.5, 0.0])
    assert load(grown.out_dir).spec.moe.twins.hold is None
    moe = load(io.out_dir).spec.moe
    assert moe.twins.hold == 0.0 and moe.twins.roots == (0, 1, 0, 1)
    assert result["spec"]["moe"]["twins"]["hold"] == 0.0
    # The same run without it leaves twins to the hash.
    kept = RecordingIO(world, tmp_path / "kept")
    kept.inputs = io.inputs
    assert run_job("tune", quick(layout=None), kept)["spec"]["moe"]["twins"]["hold"] is None
    with pytest.raises(SpecError, match="no twins to release"):
        run_job("tune", quick(twin_hold=1.0), RecordingIO(world, tmp_path / "none"))


def test_a_run_that_releases_twins_and_is_paused_ends_with_the_same_bytes(
    world: Path, tmp_path: Path
) -> None:
    dense = RecordingIO(world, tmp_path / "mixture")
    upcycle = {"kind": "upcycle", "layout": laid(num_experts=2, top_k=1), "noise": 0.1}
    run_job("operate", {"operation": upcycle, "dtype": "float32"}, dense)
    grown = RecordingIO(world, tmp_path / "grown")
    grown.inputs = {**grown.inputs, "model": dense.out_dir}
    run_job("operate", {"operation": {"kind": "grow", "num_experts": 4}, "dtype": "float32"}, grown)
    spec, hashes = quick(layout=None, twin_hold=1.5), []
    for name, step in (("whole", None), ("paused", 2)):
        io = RecordingIO(world, tmp_path / name)
        io.inputs = {**io.inputs, "model": grown.out_dir}
        if step is not None:
            pause(io, spec, "route", step)
        run_job("tune", spec, io)
        hashes.append(hashes_of(io.out_dir))
    assert hashes[0] == hashes[1]
