"""Domain maps: every rule checked before a save, revisions kept, drafts judged in words."""

from __future__ import annotations

import re

import pytest
from django.http import QueryDict
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Conflict, Forbidden, Invalid, NotFound
from moe_core.spec import RoutingSpec
from routing import services
from routing.describe import verdict_of
from routing.drafts import Draft, DraftDomain, draft_of_form, draft_of_map, problems_of, remarks_of
from routing.models import DomainMap
from routing.plan import DomainPlan, MapPlan, PolicyPlan, checked_plan
from routing.policy_form import POLICY as POLICY_PART
from routing.policy_form import PolicyForm, rules_text
from routing.presets import example_plan
from routing.selectors import map_get, routing_spec

pytestmark = pytest.mark.django_db
SUPPORT = {"code": "support", "name_en": "Support", "name_zh": "客服", "experts": [0], "examples": ["a", "b", "c"]}
COPY = {"code": "copy", "name_en": "Copy", "name_zh": "文案", "experts": [1], "examples": ["a", "b", "c"]}
PLAN = {"num_experts": 4, "domains": [SUPPORT, COPY], "general_experts": [2, 3]}


@pytest.fixture
def example(people):
    return services.map_create_example(caller=people.owner)


def test_the_example_is_the_missions_own(people, example):
    spec = routing_spec(example)
    assert spec.codes == ("support", "copy", "analysis", "contracts")
    assert spec.general_experts == (4, 5, 6, 7)
    assert verdict_of(draft_of_map(example)).state == "ok"
    mine = {domain.code: domain.experts for domain in spec.domains}
    for domain in spec.deranged(3).domains:
        assert not set(domain.experts) & set(mine[domain.code])
    assert services.map_create_example(caller=people.owner).name != example.name


@pytest.mark.parametrize(
    "change",
    [
        {"domains": []},
        {"domains": [{**SUPPORT, "experts": []}]},
        {"domains": [{**SUPPORT, "experts": [4]}]},
        {"domains": [{**SUPPORT, "experts": [-1]}]},
        {"domains": [{**SUPPORT, "experts": [True]}]},
        {"domains": [{**SUPPORT, "experts": [10**9]}]},
        {"domains": [{**SUPPORT, "code": "S"}]},
        {"domains": [{**SUPPORT, "code": "a" * 13}]},
        {"domains": [{**SUPPORT, "name_zh": " "}]},
        {"domains": [SUPPORT, SUPPORT]},
        {"domains": [SUPPORT] * 65},
        {"general_experts": [0]},
        {"general_experts": [4]},
        {"num_experts": 1},
        {"num_experts": 10**9},
        {"policy": {"label_weight": float("nan")}},
        {"policy": {"prior_mode": "magic"}},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_map_that_breaks_a_rule_is_refused(people, change):
    with pytest.raises(Invalid):
        services.map_create(caller=people.owner, name="M", plan={**PLAN, **change})
    assert not DomainMap.objects.exists()


def test_a_save_replaces_the_map_and_keeps_the_revision_before(people, example):
    changed = services.map_revise(caller=people.owner, map_id=example.pk, expected_revision=1, plan=PLAN)
    assert (changed.revision, [domain.code for domain in changed.domains.all()]) == (2, ["support", "copy"])
    snapshots = [row.snapshot["num_experts"] for row in changed.revisions.order_by("revision")]
    assert snapshots == [8, 4]
    with pytest.raises(Conflict):
        services.map_revise(caller=people.owner, map_id=example.pk, expected_revision=1, plan=PLAN)
    assert map_get(people.owner.team, example.pk).revision == 2


def test_what_is_written_is_what_the_router_reads(people):
    plan = {**PLAN, "policy": {"label_weight": 0.3, "prior_mode": "mask", "prior_strength": 4}}
    spec = routing_spec(services.map_create(caller=people.owner, name="M", plan=plan))
    assert isinstance(spec, RoutingSpec)
    assert (spec.label_weight, spec.prior_mode, spec.prior_strength) == (0.3, "mask", 4.0)
    assert spec.label_matrix(4) == ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0))


def test_outsiders_find_nothing_and_viewers_change_nothing(people, example):
    for act in (
        lambda caller: services.map_revise(caller=caller, map_id=example.pk, expected_revision=1, plan=PLAN),
        lambda caller: services.map_delete(caller=caller, map_id=example.pk),
    ):
        with pytest.raises(NotFound):
            act(people.outsider)
        with pytest.raises(Forbidden):
            act(people.teammate)


