"""A whole tuning run on a tiny model: its stages, its report, its result, and how it stops and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_core.checkpoint.hashes import hashes_of
from moe_core.checkpoint.safetensors import SafetensorsFile
from moe_core.checkpoint.store import load
from moe_core.errors import Cancelled, CheckpointError, NonFiniteLoss, SpecError, TrainingError
from moe_core.model.layers import MoeMlp
from moe_core.routers.losses import label_loss
from moe_core.training import routing_losses, run_job
from moe_core.training.recipes import specialise
from moe_core.training.tuning import STAGES
from tests.moe_core.training.world import RecordingIO, pause, tune_spec


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory):
    io = RecordingIO(world, tmp_path_factory.mktemp("finished"))
    return io, run_job("tune", tune_spec(), io)


def test_stages_come_in_their_order_and_steps_end_at_their_number(finished) -> None:
    io, _ = finished
    stages = io.of("stage")
    assert [event["stage"] for event in stages] == list(STAGES)
    assert [event["index"] for event in stages] == list(range(len(STAGES)))
    for stage, steps in [("specialise", 12), ("route", 4), ("control", 4)]:
        last = [event for event in io.of("step") if event["stage"] == stage][-1]
        assert (last["step"], last["of"]) == (steps, steps)


def test_steps_carry_what_the_page_shows(finished) -> None:
    io, _ = finished
    step = [event for event in io.of("step") if event["stage"] == "route"][-1]
    assert step["loss"] > 0
    assert step["tokens_per_second"] > 0
    assert 0 <= step["mapped_share"] <= 1
    assert step["max_vio"] >= 0
    heat = step["heat"]
    assert (heat["layers"], heat["num_experts"]) == ([1, 3], 4)
    # A batch of four windows of 32 tokens, two experts each, counted in each layer; little of it is padding.
    assert all(128 <= sum(row) <= 2 * 128 for row in heat["counts"])


def test_specialising_shows_the_expert_that_learns(finished) -> None:
    io, _ = finished
    steps = [event for event in io.of("step") if event["stage"] == "specialise" and "loss" in event]
    assert all("max_vio" not in event for event in steps)
    counts = steps[-1]["heat"]["counts"]
    assert all(row[1] > 0 and row[0] == row[2] == row[3] == 0 for row in counts)


def test_the_report_has_before_after_and_control(finished) -> None:
    io, result = finished
    tuning = result["tuning"]
    for name in ("before", "after", "control"):
        figures = tuning[name]
        assert set(figures["loss_by_domain"]) == {"sums", "words"}
        assert figures["loss"] == pytest.approx(sum(figures["loss_by_domain"].values()) / 2)
        assert 0 <= figures["mapped_share"] <= 1
        assert figures["tokens"] > figures["loss_tokens"] > 0
    assert [event["name"] for event in io.of("report")] == ["before", "after", "control", "tuning"]
    assert tuning["before"]["loss"] > tuning["after"]["loss"]


def test_the_report_has_every_figure_of_routing_by_layer(finished) -> None:
    _, result = finished
    for name in ("before", "after", "control"):
        figures, routing = result["tuning"][name], result["tuning"][name]["routing"]
        assert [row["layer"] for row in routing["layers"]] == [1, 3]
        # Two ways to the same load.
        for figure in ("max_vio", "entropy"):
            assert routing["mean"][figure] == pytest.approx(figures[figure])
        assert sum(row["dead_experts"] for row in routing["layers"]) == figures["dead_experts"]
        # What the first gates chose is what later ones are compared with.
        assert ("saturation" in routing["mean"]) == (name != "before")
    assert 0.0 < result["tuning"]["after"]["routing"]["mean"]["saturation"] < 1.0


def test_labels_draw_tokens_to_the_mapped_experts_and_deranged_labels_away(finished) -> None:
    _, result = finished
    tuning = result["tuning"]
    assert tuning["after"]["mapped_share"] > tuning["control"]["mapped_share"]
    assert tuning["gain"]["share_over_control"] > 0


def test_the_result_is_a_model_directory_that_loads(finished) -> None:
    io, result = finished
    model = load(io.out_dir)
    assert model.spec.model_dump(mode="json") == result["spec"]
    assert result["inspection"]["params_total"] == sum(p.numel() for p in model.parameters())
    assert (io.out_dir / "tokenizer.json").exists()


def test_only_experts_and_routers_changed_and_general_experts_stay_alike(finished, world: Path) -> None:
    io, _ = finished
    tuned = dict(load(io.out_dir).named_parameters())
    dense = dict(load(world / "model").named_parameters())
    for name, weight in tuned.items():
        if name in dense:
            assert torch.equal(weight, dense[name]), name
    for layer in (1, 3):
        first = tuned[f"layers.{layer}.mlp.experts.down_EDF"]
        original = dense.get(f"layers.{layer}.mlp.down_proj.weight")
        assert original is not None
        assert not any(torch.equal(first[expert], original) for expert in range(4))
        assert torch.equal(first[2], first[3])
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[0], first[2])


def test_an_unchanged_trunk_is_the_same_file_for_every_run(finished, world: Path, tmp_path: Path) -> None:
    io, _ = finished
    other = RecordingIO(world, tmp_path)
    run_job("tune", tune_spec(seed=9, control=False, specialise_steps=1, route_steps=1), other)
    first, second = hashes_of(io.out_dir), hashes_of(other.out_dir)
    assert first["trunk.safetensors"] == second["trunk.safetensors"]
    assert first["router.safetensors"] != second["router.safetensors"]


def test_the_same_run_gives_the_same_bytes(finished, io: RecordingIO) -> None:
    run_job("tune", tune_spec(), io)
    assert hashes_of(io.out_dir) == hashes_of(finished[0].out_dir)


@pytest.mark.parametrize(
    ("stage", "step"), [("specialise", 2), ("specialise", 5), ("route", 2), ("control", 1)]
)
def test_a_paused_run_goes_on_to_the_same_bytes(finished, io: RecordingIO, stage: str, step: int) -> None:
    pause(io, tune_spec(), stage, step)
    result = run_job("tune", tune_spec(), io)
    assert hashes_of(io.out_dir) == hashes_of(finished[0].out_dir)
    assert result["tuning"] == finished[1]["tuning"]


def test_a_cancelled_run_ends_within_a_step(io: RecordingIO) -> None:
    io.stop_at = ("route", 1, "cancel")
    with pytest.raises(Cancelled):
        run_job("tune", tune_spec(), io)
    steps = [event["step"] for event in io.of("step") if event["stage"] == "route" and "loss" in event]
    assert max(steps) <= 2
    assert not io.out_dir.exists()


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_checkpoint(
    io: RecordingIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(10_000))
    # Two expert layers and two lanes, which a GPU has not: four calls a step; the third step goes wrong.
    honest = specialise.LoneExpert.feed_forward

    def broken(self: specialise.LoneExpert, mlp: MoeMlp, x_TD: Tensor) -> Tensor:
        return honest(self, mlp, x_TD) * (float("inf") if next(calls) >= 8 else 1.0)

    monkeypatch.setattr(specialise.LoneExpert, "feed_forward", broken)
    with pytest.raises(NonFiniteLoss, match="stopped at step 3 of stage specialise") as caught:
        run_job("tune", tune_spec(device="cpu"), io)
    assert "Lower the learning rate" in str(caught.value)
    path, step, stage, _ = io.checkpoints[-1]
    assert (stage, step) == ("specialise", 2)
    with SafetensorsFile(path / "learner.safetensors") as file:
        assert all(bool(file.tensor(name).isfinite().all()) for name in file.header.tensors)


def test_a_gradient_that_is_not_finite_stops_the_run_too(
    io: RecordingIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*asked):
        return label_loss(*asked) * float("nan")

    monkeypatch.setattr(routing_losses, "label_loss", broken)
    with pytest.raises(NonFiniteLoss, match="step 1 of stage route: the gradient of 1.router"):
        run_job("tune", tune_spec(), io)


def test_the_control_can_be_left_out(io: RecordingIO) -> None:
    result = run_job("tune", tune_spec(control=False, specialise_steps=1, route_steps=1), io)
    assert "control" not in result["tuning"]
    assert "control" not in [event["stage"] for event in io.of("stage")]
    assert result["tuning"]["gain"]["share_over_control"] is None


def test_a_mixture_is_tuned_without_a_layout(finished, world: Path, tmp_path: Path) -> None:
    io = RecordingIO(world, tmp_path)
    io.inputs = {**io.inputs, "model": finished[0].out_dir}
    result = run_job("tune", tune_spec(layout=None, specialise_steps=0, route_steps=2), io)
    assert result["spec"] == finished[1]["spec"]


def test_a_dense_model_without_a_layout_is_refused(io: RecordingIO) -> None:
    with pytest.raises(SpecError, match="layout"):
        run_job("tune", tune_spec(layout=None), io)


def test_logs_that_miss_a_mapped_domain_are_refused_by_name(io: RecordingIO) -> None:
    spec = tune_spec()
    domain = {"code": "legal", "name_en": "Legal", "name_zh": "法务", "experts": [2]}
    spec["routing"]["domains"] = [*spec["routing"]["domains"], domain]
    with pytest.raises(TrainingError, match="legal"):
        run_job("tune", spec, io)


def test_a_checkpoint_is_not_taken_for_other_logs(io: RecordingIO, tmp_path: Path) -> None:
    pause(io, tune_spec(), "route", 1)
    other = tmp_path / "other.jsonl"
    other.write_text(io.inputs["train.jsonl"].read_text() + io.inputs["held_out.jsonl"].read_text())
    io.inputs = {**io.inputs, "train.jsonl": other}
    with pytest.raises(CheckpointError, match="other settings or inputs"):
        run_job("tune", tune_spec(), io)


def test_an_unknown_kind_is_refused(io: RecordingIO) -> None:
    with pytest.raises(SpecError, match="import, tune"):
        run_job("paint", {}, io)
