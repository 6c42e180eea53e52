"""Which gates a job can tune: those that say so learn, the others are refused with their reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_core.checkpoint.hashes import hashes_of
from moe_core.checkpoint.store import load
from moe_core.errors import SpecError
from moe_core.training import run_job
from tests.moe_core.routers.every_gate import GATES, KINDS
from tests.moe_core.training.world import RecordingIO, pause, tune_spec

REFUSED = [gate.model_fields["kind"].default for gate in GATES if gate.not_tuned is not None]
TUNED = [kind for kind in KINDS if kind not in REFUSED]
# What a gate has beside its defaults, so that all that it may remember from step to step is there.
EVERYTHING: dict[str, dict[str, Any]] = {
    "softmax_topk": {"selection_bias": True, "logit_bias": True},
    "sigmoid_groups": {"num_groups": 2, "topk_group": 1},
    "top_p": {"selection_bias": True},
    "switch": {"jitter": 0.1},
    "hash": {"weights": "learned", "choice": "balanced"},
    "hierarchical": {"num_domains": 2},
    "base": {"centroids": "semantic"},
}  # fmt: skip
# The balancing bias moves step by step; `quantile` solves its own for each batch.
BALANCED = ("softmax_topk", "sigmoid_groups", "top_p")


def layout(kind: str, **gate: Any) -> dict[str, Any]:
    top_k = 1 if kind in ("switch", "base") else 2
    return {"moe_layers": [1, 3], "num_experts": 4, "top_k": top_k, "gate": {"kind": kind, **gate}}


def tuned(
    world: Path, folder: Path, laid: dict[str, Any], **changes: Any
) -> tuple[RecordingIO, dict[str, Any]]:
    io = RecordingIO(world, folder)
    return io, run_job("tune", tune_spec(layout=laid, **changes), io)


@pytest.mark.parametrize("kind", TUNED)
def test_every_gate_that_says_so_can_be_tuned(world: Path, tmp_path: Path, kind: str) -> None:
    io, result = tuned(world, tmp_path, layout(kind), specialise_steps=1, route_steps=2, control=False)
    assert result["tuning"]["after"]["loss"] > 0
    assert load(io.out_dir).spec.moe is not None


@pytest.mark.parametrize("kind", TUNED)
def test_a_paused_run_of_every_gate_goes_on_to_the_same_bytes(world: Path, tmp_path: Path, kind: str) -> None:
    laid = layout(kind, **EVERYTHING.get(kind, {}))
    if kind != "base":
        laid["capacity"] = {"train_factor": 1.0, "overflow": "learned"}
    spec = tune_spec(
        layout=laid, specialise_steps=0, control=False, balance_form="running",
        gate_noise=0.0 if kind == "hash" else 0.3, balance_bias_rate=0.01 if kind in BALANCED else 0.0,
    )  # fmt: skip
    whole, halted = RecordingIO(world, tmp_path / "whole"), RecordingIO(world, tmp_path / "halted")
    run_job("tune", spec, whole)
    pause(halted, spec, "route", 2)
    run_job("tune", spec, halted)
    assert hashes_of(halted.out_dir) == hashes_of(whole.out_dir)


@pytest.mark.parametrize("kind", REFUSED)
def test_the_others_are_refused_with_the_reason(world: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        SpecError, match=f"gate '{kind}' cannot be tuned: .*batch|gate '{kind}' cannot be tuned: .*later"
    ):
        tuned(world, tmp_path, layout(kind))


def test_a_hierarchy_learns_the_map_of_domains_on_every_level(world: Path, tmp_path: Path) -> None:
    laid = layout("hierarchical", num_domains=2)
    (tmp_path / "before").mkdir()
    first, _ = tuned(world, tmp_path / "before", laid, route_steps=0, control=False)
    (tmp_path / "after").mkdir()
    io, result = tuned(world, tmp_path / "after", laid, route_steps=12, specialise_steps=0)
    shares = {name: result["tuning"][name]["mapped_share"] for name in ("before", "after", "control")}
    assert shares["after"] > shares["control"] + 0.2
    assert shares["after"] >= shares["before"]
    for old, new in zip(load(first.out_dir).moe_layers(), load(io.out_dir).moe_layers(), strict=True):
        for name in ("domain_weight", "group_weight", "weight"):
            before, after = old.router.tensors[name], new.router.tensors[name]
            # A level of one choice has nothing to say.
            assert torch.allclose(before, after, atol=1e-5) == (name == "group_weight"), name


def test_experts_specialise_under_a_table_that_stays_as_it_is(world: Path, tmp_path: Path) -> None:
    io, result = tuned(world, tmp_path, layout("hash"), route_steps=4, control=False)
    tables = [mlp.router.tensors["table"] for mlp in load(io.out_dir).moe_layers()]
    (tmp_path / "plain").mkdir()
    other, _ = tuned(
        world, tmp_path / "plain", layout("hash"), specialise_steps=0, route_steps=0, control=False
    )
    plain = load(other.out_dir)
    for table, mlp in zip(tables, plain.moe_layers(), strict=True):
        assert torch.equal(table, mlp.router.tensors["table"])
    changed = [
        not torch.equal(new.experts.down_EDF, old.experts.down_EDF)
        for new, old in zip(load(io.out_dir).moe_layers(), plain.moe_layers(), strict=True)
    ]
    assert all(changed)
    assert [step for step in io.of("step") if step["stage"] == "route"] == []
    assert result["tuning"]["after"]["loss"] <= result["tuning"]["before"]["loss"] * 1.5