EXPERTS = st.lists(st.integers(0, 9), max_size=4)
DRAFTS = st.builds(
    Draft,
    name=st.just("M"),
    num_experts=st.integers(2, 8),
    domains=st.lists(
        st.builds(
            DraftDomain,
            code=st.sampled_from(["support", "copy", "Bad", ""]),
            name_en=st.sampled_from(["A", ""]),
            name_zh=st.just("甲"),
            experts=EXPERTS,
        ),
        max_size=3,
    ),
    general_experts=st.lists(st.integers(0, 7), max_size=3).map(sorted),
)


@given(DRAFTS)
def test_the_words_and_the_rules_agree(draft):
    """What the page calls complete is saved, and what it complains about is refused."""
    draft.general_experts = [expert for expert in draft.general_experts if expert < draft.num_experts]
    try:
        checked_plan(draft.plan())
        is_refused = False
    except Invalid:
        is_refused = True
    assert bool(problems_of(draft)) == is_refused


def test_a_map_that_is_refused_says_so_beside_each_field(people):
    form = {
        "name": "m", "num_experts": "8", "row": ["0", "1"], "code-0": "UP!", "code-1": "hr", "name_en-1": "Staff",
        "experts-1": ["1"], "label_weight": "much", "balance_weight": "1", "prior_strength": "1",
    }  # fmt: skip
    for language, toast in (("en", "The map is not saved"), ("zh-hans", "映射未保存")):
        reply = people.client("owner").post(reverse("routing:new"), form, headers={"accept-language": language})
        page = reply.content.decode()
        assert reply.status_code == 422 and toast in page
        first, second = reply.context["draft"].domains
        assert set(first.errors) == {"code", "name_en", "experts"}
        assert set(second.errors) == {"name_zh"}
        assert set(reply.context["draft"].errors) == {"label_weight"}
        for name in ("code-0", "name_en-0", "name_zh-1", "label_weight"):
            described = re.compile(rf'aria-describedby="[^"]*\bid_{name}_error"')
            assert described.search(page) and f'id="id_{name}_error"' in page, name


def test_a_blank_map_that_is_sent_is_refused_in_words(people):
    reply = people.client("owner").post(reverse("routing:new"), {"name": "m", "num_experts": "8", "row": "0"})
    assert (reply.status_code, reply.context["verdict"].state) == (422, "danger")
    assert "needs a code" in reply.context["verdict"].strong


def test_remarks_name_what_is_worth_a_thought():
    shared = Draft(
        num_experts=6, domains=[DraftDomain("aa", "A", "甲", [], [0]), DraftDomain("bb", "B", "乙", [], [0, 1])]
    )
    text = " ".join(remarks_of(shared))
    assert "shared by A, B" in text
    assert "no general expert" in text
    assert "2, 3, 4, 5" in text


def form(draft, **more):
    data = QueryDict(mutable=True)
    data.update({"name": draft.name or "M", "num_experts": str(draft.num_experts), "revision": str(draft.revision), **more})
    for row, one in enumerate(draft.domains):
        data.appendlist("row", str(row))
        data.update({f"code-{row}": one.code, f"name_en-{row}": one.name_en, f"name_zh-{row}": one.name_zh})
        data.update({f"colour-{row}": str(one.colour), f"examples-{row}": "\n".join(one.examples)})
        data.setlist(f"experts-{row}", [str(expert) for expert in one.experts])
    data.setlist("general", [str(expert) for expert in draft.general_experts])
    data.update({name: str(draft.policy[name].value()) for name in draft.policy.fields if name not in more})
    return data


def posted(client, url, data):
    return client.post(url, data.urlencode(), content_type="application/x-www-form-urlencoded")


def test_a_form_says_what_the_draft_said(people, example):
    draft = draft_of_map(example)
    assert checked_plan(draft_of_form(form(draft)).plan()) == checked_plan(draft.plan())


POLICY = {
    "label_weight": 0.3, "balance_weight": 2.0, "z_weight": 0.001, "prior_mode": "floor", "prior_strength": 3.0,
    "prior_floor": 0.7,
    "prior_layers": {
        0: {"mode": "none"}, 1: {"mode": "none"}, 3: {"mode": "bias", "strength": 2.5}, 7: {"mode": "floor", "floor": 0.6},
    },
}  # fmt: skip


