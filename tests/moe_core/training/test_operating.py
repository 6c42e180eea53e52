"""Operations on experts as a child does them: a model directory in, a changed one and its report out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import moe_core
from moe_core.errors import Cancelled, SpecError
from moe_core.training import run_job
from tests.moe_core.training.world import DOMAINS, RecordingIO, make_world

UPCYCLE = {"kind": "upcycle", "layout": {"moe_layers": [1, 3], "num_experts": 4, "top_k": 2}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def mixture(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture made of the dense model by the first operation."""
    io = RecordingIO(world, tmp_path_factory.mktemp("mixture"))
    done(io, UPCYCLE | {"noise": 0.3})
    return io.out_dir


def done(io: RecordingIO, operation: dict[str, Any], **options: Any) -> dict[str, Any]:
    spec = {
        "operation": operation,
        "dtype": "float32",
        "prompts_per_domain": 6,
        "prompt_tokens": 24,
        **options,
    }
    return run_job("operate", spec, io)


def io_on(mixture: Path, world: Path, folder: Path, *, logs: bool = True) -> RecordingIO:
    io = RecordingIO(world, folder)
    names = ("train.jsonl", "held_out.jsonl") if logs else ()
    io.inputs = {"model": mixture, **{name: world / name for name in names}}
    return io


