"""Samples made by hand: what an engine would say, without one."""

from __future__ import annotations

from typing import Any

import numpy as np

from deployments.models import Deployment, Node, Replica
from deployments.services import deployment_create
from registry.models import ModelVersion
from telemetry import latency
from telemetry.cube import Cube, Shape
from telemetry.models import Rollup
from telemetry.sample import Sample
from telemetry.tally import Tally
from tests.apps.registry.fixtures import make_version, moe_spec

SHAPE = Shape(("", "support", "copy"), (1, 3), 8)
NOW_S = 1_800_000_000


def served_replica(people: Any, folder: Any, *, name: str = "support") -> Replica:
    """Rows of a replica that serves, as if an agent had written them."""
    version: ModelVersion = make_version(people, folder, name=name, spec=moe_spec())
    deployment = deployment_create(caller=people.owner, name=name, version_id=version.pk)
    node, _made = Node.objects.get_or_create(name="node-1")
    Deployment.objects.filter(pk=deployment.pk).update(live_version=version, live_revision=1)
    return Replica.objects.create(
        deployment=deployment, version=version, revision=1, node=node, state="ready", address="x", epoch=1
    )


def counts(seed: int, *, high: int = 50) -> np.ndarray:
    """Some counts of SHAPE."""
    return np.random.default_rng(seed).integers(0, high, SHAPE.zeros().shape).astype(np.int64)


def sample(
    replica: Replica, seq: int, total: np.ndarray, *, t_s: float = NOW_S, tokens: int = 0, epoch: int = 1,
    first_ms: tuple[float, ...] = (), shape: Shape = SHAPE,
) -> Sample:  # fmt: skip
    """The totals of an engine at one moment."""
    first = latency.empty()
    latency.add(first, first_ms)
    return Sample(
        deployment=replica.deployment_id,
        version=replica.version_id,
        replica=replica.pk,
        epoch=epoch,
        seq=seq,
        t_ms=int(t_s * 1000),
        total=Tally(
            Cube(shape, total.copy(), shape.no_reach()), 3 * tokens, tokens, 0, first, latency.empty()
        ),
        gauges={"running": 1, "waiting": 0, "kv_used": 16, "kv_total": 64, "decode_threads": 2},
    )


def summed(resolution_s: int) -> np.ndarray:
    """All counts of one resolution."""
    total = Tally()
    for row in Rollup.objects.filter(resolution_s=resolution_s).order_by("start_s"):
        total = total.plus(Tally.of_row(row))
    return total.cube.counts_PNLE
