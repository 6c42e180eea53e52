"""A deployment may have another prior than its domain map: by REST, by the form, and taken back by it."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import reverse

from deployments.domains import routing_served
from deployments.engine_settings import EngineSettings
from deployments.models import Deployment
from moe_core.spec.routing import LayerPrior
from registry.models import ModelVersion
from routing.services import map_create
from tests.apps.deployments.test_services import MAP, deploy, version  # noqa: F401
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
FORM = {
    "name": "shop", "replicas": 0, "dtype": "float32", "kv_tokens": 2048, "max_sequences": 4, "num_threads": 1,
    "domain_map": "",
}  # fmt: skip


def prior_of(made: Deployment) -> LayerPrior:
    """What its engines do in the first layer with experts."""
    made.refresh_from_db()
    return routing_served(made.domains, EngineSettings.parse(made.settings)).prior_in(1)


def changed(people: Any, made: Deployment, **fields: Any) -> Any:
    form = {**FORM, "version": made.desired_version_id, "domain_map": "as-served", **fields}
    update = {f"update-{name}": value for name, value in form.items()}
    return people.client("owner").post(reverse("deployments:update", args=[made.pk]), update)


def test_a_floor_goes_by_rest_in_place_of_the_policy_of_the_map(people: Any, version: ModelVersion) -> None:  # noqa: F811
    plan = {**MAP, "policy": {"prior_floor": 0.6, "prior_layers": {"1": {"mode": "mask"}}}}
    domain_map = map_create(caller=people.owner, name="Domains", plan=plan)
    body = {"name": "support", "version": version.pk, "domain_map": domain_map.pk}
    reply = people.client("owner").post(
        "/api/v1/deployments/", {**body, "settings": {"prior_mode": "floor"}}, content_type="application/json"
    )
    assert reply.status_code == 202, reply.content
    made = Deployment.objects.get(name="support")
    assert prior_of(made) == LayerPrior(mode="floor", floor=0.6)
    reply = people.client("owner").patch(
        f"/api/v1/deployments/{made.pk}/", {"settings": {"prior_mode": "floor", "prior_floor": 0.9}},
        content_type="application/json",
    )  # fmt: skip
    assert reply.status_code == 202, reply.content
    assert prior_of(made) == LayerPrior(mode="floor", floor=0.9)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused_by_name(people: Any, version: ModelVersion, share: float) -> None:  # noqa: F811
    reply = people.client("owner").post(
        "/api/v1/deployments/", {"name": "x", "version": version.pk, "settings": {"prior_floor": share}},
        content_type="application/json",
    )  # fmt: skip
    assert reply.status_code == 422 and reply.json()["errors"][0]["field"] == "settings.prior_floor"


def test_a_floor_is_refused_beside_a_gate_that_chooses_by_a_table(people: Any, tmp_path: Any) -> None:
    made = make_version(people, tmp_path, spec=moe_spec(num_experts=8, top_k=2, gate={"kind": "hash"}))
    form = {**FORM, "version": made.pk, "prior_mode": "floor"}
    reply = people.client("owner").post(reverse("deployments:new"), form)
    assert reply.status_code == 422
    assert "chooses by a table" in reply.context["form"].errors["prior_mode"][0]


@pytest.mark.parametrize(
    ("mode", "name", "value"), [("floor", "prior_floor", 0.8), ("bias", "prior_strength", 4.0)]
)
def test_a_prior_is_chosen_shown_and_taken_back_by_the_form(
    people: Any,
    version: ModelVersion,  # noqa: F811
    mode: str,
    name: str,
    value: float,
) -> None:
    domain_map = map_create(caller=people.owner, name="Domains", plan=MAP)
    made = deploy(people, version, domain_map_id=domain_map.pk)
    assert changed(people, made, prior_mode=mode, **{name: value}).status_code == 302
    prior = prior_of(made)
    assert prior.mode == mode and value in (prior.floor, prior.strength)
    address = reverse("deployments:detail", args=[made.pk])
    assert f'name="update-{name}" value="{value}"' in people.client("owner").get(address).content.decode()
    # Who may only look sees no form.
    seen = people.client("teammate").get(address).content.decode()
    assert "<dt>Named domains</dt>" in seen and f"<dd>{value:.2f}" in seen
    assert changed(people, made, prior_mode="", **{name: ""}).status_code == 302
    assert prior_of(made) == LayerPrior()
    assert not {"prior_mode", name} & made.settings.keys()


def test_the_form_of_a_new_deployment_bounds_the_prior(people: Any, version: ModelVersion) -> None:  # noqa: F811
    form = {**FORM, "version": version.pk, "prior_mode": "floor", "prior_floor": 1.0, "prior_strength": 51}
    reply = people.client("owner").post(reverse("deployments:new"), form)
    assert reply.status_code == 422
    assert {"prior_floor", "prior_strength"} <= reply.context["form"].errors.keys()
