"""Prometheus, the board and the API tell the same numbers, from the same samples."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from prometheus_client.registry import CollectorRegistry

from deployments.models import Deployment, Replica
from telemetry.ingest import Ingester
from telemetry.metrics import registry_of
from telemetry.selectors import board_snapshot, routing_of_window
from tests.apps.telemetry.samples import counts, sample

pytestmark = pytest.mark.django_db
DOMAINS = {
    "domains": [
        {"code": "support", "name_en": "Support", "name_zh": "客服", "experts": [0]},
        {"code": "copy", "name_en": "Copy", "name_zh": "文案", "experts": [1, 2]},
    ]
}


@pytest.fixture
def replica(replica: Replica) -> Replica:
    Deployment.objects.filter(pk=replica.deployment_id).update(domains=DOMAINS)
    replica.deployment.refresh_from_db()
    return replica


@pytest.fixture
def frame(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The last frame of three samples, one expert asleep."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("telemetry.ingest.publish", lambda topic, frame: told.append(json.loads(frame)))
    monkeypatch.setattr("telemetry.ingest.is_watched", lambda kind: True)
    now, total, reach, ingester = time.time(), counts(0) * 0, np.zeros((2, 3, 2), dtype=np.int64), Ingester()
    for seq in range(1, 4):
        total, reach = (
            total + counts(seq),
            reach + np.array([[[9, 0], [20, 7], [0, 0]], [[5, 0], [30, 24], [8, 8]]]),
        )
        total[:, :, 1, 5] = 0
        one = sample(replica, seq, total, t_s=now - 4 + seq, tokens=40 * seq, first_ms=(12.0,) * seq)
        one.total.cube.reach_PN2 = reach.copy()
        ingester.write([one])
    return told[-1]


def registry(replica: Replica) -> CollectorRegistry:
    return registry_of(replica.deployment.team, int(time.time()))


def value(replica: Replica, name: str, **more: str) -> float | None:
    labels = {"model_name": replica.deployment.name, "deployment": str(replica.deployment_id), **more}
    return registry(replica).get_sample_value(name, labels)


def test_balance_and_shares_are_those_of_the_board_and_the_api(replica, frame):
    found = routing_of_window(replica.deployment, 60)
    assert value(replica, "moe_layer_max_violation") == pytest.approx(frame["max_vio"], abs=1e-4)
    assert found["max_vio"] == frame["max_vio"]
    assert found["num_asleep"] == 1
    num_cells = len(frame["layers"]) * frame["num_experts"]
    assert value(replica, "moe_dead_expert_ratio") == pytest.approx(found["num_asleep"] / num_cells)
    for code, share in {"support": 31 / 50, "copy": 1.0}.items():
        assert value(replica, "moe_domain_mapped_share", domain=code) == pytest.approx(share)
        assert found["mapped_share_by_domain"][code] == pytest.approx(share)
    assert found["mapped_share"] == pytest.approx(39 / 58, abs=1e-4)
    assert value(replica, "moe_domain_mapped_share", domain="") is None


def test_tokens_latencies_and_gauges_are_those_of_the_board(replica, frame):
    assert value(replica, "vllm:generation_tokens_total") == frame["output_tokens"] == 120
    assert value(replica, "vllm:prompt_tokens_total") == frame["prompt_tokens"] == 360
    count = value(replica, "vllm:time_to_first_token_seconds_bucket", le="+Inf")
    assert count == frame["first_token"]["count"] == 3
    above = [
        one.value
        for family in registry(replica).collect()
        for one in family.samples
        if one.name == "vllm:time_to_first_token_seconds_bucket"
        and float(one.labels["le"]) * 1000 >= frame["first_token"]["p95"]
    ]
    assert set(above) == {3.0}
    gauges = frame["gauges"]
    assert value(replica, "vllm:num_requests_running") == gauges["running"]
    assert value(replica, "vllm:num_requests_waiting") == gauges["waiting"]
    assert value(replica, "turnout:decode_threads") == gauges["decode_threads"] == 2
    assert value(replica, "vllm:kv_cache_usage_perc") == gauges["kv_used"] / gauges["kv_total"]


def test_a_quiet_deployment_claims_no_balance_and_no_running_request(replica, frame):
    later = int(time.time()) + 120
    quiet = registry_of(replica.deployment.team, later)
    labels = {"model_name": replica.deployment.name, "deployment": str(replica.deployment_id)}
    assert quiet.get_sample_value("moe_layer_max_violation", labels) is None
    assert quiet.get_sample_value("vllm:num_requests_running", labels) == 0
    assert quiet.get_sample_value("turnout:decode_threads", labels) == 0
    assert quiet.get_sample_value("vllm:generation_tokens_total", labels) == 120


def test_a_snapshot_after_the_frame_is_the_frame(replica, frame):
    shot = board_snapshot(replica.deployment)
    assert {name: shot[name] for name in ("reach", "counts", "max_vio", "sampled_ms", "seq")} == {
        name: frame[name] for name in ("reach", "counts", "max_vio", "sampled_ms", "seq")
    }
