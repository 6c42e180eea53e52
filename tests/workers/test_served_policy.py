"""An engine is told the whole policy of its deployment's domain map, and routes by it."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.models import Deployment, Replica
from deployments.services import deployment_create
from moe_core.spec import RoutingSpec, ServeSpec
from moe_core.spec.routing import LayerPrior
from registry.models import ModelVersion
from routing.services import map_create
from tests.apps.deployments.stack import SETTINGS, ready_replicas, real_version, serving_stack, until
from workers.engine_http import UnixConnection
from workers.engine_process import serve_spec

# Each field is other than its default.
POLICY = {
    "prior_mode": "floor", "prior_strength": 3.0, "prior_floor": 0.99,
    "prior_layers": {"1": {"mode": "mask"}, "2": {"mode": "none"}},
}  # fmt: skip
OWN, GENERAL = {0, 2}, {3}
MAP = {
    "num_experts": 4,
    "general_experts": sorted(GENERAL),
    "domains": [{"code": "support", "name_en": "Support", "name_zh": "客服", "experts": sorted(OWN)}],
    "policy": POLICY,
}
SHARED = RoutingSpec.model_fields.keys() & ServeSpec.model_fields.keys()


@pytest.fixture
def version(people: Any, tmp_path: Path) -> ModelVersion:
    return real_version(people, tmp_path)


def deploy(people: Any, version: ModelVersion, **chosen: Any) -> Deployment:
    domain_map = map_create(caller=people.owner, name="By layer", plan=MAP)
    return deployment_create(
        caller=people.owner, name="support", version_id=version.pk, domain_map_id=domain_map.pk,
        settings=SETTINGS | chosen,
    )  # fmt: skip


def told(deployment: Deployment, settings: Any, folder: Path) -> ServeSpec:
    """What an engine of the deployment would be started with."""
    settings.DATA_DIR, settings.RUN_DIR = folder / "data", Path("/tmp")
    replica = Replica(
        deployment=deployment, version=deployment.desired_version, revision=deployment.revision, pk=1
    )
    return serve_spec(replica, 1)


@pytest.mark.django_db
def test_every_field_that_maps_and_engines_share_arrives(
    people: Any, version: ModelVersion, settings: Any, tmp_path: Path
) -> None:
    defaults = RoutingSpec()
    wanted = RoutingSpec.parse({**{name: MAP[name] for name in ("domains", "general_experts")}, **POLICY})
    spec = told(deploy(people, version), settings, tmp_path)
    for name in SHARED:
        assert getattr(wanted, name) != getattr(defaults, name), f"{name} is not tried"
        assert getattr(spec, name) == getattr(wanted, name), name
    assert spec.routing() == wanted


@pytest.mark.django_db
def test_what_each_memory_holds_arrives(
    people: Any, version: ModelVersion, settings: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("workers.engine_process.expert_uses", lambda *asked: [[3, 1], [1, 3]])
    spec = told(deploy(people, version, device_experts=9), settings, tmp_path)
    assert (spec.device_experts, spec.resident_experts) == (9, None)
    # What is read first, as without a GPU.
    assert spec.expert_uses == ((3, 1), (1, 3))


@pytest.mark.django_db
def test_a_mode_of_the_deployment_is_for_every_layer(
    people: Any, version: ModelVersion, settings: Any, tmp_path: Path
) -> None:
    routing = told(deploy(people, version, prior_mode="none"), settings, tmp_path).routing()
    assert routing.domains and not routing.has_prior


@pytest.mark.django_db
def test_settings_from_before_a_pair_was_refused_still_serve(
    people: Any, version: ModelVersion, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.engine_settings.guessing_misfit", lambda *_: None)
    spec = told(deploy(people, version, batch_invariant=True, ngram_tokens=4), settings, tmp_path)
    assert (spec.batch_invariant, spec.ngram_tokens) == (True, 0)


@pytest.mark.django_db
def test_a_strength_of_the_deployment_leaves_rules_of_layers(
    people: Any, version: ModelVersion, settings: Any, tmp_path: Path
) -> None:
    routing = told(deploy(people, version, prior_strength=7.0), settings, tmp_path).routing()
    assert (routing.prior_mode, routing.prior_strength) == ("floor", 7.0)
    assert routing.prior_in(1) == LayerPrior(mode="mask")


def routed(socket: str, domain: str | None) -> np.ndarray:
    """(tokens, layers, top_k): the experts that a served engine chose for one request."""
    body = {
        "prompt_ids": list(range(40, 72)), "max_tokens": 16, "ignore_eos": True, "routed_experts": True, "domain": domain,
    }  # fmt: skip
    with closing(UnixConnection(Path(socket), 60)) as link:
        link.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
        lines = [json.loads(line) for line in link.getresponse().read().splitlines()]
    record = next(base64.b64decode(line["routed_experts"]) for line in lines if "routed_experts" in line)
    return np.frombuffer(record, "<i4").reshape(-1, 3, 2)


@pytest.mark.django_db(transaction=True)
def test_a_served_engine_routes_by_the_layers_and_the_floor_of_its_map(
    people: Any, version: ModelVersion, settings: Any, tmp_path: Path
) -> None:
    with serving_stack(settings, tmp_path):
        deployment = deploy(people, version)
        (replica,) = until(lambda: ready_replicas(deployment))
        named, unnamed = (routed(replica.address, domain) for domain in ("support", None))
    own = [np.isin(named[:, layer], [*OWN]).mean() for layer in range(3)]
    assert own[0] > 0.95, "the floor of 0.99 in layer 0"
    assert set(named[:, 1].ravel()) <= OWN | GENERAL, "the mask of layer 1"
    assert set(named[:, 2].ravel()) == set(range(4)), "no prior in layer 2"
    assert set(unnamed[:, 1].ravel()) == set(range(4))