@pytest.mark.parametrize(
    ("operation", "num_experts"),
    [
        ({"kind": "grow", "num_experts": 8}, 8),
        ({"kind": "add", "source": 1}, 5),
        ({"kind": "remove"}, 3),
        ({"kind": "merge", "first": 0, "second": 3}, 3),
        ({"kind": "quantise", "quantisation": {"bits": 8, "group_size": 32}}, 4),
        ({"kind": "distil", "num_experts": 2, "steps": 2}, 2),
        ({"kind": "specialise_clone", "domain": "sums", "steps": 2}, 5),
        ({"kind": "wake_expert", "steps": 2}, 4),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_each_operation_leaves_a_model_that_loads_and_a_report_by_domain(
    world: Path, mixture: Path, tmp_path: Path, operation: dict[str, Any], num_experts: int
) -> None:
    io = io_on(mixture, world, tmp_path)
    result = done(io, operation)
    model = moe_core.load(io.out_dir, dtype="float32")
    assert model.spec.moe is not None and model.spec.moe.num_experts == num_experts
    assert result["spec"] == model.spec.model_dump(mode="json")
    assert set(result["operation"]["loss_after"]) == set(DOMAINS)
    routing = result["operation"]["routing"]
    assert [row["layer"] for row in routing["layers"]] == [1, 3]
    # Only where experts have their old numbers can choices be compared with those before.
    assert ("agreement" in routing["mean"]) == (num_experts == 4)
    assert torch.isfinite(model(torch.arange(12)[None])).all()
    assert (io.out_dir / "tokenizer.json").read_bytes() == (mixture / "tokenizer.json").read_bytes()
    assert [event["stage"] for event in io.of("stage")] == ["read", "operate", "measure", "save"]


def test_prompts_of_a_job_are_cut_to_the_models_positions(world: Path, mixture: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(mixture, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 10}))
    io = io_on(short, world, tmp_path)
    assert set(done(io, {"kind": "remove"}, prompt_tokens=24)["operation"]["loss_after"]) == set(DOMAINS)


def test_growth_keeps_the_function_and_the_report_says_so(world: Path, mixture: Path, tmp_path: Path) -> None:
    io = io_on(mixture, world, tmp_path)
    report = done(io, {"kind": "grow", "num_experts": 16})["operation"]
    assert report["keeps_function"] is True
    assert max(report["kl"].values()) < 1e-6
    before, after = (moe_core.load(path, dtype="float32") for path in (mixture, io.out_dir))
    ids = torch.arange(40)[None] % before.spec.vocab_size
    torch.testing.assert_close(after(ids), before(ids), atol=1e-4, rtol=1e-4)


def test_twins_are_released_and_packed_experts_unpacked_by_a_job(
    world: Path, mixture: Path, tmp_path: Path
) -> None:
    """What errors name as the way out is one: grown twice, refused, released, and then grown by one."""
    path, steps = mixture, [{"kind": "grow", "num_experts": 8}, {"kind": "grow", "num_experts": 16}]
    for place, operation in enumerate(
        [*steps, {"kind": "release_twins"}, {"kind": "add"}, {"kind": "quantise"}]
    ):
        if operation["kind"] == "release_twins":
            with pytest.raises(SpecError, match="operation release_twins"):
                done(io_on(path, world, tmp_path / "refused"), {"kind": "add"})
        io = io_on(path, world, tmp_path / str(place))
        report = done(io, operation)["operation"]
        assert operation["kind"] == "quantise" or max(report["kl"].values()) < 1e-6
        if operation["kind"] == "release_twins":
            assert (report["hold"], report["twins"]) == ([None, 0.0], 16)
        path = io.out_dir
    io = io_on(path, world, tmp_path / "wide")
    report = done(io, {"kind": "dequantise"})["operation"]
    # The floats are those that the packed experts stood for.
    assert max(report["kl"].values()) < 1e-6
    assert report["expert_bytes"][0] < report["expert_bytes"][1]
    back = moe_core.load(io.out_dir, dtype="float32")
    assert (
        back.spec.moe is not None and back.spec.moe.quantisation is None and back.spec.moe.num_experts == 17
    )


def test_composing_takes_all_versions_in_their_order(world: Path, mixture: Path, tmp_path: Path) -> None:
    io = io_on(world / "model", world, tmp_path)
    io.inputs = {**io.inputs, "other-0": world / "model"}
    result = done(io, {"kind": "compose", "domains": list(DOMAINS), "moe_layers": [1, 2]})
    assert result["spec"]["moe"]["num_experts"] == 2


def test_learning_without_logs_is_refused_with_the_way_out(
    world: Path, mixture: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="name a corpus"):
        done(io_on(mixture, world, tmp_path, logs=False), {"kind": "distil", "num_experts": 2})


def test_without_logs_nothing_is_measured_and_nothing_is_made_up(
    world: Path, mixture: Path, tmp_path: Path
) -> None:
    report = done(io_on(mixture, world, tmp_path, logs=False), {"kind": "add"})["operation"]
    assert "loss_after" not in report


def test_a_loss_that_would_rise_too_much_leaves_no_model(world: Path, mixture: Path, tmp_path: Path) -> None:
    io = io_on(mixture, world, tmp_path)
    with pytest.raises(SpecError):
        # No removal leaves the loss of a random model with noisy experts exactly as it was.
        done(io, {"kind": "remove", "expert": 0, "max_loss_increase": 0.0})
    assert not io.out_dir.exists() or not any(io.out_dir.iterdir())


def test_a_cancelled_operation_leaves_nothing(world: Path, mixture: Path, tmp_path: Path) -> None:
    io = io_on(mixture, world, tmp_path)
    io.stop_at = ("operate", 0, "cancel")
    with pytest.raises(Cancelled):
        done(io, {"kind": "grow", "num_experts": 8})
    assert not io.out_dir.exists() or not any(io.out_dir.iterdir())


@pytest.mark.parametrize("kind", ["remove", "distil", "quantise", "upcycle"])
def test_what_an_operation_is_doing_is_told_and_never_goes_back(
    world: Path, mixture: Path, tmp_path: Path, kind: str
) -> None:
    more: dict[str, Any] = {
        "distil": {"num_experts": 2, "steps": 2}, "quantise": {"quantisation": {"group_size": 32}}, "upcycle": UPCYCLE,
    }.get(kind, {})  # fmt: skip
    io = io_on(world / "model" if kind == "upcycle" else mixture, world, tmp_path)
    done(io, {"kind": kind, **more})
    steps = [step for step in io.of("step") if "part" in step]
    assert {"operate"} <= {step["stage"] for step in steps} <= {"operate", "measure"}
    for stage in ("operate", "measure"):
        inside = [step["inside"] for step in steps if step["stage"] == stage and step["part"] != "measure"]
        assert inside == sorted(inside)
        assert all(0.0 < share <= 1.0 for share in inside)
    assert all(0 < step["step"] <= step["of"] for step in steps)


def test_an_operation_heeds_a_wish_to_stop_between_two_pieces_of_work(
    world: Path, mixture: Path, tmp_path: Path
) -> None:
    from moe_core.training.operating import Watcher
    from moe_core.training.progress import Progress

    io = io_on(mixture, world, tmp_path)
    io.should_stop = lambda: "cancel"  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        Watcher(Progress(io, ("operate",)), "operate", ("load",))("load", 1, 2)


def test_a_preview_measures_and_keeps_nothing(world: Path, mixture: Path, tmp_path: Path) -> None:
    io = io_on(mixture, world, tmp_path)
    wanted = {"kind": "remove", "expert": 0, "max_loss_increase": 0.0}
    result = done(io, wanted, preview=True)
    assert set(result) == {"operation"}
    assert not io.out_dir.exists() or not any(io.out_dir.iterdir())
    assert [event["stage"] for event in io.of("stage")] == ["read", "operate", "measure"]
    report = result["operation"]
    assert (report["kind"], report["experts"]) == ("remove", [0, 0])
    # What was foretold is what the removal then reports.
    true = done(io_on(mixture, world, tmp_path / "true"), {"kind": "remove", "expert": 0})["operation"]
    for domain in DOMAINS:
        assert report["loss_change"][domain] == pytest.approx(true["loss_change"][domain], abs=1e-6)
    assert any(abs(change) > 1e-6 for change in report["loss_change"].values())


@pytest.mark.parametrize(
    "operation", [{"kind": "merge", "first": 0, "second": 3, "max_loss_increase": 0.0}, {"kind": "quantise"}]
)
def test_every_operation_can_be_tried(
    world: Path, mixture: Path, tmp_path: Path, operation: dict[str, Any]
) -> None:
    io = io_on(mixture, world, tmp_path)
    report = done(io, operation, preview=True)["operation"]
    assert set(report["loss_change"]) == set(DOMAINS)
    assert not io.out_dir.exists() or not any(io.out_dir.iterdir())


def test_a_preview_without_logs_is_refused(world: Path, mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="name a corpus"):
        done(io_on(mixture, world, tmp_path, logs=False), {"kind": "remove", "expert": 0}, preview=True)


def test_packed_experts_become_floats_again(world: Path, mixture: Path, tmp_path: Path) -> None:
    packed = io_on(mixture, world, tmp_path / "packed")
    done(packed, {"kind": "quantise", "quantisation": {"bits": 8, "group_size": 32}})
    io = io_on(packed.out_dir, world, tmp_path / "wide")
    report = done(io, {"kind": "dequantise"})["operation"]
    assert report["keeps_function"] is True and max(report["kl"].values()) < 1e-4
    wide = moe_core.load(io.out_dir, dtype="float32")
    assert wide.spec.moe is not None and wide.spec.moe.quantisation is None


def test_a_measurement_makes_no_model_and_stands_beside_another(
    world: Path, mixture: Path, tmp_path: Path
) -> None:
    io = io_on(mixture, world, tmp_path)
    result = done(io, {"kind": "measure"})
    assert set(result) == {"operation"} and not io.out_dir.exists()
    assert set(result["operation"]["loss"]) == set(DOMAINS)
    assert [event["stage"] for event in io.of("stage")] == ["read", "measure"]
    assert io.of("report")[0]["figures"] == result["operation"]
    beside = io_on(mixture, world, tmp_path / "beside")
    beside.inputs["other-0"] = world / "model"
    report = done(beside, {"kind": "measure"})["operation"]
    assert report["loss_after"] == pytest.approx(result["operation"]["loss"])
    assert report["loss_before"] != report["loss_after"] and "routing_before" not in report


def test_a_measurement_without_rows_of_a_domain_says_so(world: Path, mixture: Path, tmp_path: Path) -> None:
    io = io_on(mixture, world, tmp_path, logs=False)
    with pytest.raises(SpecError, match="no held-out row"):
        done(io, {"kind": "measure"})


def test_a_measurement_beside_two_others_passes_over_neither(
    world: Path, mixture: Path, tmp_path: Path
) -> None:
    io = io_on(mixture, world, tmp_path)
    io.inputs |= {"other-0": world / "model", "other-1": world / "model"}
    with pytest.raises(SpecError, match="beside one other, not 2"):
        done(io, {"kind": "measure"})
