"""What an engine would refuse when it starts is refused at the door, beside the field and with the way out."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import reverse
from django.utils import translation

from common.errors import Invalid
from deployments import services
from deployments.domains import routing_served
from deployments.engine_settings import EngineSettings
from deployments.models import Deployment, DeploymentRevision
from moe_core.errors import SpecError
from moe_core.model.domain_prior import DomainPrior
from registry.models import ModelVersion
from routing.services import map_create
from tests.apps.deployments.test_services import MAP, deploy, version  # noqa: F401
from tests.apps.registry.fixtures import DENSE, make_version, moe_spec

pytestmark = pytest.mark.django_db
ONE_EXPERT = {"num_experts": 8, "domains": [{**MAP["domains"][0], "experts": [3]}], "general_experts": []}  # type: ignore[index]


def drawn(people: Any, **policy: Any) -> int:
    """A map whose one domain has one expert, where a token goes to two."""
    return map_create(caller=people.owner, name="Bare", plan={**ONE_EXPERT, "policy": policy}).pk


def refused(people: Any, made: ModelVersion, **more: Any) -> dict[str, str]:
    with pytest.raises(Invalid) as refusal:
        deploy(people, made, **more)
    assert not Deployment.objects.exists()
    return refusal.value.fields


@pytest.mark.parametrize(
    ("policy", "chosen", "place"),
    [
        ({}, {"prior_mode": "mask"}, "settings.prior_mode"),
        ({"prior_mode": "mask"}, {}, "domain_map"),
        ({"prior_layers": {"3": {"mode": "mask"}}}, {}, "domain_map"),
    ],
)
def test_a_mask_that_leaves_too_few_experts_is_refused(
    people: Any,
    version: ModelVersion,  # noqa: F811
    policy: Any,
    chosen: Any,
    place: str,
) -> None:
    fields = refused(people, version, domain_map_id=drawn(people, **policy), settings=chosen)
    assert fields.keys() == {place}
    assert "would have 1 experts in a layer, and each token goes to 2" in fields[place]


def test_a_mode_of_the_deployment_stands_for_the_mask_of_the_map(people: Any, version: ModelVersion) -> None:  # noqa: F811
    pk = drawn(people, prior_mode="mask", prior_layers={"3": {"mode": "mask"}})
    made = deploy(people, version, domain_map_id=pk, settings={"prior_mode": "bias"})
    with pytest.raises(Invalid) as refusal:
        services.deployment_update(caller=people.owner, deployment_id=made.pk, settings={"prior_mode": None})
    assert refusal.value.fields.keys() == {"domain_map"}
    # As it may have been stored before such masks were refused.
    DeploymentRevision.objects.create(
        deployment=made, number=9, version=version, domains=made.domains, settings={"prior_mode": "mask"}
    )
    with pytest.raises(Invalid):
        services.deployment_rollback(caller=people.owner, deployment_id=made.pk, revision=9)


@pytest.mark.parametrize("roots", [None, (0, 1, 2, 3, 4, 5, 6, 3)])
@pytest.mark.parametrize("experts", [[3], [3, 7], [3, 4]])
def test_the_door_and_the_engine_agree_on_masks(
    people: Any, tmp_path: Any, roots: Any, experts: list[int]
) -> None:
    spec = moe_spec(num_experts=8, top_k=2)
    moe = spec.moe
    assert moe is not None
    twins = None if roots is None else {"roots": roots}
    spec = type(spec).parse({**spec.model_dump(), "moe": {**moe.model_dump(), "twins": twins}})
    made = make_version(people, tmp_path, spec=spec.model_copy(update={"family": "turnout_moe"}))
    plan = {**ONE_EXPERT, "domains": [{**ONE_EXPERT["domains"][0], "experts": experts}]}  # type: ignore[index]
    pk = map_create(caller=people.owner, name="Some", plan=plan).pk
    settings = {"prior_mode": "mask"}
    try:
        deploy(people, made, domain_map_id=pk, settings=settings)
        opened = True
    except Invalid:
        opened = False
    free = deploy(people, made, name="free", domain_map_id=pk)
    moe = type(spec).parse(made.spec).moe
    assert moe is not None
    try:
        DomainPrior.from_routing(
            routing_served(free.domains, EngineSettings.parse(settings)), num_moe_layers=2, num_experts=8,
            top_k=2, moe_layers=moe.moe_layers, twins=moe.twins,
        )  # fmt: skip
        started = True
    except SpecError:
        started = False
    assert opened == started


@pytest.mark.parametrize("kind", ["soft", "expert_choice"])
def test_a_gate_that_reads_ahead_is_refused_with_the_version(people: Any, tmp_path: Any, kind: str) -> None:
    made = make_version(people, tmp_path, spec=moe_spec(num_experts=8, top_k=2, gate={"kind": kind}))
    fields = refused(people, made)
    assert fields.keys() == {"version"} and "cannot answer token by token" in fields["version"]
    with translation.override("zh-hans"):
        assert "不能逐词元作答" in refused(people, made)["version"]
    form = {"name": "x", "version": made.pk, "replicas": 0, "dtype": "float32", "kv_tokens": 2048, "max_sequences": 4,
            "num_threads": 1, "domain_map": ""}  # fmt: skip
    reply = people.client("owner").post(reverse("deployments:new"), form)
    assert reply.status_code == 422 and reply.context["form"].errors.keys() == {"version"}


KINDS = [{"kind": "swiglu", "width": 12}] * 6 + [{"kind": "zero"}] * 2


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (moe_spec(num_experts=8, top_k=2, expert_kinds=KINDS), "several kinds"),
        (moe_spec(num_experts=24, top_k=2), "choose 24 or more"),
        (DENSE, "dense"),
    ],
)
@pytest.mark.parametrize("setting", ["resident_experts", "device_experts"])
def test_experts_that_cannot_come_and_go_are_refused(
    people: Any, tmp_path: Any, spec: Any, told: str, setting: str
) -> None:
    made = make_version(people, tmp_path, spec=spec)
    fields = refused(people, made, settings={setting: 20})
    assert fields.keys() == {f"settings.{setting}"} and told in fields[f"settings.{setting}"]
    with translation.override("zh-hans"):
        assert "null" in refused(people, made, settings={setting: 20})[f"settings.{setting}"]


@pytest.mark.parametrize(
    ("name", "value", "off"),
    [
        ("prior_mode", "mask", None),
        ("prior_strength", 2.0, None),
        ("prior_floor", 0.5, None),
        ("expert_affinity_steps", 9, 0),
    ],
)
def test_what_is_about_experts_is_refused_for_a_dense_version_and_waits_for_a_map_elsewhere(
    people: Any,
    tmp_path: Any,
    version: ModelVersion,  # noqa: F811
    name: str,
    value: Any,
    off: Any,
) -> None:
    dense = make_version(people, tmp_path, name="Dense")
    fields = refused(people, dense, settings={name: value})
    assert (
        fields.keys() == {f"settings.{name}"}
        and f"send {'null' if off is None else off}." in fields[f"settings.{name}"]
    )
    with translation.override("zh-hans"):
        assert "稠密" in refused(people, dense, settings={name: value})[f"settings.{name}"]
    deploy(people, dense, name="dense", settings={name: off})
    waiting = deploy(people, version, settings={name: value})
    assert waiting.settings[name] == value
    with pytest.raises(Invalid) as refusal:
        services.deployment_update(caller=people.owner, deployment_id=waiting.pk, version_id=dense.pk)
    assert refusal.value.fields.keys() == {f"settings.{name}"}
    moved = services.deployment_update(
        caller=people.owner, deployment_id=waiting.pk, version_id=dense.pk, settings={name: off}
    )
    assert moved.desired_version == dense


def test_everything_idle_is_told_at_once(people: Any, tmp_path: Any) -> None:
    dense = make_version(people, tmp_path, name="Dense")
    fields = refused(people, dense, settings={"prior_mode": "bias", "expert_affinity_steps": 9})
    assert fields.keys() == {"settings.prior_mode", "settings.expert_affinity_steps"}
