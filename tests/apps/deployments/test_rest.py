"""The REST face: scopes, shapes, refusals; and the pages of every state in both languages."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import reverse

from deployments.models import Deployment, Node, Replica
from deployments.reconcile import reconcile
from deployments.selectors import deployment_get
from deployments.states import ReplicaState
from registry.models import ModelVersion
from tests.apps.deployments.test_services import deploy, online, ready
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
URL = "/api/v1/deployments/"


@pytest.fixture
def version(people: Any, tmp_path: Any) -> ModelVersion:
    return make_version(people, tmp_path, name="Moe", spec=moe_spec(num_experts=8, top_k=2))


def call(client: Any, method: str, path: str, headers: dict[str, str], body: Any = None) -> Any:
    return getattr(client, method)(path, body, content_type="application/json", headers=headers)


def test_a_program_deploys_scales_updates_rolls_back_and_deletes(client, people, version):
    headers = people.bearer("owner", "read", "deploy")
    made = call(client, "post", URL, headers, {"name": "support", "version": version.pk})
    assert made.status_code == 202
    body = made.json()
    assert made.headers["Location"] == body["url"] == f"{URL}{body['id']}/"
    assert (body["phase"], body["desired_replicas"], body["live_version"]) == ("pending", 1, None)
    place = body["url"]
    scaled = call(client, "post", f"{place}scale/", headers, {"replicas": 3}).json()
    assert (scaled["desired_replicas"], scaled["revision"]) == (3, 1)
    changed = call(
        client, "patch", place, headers, {"settings": {"kv_tokens": 1024}, "replicas": 1, "note": "less"}
    )
    assert changed.status_code == 202
    assert (changed.json()["revision"], changed.json()["settings"]["kv_tokens"]) == (2, 1024)
    back = call(client, "post", f"{place}rollback/", headers, {"revision": 1}).json()
    assert (back["revision"], back["settings"]["kv_tokens"]) == (3, 16_384)
    told = call(client, "get", f"{place}revisions/", headers).json()
    assert [(one["number"], one["rolled_back_to"], one["note"]) for one in told] == [
        (3, 1, ""), (2, None, "less"), (1, None, ""),
    ]  # fmt: skip
    events = call(client, "get", f"{place}events/", headers).json()
    assert [one["kind"] for one in events] == ["rolled_back", "scaled", "revised", "scaled", "created"]
    assert all(one["message"] for one in events)
    assert call(client, "delete", place, headers).status_code == 202
    assert call(client, "get", place, headers).status_code == 404


def test_each_scope_opens_its_own_door(client, people, version):
    made = deploy(people, version)
    place = f"{URL}{made.pk}/"
    assert call(client, "get", place, people.bearer("owner", "read")).status_code == 200
    assert call(client, "get", place, people.bearer("owner", "infer")).status_code == 403
    for scopes in (("read",), ("read", "write"), ("infer",)):
        reply = call(client, "post", f"{place}scale/", people.bearer("owner", *scopes), {"replicas": 0})
        assert reply.status_code == 403, scopes
    assert call(client, "get", place, people.bearer("teammate", "read")).status_code == 200


def test_another_team_finds_nothing_by_any_verb(client, people, version):
    made = deploy(people, version)
    headers = people.bearer("outsider", "read", "deploy")
    place = f"{URL}{made.pk}/"
    assert call(client, "get", URL, headers).json()["results"] == []
    for method, path, body in (
        ("get", place, None), ("patch", place, {"replicas": 0}), ("delete", place, None),
        ("post", f"{place}scale/", {"replicas": 0}), ("post", f"{place}stop/", None), ("post", f"{place}retry/", None),
        ("post", f"{place}rollback/", {"revision": 1}), ("get", f"{place}revisions/", None),
        ("get", f"{place}events/", None), ("get", f"{place}routing/", None),
    ):  # fmt: skip
        assert call(client, method, path, headers, body).status_code == 404, (method, path)
    mine = call(client, "post", URL, headers, {"name": "mine", "version": version.pk})
    assert mine.status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"version": 1},
        {"name": "a"},
        {"name": "a", "version": "x"},
        {"name": "a", "version": 1, "replicas": 99},
        {"name": "a", "version": 1, "epoch": 5},
        {"name": "a", "version": 1, "live_version": 1},
        {"name": "a", "version": 1, "settings": []},
        [],
    ],
)
def test_what_is_wrong_or_unknown_is_refused_as_a_problem(client, people, body):
    reply = call(client, "post", URL, people.bearer("owner", "read", "deploy"), body)
    assert reply.status_code in (400, 404, 422)
    assert reply.headers["content-type"] == "application/problem+json"
    assert not Deployment.objects.exists()


def test_observed_columns_cannot_be_written_from_outside(client, people, version):
    made = deploy(people, version)
    for name in (
        "live_version",
        "live_revision",
        "observed_generation",
        "generation",
        "team",
        "conditions",
        "phase",
    ):
        reply = call(client, "patch", f"{URL}{made.pk}/", people.bearer("owner", "deploy"), {name: 5})
        assert reply.status_code == 400, name
    made.refresh_from_db()
    assert (made.live_version, made.generation) == (None, 1)


def test_a_stale_writer_is_told(client, people, version):
    made = deploy(people, version)
    headers = people.bearer("owner", "read", "deploy")
    place = f"{URL}{made.pk}/"
    assert call(client, "patch", place, headers, {"replicas": 2, "expected_generation": 1}).status_code == 202
    late = call(client, "patch", place, headers, {"replicas": 5, "expected_generation": 1})
    assert (late.status_code, late.json()["code"]) == (409, "stale_generation")


def test_the_fit_is_counted_before_anything_runs(client, people, version):
    online(free=10**9)
    headers = people.bearer("teammate", "read")
    fit = call(client, "post", f"{URL}fit/", headers, {"version": version.pk}).json()
    assert fit["fits"]
    assert fit["need"]["total"] == sum(fit["need"][part] for part in ("weights", "cache", "engine"))
    huge = call(
        client, "post", f"{URL}fit/", headers, {"version": version.pk, "settings": {"kv_tokens": 4_000_000}}
    )
    assert not huge.json()["fits"]


def test_replicas_and_conditions_are_told_with_reasons(client, people, version):
    online()
    made = deploy(people, version)
    reconcile(made.pk)
    Replica.objects.update(state=ReplicaState.FAILED, error="checksum", error_detail="trunk.safetensors")
    reconcile(made.pk)
    body = call(client, "get", f"{URL}{made.pk}/", people.bearer("owner", "read")).json()
    assert body["phase"] == "failed"
    assert [(one["state"], one["error"]) for one in body["replicas"]] == [("failed", "checksum")]
    failed = next(one for one in body["conditions"] if one["reason"] == "failed")
    assert "trunk.safetensors" in failed["message"]


@pytest.mark.parametrize("window", ["0", "-1", "abc", "99999999", "1e3"])
def test_a_window_that_is_none_is_refused(client, people, version, window):
    made = deploy(people, version)
    reply = call(client, "get", f"{URL}{made.pk}/routing/?window={window}", people.bearer("owner", "read"))
    assert reply.status_code == 422


def states(people: Any, version: ModelVersion) -> dict[str, Deployment]:
    """A deployment in each state that its page can show."""
    online()
    found = {}
    for name in ("pending", "ready", "failed", "stopped", "silent"):
        made = deploy(people, version, name=name, replicas=0 if name == "stopped" else 1)
        reconcile(made.pk)
        if name in ("ready", "silent"):
            ready(made)
        if name == "failed":
            Replica.objects.filter(deployment=made).update(state=ReplicaState.FAILED, error="killed")
        if name == "silent":
            Replica.objects.filter(deployment=made).update(heartbeat_at="2020-01-01T00:00Z")
        reconcile(made.pk)
        found[name] = made
    return found


@pytest.mark.parametrize("language", ["en", "zh-hans"])
@pytest.mark.parametrize("who", ["owner", "teammate"])
def test_every_page_of_every_state_is_shown(people, version, language, who):
    browser = people.client(who)
    browser.cookies["django_language"] = language
    for made in states(people, version).values():
        for name in ("deployments:detail", "telemetry:board"):
            page = browser.get(reverse(name, args=[made.pk]))
            assert page.status_code == 200
            assert made.name in page.content.decode()
    for name in ("deployments:list", "gateway:keys"):
        assert browser.get(reverse(name)).status_code == 200
    assert browser.get(reverse("telemetry:live")).status_code == 302
    assert browser.get(reverse("deployments:new")).status_code == (200 if who == "owner" else 403)


def test_the_pages_of_another_team_are_not_there(people, version):
    made = deploy(people, version)
    browser = people.client("outsider")
    for name in ("deployments:detail", "telemetry:board"):
        assert browser.get(reverse(name, args=[made.pk])).status_code == 404
    assert browser.post(reverse("deployments:delete", args=[made.pk])).status_code == 404
    assert browser.get(reverse("telemetry:live")).status_code == 200


def test_a_person_deploys_and_steers_by_the_forms(people, version):
    browser = people.client("owner")
    form = {
        "name": "shop", "version": version.pk, "replicas": 1, "dtype": "float32", "kv_tokens": 2048, "max_sequences": 4,
        "num_threads": 1, "prior_mode": "", "domain_map": "",
    }  # fmt: skip
    assert browser.post(reverse("deployments:fit"), form).status_code == 200
    made = browser.post(reverse("deployments:new"), form)
    assert made.status_code == 302, made.context["form"].errors
    deployment = Deployment.objects.get(name="shop")
    assert deployment.settings["kv_tokens"] == 2048
    again = browser.post(reverse("deployments:new"), form)
    assert again.status_code == 422
    assert "name" in again.context["form"].errors
    browser.post(reverse("deployments:scale", args=[deployment.pk]), {"replicas": 2})
    update = {f"update-{name}": value for name, value in {**form, "kv_tokens": 4096, "note": "more"}.items()}
    assert browser.post(reverse("deployments:update", args=[deployment.pk]), update).status_code == 302
    now = deployment_get(people.owner.team, deployment.pk)
    assert (now.desired_replicas, now.revision, now.settings["kv_tokens"]) == (2, 2, 4096)
    assert "resident_experts" not in now.settings
    browser.post(reverse("deployments:rollback", args=[deployment.pk, 1]))
    browser.post(reverse("deployments:action", args=[deployment.pk, "stop"]))
    now = deployment_get(people.owner.team, deployment.pk)
    assert (now.desired_replicas, now.revision, now.settings["kv_tokens"]) == (0, 3, 2048)
    assert browser.post(reverse("deployments:delete", args=[deployment.pk])).status_code == 302
    assert browser.get(reverse("deployments:detail", args=[deployment.pk])).status_code == 404


def test_how_an_engine_serves_is_chosen_and_taken_back_by_the_form(people, version):
    browser = people.client("owner")
    form = {
        "name": "shop", "version": version.pk, "replicas": 0, "dtype": "float32", "kv_tokens": 2048, "max_sequences": 4,
        "num_threads": 1, "prior_mode": "", "domain_map": "", "ngram_tokens": 0, "expert_affinity_steps": 32,
        "batch_invariant": "on",
    }  # fmt: skip
    made = browser.post(reverse("deployments:new"), form)
    assert made.status_code == 302, made.context["form"].errors
    deployment = Deployment.objects.get(name="shop")
    assert {
        "ngram_tokens": 0,
        "expert_affinity_steps": 32,
        "batch_invariant": True,
    }.items() <= deployment.settings.items()
    page = browser.get(reverse("deployments:detail", args=[deployment.pk])).content.decode()
    assert "<dt>Guessed tokens a step" not in page and "Same to the last bit" in page
    back = {**form, "ngram_tokens": 4, "expert_affinity_steps": 0}
    del back["batch_invariant"]
    update = {f"update-{name}": value for name, value in back.items()}
    assert browser.post(reverse("deployments:update", args=[deployment.pk]), update).status_code == 302
    now = deployment_get(people.owner.team, deployment.pk).settings
    assert (now["ngram_tokens"], now["expert_affinity_steps"], now["batch_invariant"]) == (4, 0, False)
    page = browser.get(reverse("deployments:detail", args=[deployment.pk])).content.decode()
    assert "<dt>Guessed tokens a step</dt><dd>4</dd>" in page
    both = browser.post(reverse("deployments:new"), {**form, "name": "other", "ngram_tokens": 4})
    assert both.status_code == 422 and "leave that out" in both.context["form"].errors["ngram_tokens"][0]
    too_many = browser.post(reverse("deployments:new"), {**form, "name": "other", "ngram_tokens": 17})
    assert too_many.status_code == 422 and "ngram_tokens" in too_many.context["form"].errors


def test_health_names_what_is_missing(client, people, monkeypatch):
    assert client.get("/healthz").json() == {"status": "alive"}
    body = client.get("/readyz").json()
    assert (body["status"], body["checks"]["database"], body["checks"]["workers"]) == (
        "degraded",
        "ok",
        "failed",
    )
    online()
    assert client.get("/readyz").json()["status"] == "ready"
    monkeypatch.setitem(__import__("gateway.health").health.CHECKS, "database", lambda: 1 / 0)
    reply = client.get("/readyz")
    assert (reply.status_code, reply.json()["status"]) == (503, "unready")
    assert "division" not in reply.content.decode()


def test_nodes_are_listed_with_their_memory(people, version):
    online()
    Node.objects.update(capacity={"free_bytes": 3 * 10**9, "memory_bytes": 8 * 10**9, "cpus": 2})
    page = people.client("teammate").get(reverse("deployments:list")).content.decode()
    assert "node-1" in page