def test_a_policy_goes_through_the_form_unchanged_and_is_what_the_router_reads(people):
    made = services.map_create(caller=people.owner, name="M", plan={**PLAN, "policy": POLICY})
    draft = draft_of_map(made)
    assert draft.policy["layer_rules"].value() == "0-1 none\n3 bias 2.5\n7 floor 0.6"
    client = people.client("owner")
    assert posted(client, reverse("routing:detail", args=[made.pk]), form(draft, z_weight="0.002")).status_code == 302
    spec = routing_spec(map_get(people.owner.team, made.pk))
    assert (spec.z_weight, spec.prior_mode, spec.prior_floor) == (0.002, "floor", 0.7)
    assert {layer: prior.mode for layer, prior in spec.prior_layers.items()} == {
        0: "none", 1: "none", 3: "bias", 7: "floor",
    }  # fmt: skip
    assert (spec.prior_in(3).strength, spec.prior_in(7).floor, spec.prior_in(5).mode) == (2.5, 0.6, "floor")


@given(st.floats(0, 50), st.floats(0, 1, exclude_max=True))
def test_rules_of_layers_read_back_equal(strength, floor):
    priors = {3: {"mode": "bias", "strength": strength}, 5: {"mode": "floor", "floor": floor}}
    form = PolicyForm({"layer_rules": rules_text(priors)})
    read = form.policy()["prior_layers"]
    assert (read[3]["strength"], read[5]["floor"]) == (strength, floor)


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ({"prior_floor": "1"}, "prior_floor"),
        ({"prior_strength": "51"}, "prior_strength"),
        ({"z_weight": "-1"}, "z_weight"),
        ({"layer_rules": "0-3 magic"}, "layer_rules"),
        ({"layer_rules": "0-3 mask 2"}, "layer_rules"),
        ({"layer_rules": "0-3 none\n3 mask"}, "layer_rules"),
        ({"layer_rules": "600 none"}, "layer_rules"),
        ({"layer_rules": "4 floor 2"}, "layer_rules"),
    ],
)
def test_a_policy_that_is_refused_says_so_beside_its_field_and_keeps_what_was_typed(people, example, typed, field):
    page = posted(people.client("owner"), reverse("routing:detail", args=[example.pk]), form(draft_of_map(example), **typed))
    assert page.status_code == 422
    assert set(page.context["draft"].errors) == {field}
    assert f'id="id_{field}_error"' in page.content.decode()
    assert page.context["draft"].policy[field].value() == typed[field]


def test_every_field_of_a_policy_is_asked():
    assert set(POLICY_PART.asks) | {"prior_layers"} == set(PolicyPlan.model_fields)
    from_library = set(RoutingSpec.model_fields) - {"domains", "general_experts"}
    assert set(PolicyPlan.model_fields) == from_library


def test_programs_are_told_of_every_fault_of_a_map_at_once(people):
    with pytest.raises(Invalid) as refused:
        checked_plan({**PLAN, "domains": [SUPPORT, SUPPORT], "general_experts": [0, 9], "policy": {}})
    assert {"plan.domains", "plan.general_experts", "plan.domains.0.experts"} <= set(refused.value.fields)


def test_what_postgresql_cannot_store_is_left_out(people, example):
    draft = draft_of_map(example)
    data = form(draft)
    data["name_en-0"], data["examples-0"], data["name"] = "A\0B", "x\0\ny", "M\0"
    assert posted(people.client("owner"), reverse("routing:detail", args=[example.pk]), data).status_code == 302
    assert map_get(people.owner.team, example.pk).domains.first().name_en == "AB"


