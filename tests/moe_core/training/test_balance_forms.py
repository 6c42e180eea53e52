"""Whose load the balance loss of a job goes by, and the importance of experts: each field changes what is learnt, as said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_core.checkpoint.store import load
from moe_core.errors import SpecError
from moe_core.routers import Routing, load_of
from moe_core.routers.losses import balance_loss, importance_loss, sequence_balance_loss
from moe_core.spec import TuneSpec
from moe_core.training import run_job, workbench
from moe_core.training.forward import Pass, forward
from moe_core.training.lanes import Lanes
from moe_core.training.recipes.tune_router import TuneRouter
from moe_core.training.routing_losses import Meeting, routing_loss
from tests.moe_core.training.world import RecordingIO, tune_spec

FORMS = ("running", "switch", "sequence", "global")
ALONE = {"label_weight": 0.0, "balance_weight": 1.0}


def spec_with(**fields: Any) -> dict[str, Any]:
    plain = tune_spec(specialise_steps=0, route_steps=3, control=False, explore=False, lm_weight=0.0)
    routing = {**plain["routing"], **ALONE}
    if "balance_weight" in fields:
        routing["balance_weight"] = fields.pop("balance_weight")
    return {**plain, "routing": routing, **fields}


def learner(world: Path, num_lanes: int, **routing: Any) -> tuple[Lanes, TuneRouter]:
    spec = TuneSpec.parse(spec_with(**routing))
    inputs = {name: world / name for name in ("model", "train.jsonl", "held_out.jsonl")}
    bench, lanes = workbench.build(spec, inputs), Lanes(num_lanes)
    return lanes, TuneRouter(lanes, bench.cut, bench.train, spec.routing, spec)


def first_gradients(
    world: Path, num_lanes: int, monkeypatch: pytest.MonkeyPatch, **routing: Any
) -> list[Tensor]:
    lanes, tuner = learner(world, num_lanes, **routing)
    found: list[list[Tensor]] = []
    monkeypatch.setattr(
        tuner, "_learn", lambda gradients, rate: found.append([g.clone() for g in gradients]) or 0.0
    )
    with lanes:
        tuner.step(0)
    return found[0]


def test_the_global_form_is_the_same_on_any_number_of_lanes(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form, alike in (("global", True), ("switch", False)):
        one, two = (first_gradients(world, lanes, monkeypatch, balance_form=form) for lanes in (1, 2))
        near = [torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(one, two, strict=True)]
        assert all(near) == alike, form


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_the_loss_of_that_name(world: Path, form: str) -> None:
    _, tuner = learner(world, 1, balance_form=form)
    passed = forward(tuner.cut, tuner.cache, list(range(6)))
    share_LE = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
    found = routing_loss(passed, tuner.spec, tuner.labels_NE, share_LE, None, tuner.gate)
    slow: dict[str, Callable[[Routing, Tensor], Tensor]] = {
        "running": lambda routing, share_E: balance_loss(routing, passed.real_T, share_E),
        "global": lambda routing, share_E: balance_loss(routing, passed.real_T, share_E),
        "switch": lambda routing, share_E: balance_loss(routing, passed.real_T),
        "sequence": lambda routing, share_E: sequence_balance_loss(
            routing, passed.real_T, torch.arange(6).repeat_interleave(32)
        ),
    }
    each = [slow[form](routing, share_LE[at]) for at, routing in enumerate(passed.routings.values())]
    torch.testing.assert_close(found, torch.stack(each).mean())


def test_importance_counts_by_its_weight(world: Path) -> None:
    _, tuner = learner(world, 1, balance_weight=0.0, importance_weight=0.7)
    passed = forward(tuner.cut, tuner.cache, list(range(6)))
    found = routing_loss(passed, tuner.spec, tuner.labels_NE, torch.full((2, 4), 0.25), None, tuner.gate)
    each = [importance_loss(routing, passed.real_T) for routing in passed.routings.values()]
    torch.testing.assert_close(found, 0.7 * torch.stack(each).mean())


def test_lanes_that_meet_see_the_load_of_all(world: Path) -> None:
    _, tuner = learner(world, 2)
    passes = [forward(tuner.cut, tuner.cache, places) for places in ([0, 1], [7, 8, 9])]
    meeting = Meeting(2)
    with Lanes(2) as lanes:
        first, second = lanes.each(lambda lane: meeting.share(lane, passes[lane]), range(2))
    assert torch.equal(first, second)
    for at, layer in enumerate(passes[0].routings):
        load_E = sum(load_of(passed.routings[layer], passed.real_T) for passed in passes)
        assert isinstance(load_E, Tensor)
        torch.testing.assert_close(first[at], load_E / load_E.sum())


def test_what_is_remembered_is_what_gates_want_though_experts_are_full(world: Path) -> None:
    """A capacity that binds makes what experts take even, whatever gates want; there is nothing to learn from it."""
    _, tuner = learner(world, 1, explore=True, capacity={"train_factor": 1.0, "overflow": "next_best"})
    with torch.no_grad():
        for gate in tuner.gates.values():
            gate.mul_(30.0)
    before_LE = tuner._load_LE.clone()
    surroundings = tuner._surroundings(0, 0)
    passes = [forward(tuner.cut, tuner.cache, places, None, surroundings) for places in ([0, 1], [7, 8, 9])]
    tuner._remember_load(passes)
    for at, layer in enumerate(passes[0].routings):
        routings = [(passed.routings[layer], passed.real_T) for passed in passes]
        wanted = torch.cat([routing.wanted_TK[real_T].flatten() for routing, real_T in routings])
        taken = torch.cat([routing.expert_ids_TK[real_T].flatten() for routing, real_T in routings])
        share_E, taken_E = (
            torch.bincount(ids[ids >= 0], minlength=4) / wanted.numel() for ids in (wanted, taken)
        )
        assert float(share_E.max() - taken_E.max()) > 0.05, "the capacity must bind"
        torch.testing.assert_close(tuner._load_LE[at], (before_LE[at] + share_E) / 2)


def test_a_lane_that_fails_does_not_leave_the_others_waiting(world: Path) -> None:
    _, tuner = learner(world, 2)
    passed, meeting = forward(tuner.cut, tuner.cache, [0, 1]), Meeting(2)

    def work(lane: int) -> Pass:
        with meeting:
            if lane:
                raise ArithmeticError("this lane fails")
            meeting.share(lane, passed)
        return passed

    with Lanes(2) as lanes, pytest.raises(ArithmeticError, match="this lane fails"):
        lanes.each(work, range(2))


def test_a_job_learns_otherwise_by_each_of_them(world: Path, tmp_path: Path) -> None:
    made: dict[str, Tensor] = {}
    for name, fields in {
        **{form: {"balance_form": form} for form in FORMS}, "importance": {"importance_weight": 1.0},
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        io = RecordingIO(world, tmp_path / name)
        run_job("tune", spec_with(**fields), io)
        made[name] = torch.stack([mlp.router.tensors["weight"] for mlp in load(io.out_dir).moe_layers()])
    names = list(made)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            assert not torch.equal(made[one], made[other]), (one, other)


def test_sequences_of_unlike_experts_are_judged_by_work() -> None:
    probs_TE = torch.tensor([[0.75, 0.25]]).expand(4, -1)
    ids_TK = torch.tensor([[0], [0], [0], [1]])
    routing = Routing(ids_TK, torch.ones(4, 1), probs_TE.log(), probs_TE)
    real_T, one = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.int64)
    # Expert 1 costs three times as much: loads of 3 and 1 are even work.
    found = sequence_balance_loss(routing, real_T, one, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(found, balance_loss(routing, real_T, cost_E=torch.tensor([1.0, 3.0])))
    assert float(found) == pytest.approx(1.0)


def test_an_unknown_form_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="balance_form: this must be one of these: 'running'"):
        TuneSpec.parse(spec_with(balance_form="sometimes"))
