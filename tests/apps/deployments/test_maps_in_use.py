"""A map or a layout that something uses stays; what was deleted earlier takes nothing from what serves."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from common.errors import Conflict, Invalid
from deployments import services
from deployments.domains import check_fits, codes_of
from deployments.forms import AS_SERVED
from deployments.models import Deployment
from jobs.models import Job
from jobs.pages import lineage_of
from layouts.models import Layout
from registry.models import ModelVersion
from routing.models import DomainMap
from routing.services import map_create, map_delete, map_revise
from tests.apps.deployments.test_services import MAP, deploy, version  # noqa: F401
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db


@pytest.fixture
def domain_map(people: Any) -> DomainMap:
    return map_create(caller=people.owner, name="Domains", plan=MAP)


@pytest.fixture
def mapped(people: Any, version: ModelVersion, domain_map: DomainMap) -> Deployment:  # noqa: F811
    return deploy(people, version, domain_map_id=domain_map.pk)


def orphaned(mapped: Deployment) -> Deployment:
    """The deployment after its map is gone, as an installation of before may hold it."""
    DomainMap.objects.all().delete()
    mapped.refresh_from_db()
    return mapped


def test_a_map_that_a_deployment_uses_is_kept_and_its_users_are_named(people, mapped, domain_map):
    reply = people.client("owner").delete(f"/api/v1/domain-maps/{domain_map.pk}/")
    assert reply.status_code == 409
    assert reply.json()["code"] == "in_use"
    assert "“support”" in reply.json()["detail"]
    assert DomainMap.objects.filter(pk=domain_map.pk).exists()
    services.deployment_delete(caller=people.owner, deployment_id=mapped.pk)
    assert people.client("owner").delete(f"/api/v1/domain-maps/{domain_map.pk}/").status_code == 204


@pytest.mark.parametrize(("state", "refused"), [("queued", True), ("paused", True), ("failed", False)])
def test_a_map_that_an_open_job_uses_is_kept(people, domain_map, state, refused):
    ended = domain_map.created_at if state == "failed" else None
    job = Job.objects.create(
        team=people.owner.team, kind="tune", name="t", state=state, ended_at=ended,
        inputs={"domain_map": {"id": domain_map.pk, "name": "Domains", "revision": 1}},
    )  # fmt: skip
    if refused:
        with pytest.raises(Conflict, match=f"job {job.pk}"):
            map_delete(caller=people.owner, map_id=domain_map.pk)
    else:
        map_delete(caller=people.owner, map_id=domain_map.pk)


def test_a_layout_that_made_what_serves_is_kept(people, tmp_path):
    base = make_version(people, tmp_path, name="Dense")
    layout = Layout.objects.create(team=people.owner.team, name="Eight", base_version=base, spec={})
    lineage = {"layout_id": layout.pk, "layout_revision": 1}
    made = deploy(people, make_version(people, tmp_path, name="Moe", spec=moe_spec(), lineage=lineage))
    url = f"/api/v1/layouts/{layout.pk}/"
    reply = people.client("owner").delete(url)
    assert reply.status_code == 409 and "“support”" in reply.json()["detail"]
    services.deployment_delete(caller=people.owner, deployment_id=made.pk)
    assert people.client("owner").delete(url).status_code == 204


def test_the_users_of_another_team_are_neither_asked_nor_named(people, mapped, domain_map):
    Deployment.objects.update(team=people.outsider.team)
    map_delete(caller=people.owner, map_id=domain_map.pk)


def test_another_precision_keeps_the_domains_as_they_are_served(people, mapped, domain_map):
    plan = {**MAP, "domains": [{**MAP["domains"][0], "code": "renamed"}]}
    map_revise(caller=people.owner, map_id=domain_map.pk, expected_revision=1, plan=plan)
    same = {"caller": people.owner, "deployment_id": mapped.pk}
    assert codes_of(services.deployment_update(**same, settings={"dtype": "float32"})) == ("support",)
    assert codes_of(services.deployment_update(**same, domain_map_id=domain_map.pk)) == ("renamed",)


def test_domains_outlive_their_map(people, mapped):
    same = {"caller": people.owner, "deployment_id": orphaned(mapped).pk}
    assert codes_of(services.deployment_update(**same, settings={"dtype": "float32"})) == ("support",)
    assert codes_of(services.deployment_update(**same, domain_map_id=None)) == ()


def test_kept_domains_are_held_against_the_next_version(people, mapped, tmp_path):
    dense = make_version(people, tmp_path, name="Dense")
    with pytest.raises(Invalid, match="dense"):
        services.deployment_update(caller=people.owner, deployment_id=mapped.pk, version_id=dense.pk)


def test_the_change_form_keeps_the_domains_unless_told_otherwise(people, mapped):
    client, url = people.client("owner"), f"/deployments/{orphaned(mapped).pk}/"
    page = client.get(url).content.decode()
    assert f'<option value="{AS_SERVED}" selected>as served: Domains r1</option>' in page
    wanted = {
        "update-version": mapped.desired_version_id, "update-dtype": "float32", "update-kv_tokens": 4096,
        "update-max_sequences": 4, "update-num_threads": 1,
    }  # fmt: skip
    assert client.post(f"{url}update/", {**wanted, "update-domain_map": AS_SERVED}).status_code == 302
    mapped.refresh_from_db()
    assert mapped.settings["dtype"] == "float32" and codes_of(mapped) == ("support",)
    assert client.post(f"{url}update/", {**wanted, "update-domain_map": ""}).status_code == 302
    mapped.refresh_from_db()
    assert codes_of(mapped) == ()
    assert AS_SERVED not in client.get(url).content.decode()


def test_the_playground_offers_what_the_deployment_serves(people, mapped):
    orphaned(mapped)
    page = people.client("owner").get("/playground/?model=support").content.decode()
    assert '<option value="support">Support</option>' in page
    chinese = people.client("owner")
    chinese.cookies["django_language"] = "zh-hans"
    assert '<option value="support">客服</option>' in chinese.get("/playground/").content.decode()


def test_a_version_names_what_is_gone_without_a_link(people, tmp_path, domain_map):
    lineage = {"map_id": domain_map.pk, "map_revision": 1, "layout_id": 4711, "layout_revision": 2}
    made = make_version(people, tmp_path, name="Moe", spec=moe_spec(), lineage=lineage)
    page = people.client("owner").get(f"/versions/{made.pk}/").content.decode()
    assert f'href="/domains/{domain_map.pk}/"' in page
    assert "/layouts/4711/" not in page and "deleted since" in page


def test_a_job_names_what_is_gone_without_a_link(people, domain_map):
    inputs = {
        "domain_map": {"id": domain_map.pk, "name": "Domains", "revision": 1},
        "layout": {"id": 4711, "name": "Eight", "revision": 2},
    }
    job = Job.objects.create(team=people.owner.team, kind="tune", name="t", inputs=inputs)
    parents = {one["title"]: one for one in lineage_of(job)["parents"]}
    assert parents["Domains r1"]["url"] == f"/domains/{domain_map.pk}/"
    assert (parents["Eight r2"]["url"], parents["Eight r2"]["note"]) == ("", "deleted since")


def test_a_floor_is_refused_where_the_gate_chooses_by_a_table() -> None:
    domain = {"code": "law", "name_en": "Law", "name_zh": "法律", "experts": [1]}
    moe = {"moe_layers": [0], "num_experts": 4, "gate": {"kind": "hash"}}
    for mode, refused in (("floor", True), ("mask", False)):
        asked = {"domains": [domain], "prior_mode": mode}
        with pytest.raises(Invalid, match="chooses by a table") if refused else nullcontext():
            check_fits(asked, ModelVersion(spec={"moe": moe}))
        check_fits(asked, ModelVersion(spec={"moe": {**moe, "gate": {"kind": "softmax_topk"}}}))