def test_a_person_edits_a_map_row_by_row(people, example):
    client, page = people.client("owner"), reverse("routing:detail", args=[example.pk])
    draft = draft_of_map(example)
    more = posted(client, reverse("routing:check"), form(draft, op="add")).content.decode()
    assert 'name="code-4"' in more and "hx-swap-oob" in more
    fewer = posted(client, reverse("routing:check"), form(draft, op="remove-0")).content.decode()
    assert 'value="support"' not in fewer
    draft.domains[0].experts = []
    said = posted(client, reverse("routing:check"), form(draft)).content.decode()
    assert "Support replies has no expert of its own." in said
    assert posted(client, page, form(draft)).status_code == 422
    draft.domains[0].experts = [0, 4]
    draft.general_experts = [5, 6, 7]
    assert posted(client, page, form(draft)).status_code == 302
    saved = map_get(people.owner.team, example.pk)
    assert (saved.revision, saved.domains.first().experts) == (2, [0, 4])
    assert posted(client, page, form(draft)).status_code == 422  # the revision is stale now


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_the_pages_open_for_the_team_only(people, example, language):
    pages = [reverse("routing:list"), reverse("routing:new"), reverse("routing:detail", args=[example.pk])]
    for page in pages:
        for who in ("owner", "teammate"):
            assert people.client(who).get(page, headers={"accept-language": language}).status_code == 200, page
    assert people.client("outsider").get(pages[2]).status_code == 404
    assert posted(people.client("outsider"), pages[2], form(draft_of_map(example))).status_code == 404
    assert posted(people.client("teammate"), pages[2], form(draft_of_map(example))).status_code == 403
    assert people.client("teammate").post(reverse("routing:example")).status_code == 403


def test_a_map_that_is_saved_already_makes_no_revision(people):
    client = Client(headers=people.bearer("owner", "read", "write"))
    # It names no colours; each domain is given one, which is no change when it is sent back.
    made = client.post("/api/v1/domain-maps/", {"name": "R", **PLAN}, content_type="application/json").json()
    shown = {name: made[name] for name in ("num_experts", "domains", "general_experts", "policy")}
    shown["domains"] = [{k: v for k, v in one.items() if k in DomainPlan.model_fields} for one in shown["domains"]]
    url = f"/api/v1/domain-maps/{made['id']}/"
    for body, revision in ((PLAN, 1), (shown, 1), ({**shown, "name": "S"}, 2)):
        reply = client.put(url, {"revision": 1, **body}, content_type="application/json")
        assert (reply.status_code, reply.json()["revision"]) == (200, revision), reply.content
    assert [one["revision"] for one in client.get(f"{url}revisions/").json()] == [2, 1]


def test_programs_do_the_same_over_rest(people):
    client = Client(headers=people.bearer("owner", "read", "write"))
    made = client.post("/api/v1/domain-maps/", {"name": "R", **PLAN}, content_type="application/json")
    assert made.status_code == 201, made.content
    url = f"/api/v1/domain-maps/{made.json()['id']}/"
    changed = client.put(
        url, {"revision": 1, **PLAN, "general_experts": [3]}, content_type="application/json"
    ).json()
    assert (changed["revision"], changed["general_experts"], changed["name"]) == (2, [3], "R")
    stale = client.put(url, {"revision": 1, **PLAN}, content_type="application/json")
    assert (stale.status_code, stale.json()["code"]) == (409, "stale_revision")
    bad = client.post("/api/v1/domain-maps/", {"name": "B", **PLAN, "general_experts": [0]}, content_type="application/json")
    assert bad.status_code == 422
    example = client.post("/api/v1/domain-maps/example/", {"num_experts": 16}, content_type="application/json").json()
    assert len(example["general_experts"]) == 12
    assert [one["revision"] for one in client.get(f"{url}revisions/").json()] == [2, 1]
    stranger = Client(headers=people.bearer("outsider", "read", "write"))
    assert stranger.get(url).status_code == 404
    assert stranger.put(url, {"revision": 2, **PLAN}, content_type="application/json").status_code == 404
    assert client.delete(url).status_code == 204


def test_plans_forget_order_and_repeats_of_experts():
    plan = MapPlan.parse({**PLAN, "domains": [{**SUPPORT, "experts": [1, 0, 1]}], "general_experts": [3, 2, 3]})
    assert (plan.domains[0].experts, plan.general_experts) == ((0, 1), (2, 3))
    with pytest.raises(Invalid):
        example_plan(4)


@pytest.mark.parametrize("value", ["1.2.3", ".", "1e3"])
def test_a_rule_whose_number_is_none_is_refused_beside_its_field(people, example, value):
    sent = form(draft_of_map(example), layer_rules=f"3 bias {value}")
    page = posted(people.client("owner"), reverse("routing:detail", args=[example.pk]), sent)
    assert page.status_code == 422 and set(page.context["draft"].errors) == {"layer_rules"}
