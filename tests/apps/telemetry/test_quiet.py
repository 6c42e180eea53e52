"""A board on which nothing happens: it keeps its lamps, tells how old it is, and claims nothing that is over."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from deployments.models import Deployment, Replica
from telemetry.boards import GAUGE_LIFE_S, WINDOW_S
from telemetry.ingest import Ingester
from telemetry.models import Board
from telemetry.selectors import board_snapshot, routing_of_window
from telemetry.views import verdict_of
from tests.apps.registry.fixtures import DENSE, make_version, moe_spec
from tests.apps.telemetry.samples import SHAPE, counts, sample

pytestmark = pytest.mark.django_db
AXES = {"layers": list(SHAPE.layers), "num_experts": SHAPE.num_experts, "num_layers": DENSE.num_hidden_layers}


@pytest.fixture
def replica(replica: Replica) -> Replica:
    replica.deployment.refresh_from_db()
    return replica


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is published."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("telemetry.ingest.publish", lambda topic, frame: told.append(json.loads(frame)))
    monkeypatch.setattr("telemetry.ingest.is_watched", lambda kind: True)
    return told


def axes(told: dict[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in AXES}


def test_a_board_that_never_heard_a_sample_has_its_lamps_and_no_age(replica):
    shot = board_snapshot(replica.deployment)
    assert axes(shot) == AXES
    assert (shot["seq"], shot["sampled_ms"], shot["gauges"]["engines"]) == (0, None, 0)


def test_frames_keep_the_lamps_when_the_last_minute_has_emptied(replica, frames):
    ingester, now = Ingester(), time.time()
    ingester.write([sample(replica, 1, counts(1), t_s=now - 2 * WINDOW_S, tokens=9)])
    assert frames[-1]["output_tokens"] == 0
    assert axes(frames[-1]) == AXES


def test_a_sample_of_another_version_does_not_take_the_lamps_away(replica, frames, people, tmp_path):
    """While a new version is tried its engine speaks already, and the live one's is silent."""
    other = make_version(people, tmp_path, name="other", spec=moe_spec())
    Deployment.objects.filter(pk=replica.deployment_id).update(live_version=other)
    Ingester().write([sample(replica, 1, counts(1), t_s=time.time())])
    assert frames[-1]["version"] == other.pk
    assert axes(frames[-1]) == AXES
    assert board_snapshot(replica.deployment)["num_experts"] == AXES["num_experts"]


def test_a_window_without_tokens_has_its_axes_in_the_api_too(replica):
    found = routing_of_window(replica.deployment, 600)
    assert (found["layers"], found["num_experts"], found["total"]) == (AXES["layers"], AXES["num_experts"], 0)
    assert np.array(found["counts"]).shape == (2, 1, len(SHAPE.layers), SHAPE.num_experts)


def test_a_board_is_as_old_as_its_newest_sample_however_often_it_is_sent(replica):
    then = time.time() - 40
    Ingester().write([sample(replica, 1, counts(1), t_s=then)])
    for _ in range(2):
        assert board_snapshot(replica.deployment)["sampled_ms"] == int(then * 1000)


def test_a_late_sample_does_not_make_a_board_older(replica, frames):
    now, ingester = time.time(), Ingester()
    ingester.write([sample(replica, 1, counts(1), t_s=now)])
    ingester.write([sample(replica, 2, counts(1) + counts(2), t_s=now - 30)])
    assert [frame["sampled_ms"] for frame in frames] == [int(now * 1000)] * 2
    assert Board.objects.get().sampled_ms == int(now * 1000)


def test_what_an_engine_said_before_it_fell_silent_is_not_now(replica):
    Ingester().write([sample(replica, 1, counts(1), t_s=time.time())])
    assert board_snapshot(replica.deployment)["gauges"]["running"] == 1
    board = Board.objects.get()
    Board.objects.update(at=board.at.fromtimestamp(time.time() - GAUGE_LIFE_S - 1, board.at.tzinfo))
    assert board_snapshot(replica.deployment)["gauges"] == {
        "running": 0, "waiting": 0, "kv_used": 0, "kv_total": 0, "decode_threads": 0, "engines": 0,
    }  # fmt: skip


def test_the_first_words_say_what_to_do_next(replica, people, tmp_path):
    deployment = replica.deployment
    assert verdict_of(deployment)["more"] == "playground"
    deployment.live_version = None
    assert verdict_of(deployment)["more"] == "deployment"
    deployment.live_version = make_version(people, tmp_path, name="dense")
    assert verdict_of(deployment)["strong"] == "This version has no experts: there is no routing to watch."


@pytest.mark.parametrize(("num_asleep", "words"), [(1, "but 1 is asleep"), (2, "but 2 are asleep")])
def test_one_expert_that_sleeps_is_not_counted_as_many(replica, num_asleep, words):
    total = np.full(SHAPE.zeros().shape, 10, np.int64)
    total[..., 0, :num_asleep] = 0
    now = time.time()
    Ingester().write([sample(replica, 1, 0 * total, t_s=now - 2), sample(replica, 2, total, t_s=now - 1)])
    assert words in verdict_of(replica.deployment)["strong"]
