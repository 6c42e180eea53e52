"""Layouts: revisions, refusals, the live answer, JSON in and out."""

from __future__ import annotations

import json

import pytest
from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Conflict, Forbidden, Invalid, NotFound
from common.layers import layers_text, parse_layers
from layouts import services
from layouts.costing import preview
from layouts.models import Layout
from registry.block import diagram
from registry.services import model_edit
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
SPEC = {"moe_layers": [1, 3], "num_experts": 8, "top_k": 2}
FORM = {
    "name": "L",
    "layers": "1, 3",
    "num_experts": "8",
    "top_k": "2",
    "num_shared_experts": "0",
    "note": "why",
}


@pytest.fixture
def base(people, tmp_path):
    return make_version(people, tmp_path)


@pytest.fixture
def layout(people, base):
    return services.layout_create(caller=people.owner, name="First", base_version_id=base.pk, spec=SPEC)


def test_every_save_is_a_revision_and_a_stale_one_is_refused(people, layout):
    revised = services.layout_revise(
        caller=people.owner,
        layout_id=layout.pk,
        expected_revision=1,
        spec={**SPEC, "top_k": 1},
        note="cheaper",
    )
    assert (revised.revision, revised.spec["top_k"]) == (2, 1)
    assert [row.spec["top_k"] for row in revised.revisions.order_by("revision")] == [2, 1]
    with pytest.raises(Conflict) as found:
        services.layout_revise(caller=people.owner, layout_id=layout.pk, expected_revision=1, spec=SPEC)
    assert found.value.code == "stale_revision"
    same = services.layout_revise(
        caller=people.owner, layout_id=layout.pk, expected_revision=2, spec={**SPEC, "top_k": 1}
    )
    assert same.revision == 2


@pytest.mark.parametrize(
    "spec",
    [
        {**SPEC, "moe_layers": [4]},
        {**SPEC, "moe_layers": []},
        {**SPEC, "num_experts": 10**9},
        {**SPEC, "num_experts": -1},
        {**SPEC, "top_k": 9},
        {**SPEC, "moe_intermediate_size": 2**63},
        {**SPEC, "num_shared_experts": 2},
        {**SPEC, "surprise": 1},
        {},
        [],
        "x",
    ],
)
def test_a_layout_that_cannot_be_built_is_refused(people, base, spec):
    with pytest.raises(Invalid):
        services.layout_create(caller=people.owner, name="L", base_version_id=base.pk, spec=spec)


def test_what_is_wrong_with_every_kind_of_expert_is_said_once_and_shown_at_each(people, base):
    spec = {**SPEC, "expert_kinds": [{"kind": "swiglu"}] * 8}
    with pytest.raises(Invalid) as found:
        services.layout_create(caller=people.owner, name="L", base_version_id=base.pk, spec=spec)
    assert len(found.value.fields) == 8
    assert {found.value.message} == set(found.value.fields.values())


def test_a_mixture_is_no_base_and_neither_is_another_teams_model(people, tmp_path):
    mixture = make_version(people, tmp_path, spec=moe_spec())
    with pytest.raises(Invalid):
        services.layout_create(caller=people.owner, name="L", base_version_id=mixture.pk, spec=SPEC)
    theirs = make_version(people, tmp_path, who="outsider")
    with pytest.raises(NotFound):
        services.layout_create(caller=people.owner, name="L", base_version_id=theirs.pk, spec=SPEC)


def test_outsiders_find_nothing_and_viewers_change_nothing(people, layout):
    for act in (
        lambda caller: services.layout_revise(
            caller=caller, layout_id=layout.pk, expected_revision=1, spec={**SPEC, "top_k": 1}
        ),
        lambda caller: services.layout_delete(caller=caller, layout_id=layout.pk),
    ):
        with pytest.raises(NotFound):
            act(people.outsider)
        with pytest.raises(Forbidden):
            act(people.teammate)


@given(st.sets(st.integers(0, 511), min_size=1))
def test_layers_are_written_as_ranges_and_read_back(layers):
    assert parse_layers(layers_text(layers)) == sorted(layers)


@pytest.mark.parametrize("text", ["", " ", "x", "3-1", "-1", "600", "1-600", "1..3", "0x10", "1" * 50])
def test_layers_that_cannot_be_read_are_refused(text):
    with pytest.raises(ValidationError):
        parse_layers(text)


def test_layers_are_read_in_both_languages_habits():
    assert parse_layers("0 - 2，5、 7–8") == [0, 1, 2, 5, 7, 8]


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (2, 1), (8, 2), (16, 3), (64, 64), (256, 8)])
def test_the_picture_lights_as_many_stations_as_a_token_calls_at(base, experts, k):
    shape = preview(base, {**SPEC, "num_experts": experts, "top_k": k})["shape"]
    picture = diagram(shape)
    drawn = min(experts, 16)
    assert len(picture.stations) == drawn
    assert sum(one.is_lit for one in picture.stations) == min(k, drawn)
    assert picture.num_hidden == experts - drawn


def test_the_editor_answers_while_typing_and_says_what_is_wrong(people, base):
    client = people.client("owner")
    good = client.post(reverse("layouts:preview"), {**FORM, "base_version": base.pk}).content.decode()
    whole = preview(base, SPEC)
    assert f'data-bytes="{whole["mixture"]["bytes"]["int4"]}"' in good
    assert "hx-swap-oob" in good
    bad = client.post(
        reverse("layouts:preview"), {**FORM, "base_version": base.pk, "layers": "9"}
    ).content.decode()
    assert "Layer 9 is outside" in bad
    assert not Layout.objects.exists()


def test_everything_that_is_wrong_is_told_at_once(people, base):
    client = people.client("owner")
    wrong = {**FORM, "base_version": base.pk, "num_experts": 3, "top_k": 9, "layers": "0, 99", "name": ""}
    for language, words in (("en", ("must not exceed", "Layer 99 is outside")), ("zh-hans", ("9", "99"))):
        reply = client.post(reverse("layouts:new"), wrong, headers={"accept-language": language})
        errors = reply.context["form"].errors
        assert reply.status_code == 422 and set(errors) == {"name", "top_k", "layers"}, errors
        assert words[0] in errors["top_k"][0] and words[1] in errors["layers"][0]
        preview = client.post(
            reverse("layouts:preview"), wrong, headers={"accept-language": language}
        ).content.decode()
        assert all(word in preview for word in words)


def test_a_person_makes_and_revises_a_layout(people, base):
    client = people.client("owner")
    made = client.post(reverse("layouts:new"), {**FORM, "base_version": base.pk})
    layout = Layout.objects.get()
    assert (made.status_code, made["Location"]) == (302, reverse("layouts:detail", args=[layout.pk]))
    page = reverse("layouts:detail", args=[layout.pk])
    client.post(
        page, {**FORM, "base_version": base.pk, "revision": 1, "num_experts": 4, "num_shared_experts": 1}
    )
    layout.refresh_from_db()
    assert (layout.revision, layout.spec["num_experts"], layout.spec["num_shared_experts"]) == (2, 4, 1)
    text = client.get(page).content.decode()
    assert "num_experts: 8" in text and "num_experts: 4" in text
    assert 'value="8"' in client.get(f"{page}?revision=1").content.decode()
    stale = client.post(page, {**FORM, "base_version": base.pk, "revision": 1})
    assert stale.status_code == 422


def test_a_layout_goes_out_as_json_and_comes_back(people, layout):
    client = people.client("owner")
    sent = client.get(reverse("layouts:export", args=[layout.pk]))
    assert sent["Content-Disposition"] == 'attachment; filename="first-r1.json"'
    data = json.loads(sent.content)
    data["name"] = "Second"
    file = SimpleUploadedFile("l.json", json.dumps(data).encode())
    client.post(reverse("layouts:import"), {"file": file, "base_version": layout.base_version_id})
    assert Layout.objects.get(name="Second").spec == layout.spec
    client.post(reverse("layouts:import"), {"text": "{", "base_version": layout.base_version_id})
    assert Layout.objects.count() == 2


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_the_pages_open_for_the_team_only(people, layout, language):
    pages = [reverse("layouts:list"), reverse("layouts:new"), reverse("layouts:detail", args=[layout.pk])]
    for page in pages:
        for who in ("owner", "teammate"):
            assert people.client(who).get(page, headers={"accept-language": language}).status_code == 200, (
                page
            )
    stranger = people.client("outsider")
    assert stranger.get(pages[2]).status_code == 404
    assert stranger.get(reverse("layouts:export", args=[layout.pk])).status_code == 404
    assert b"First" not in stranger.get(pages[0]).content
    assert (
        people.client("teammate").post(pages[1], {**FORM, "base_version": layout.base_version_id}).status_code
        == 403
    )


def test_programs_do_the_same_over_rest(people, base):
    client = Client(headers=people.bearer("owner", "read", "write"))
    cost = client.post(
        "/api/v1/layouts/preview/", {"base_version": base.pk, "spec": SPEC}, content_type="application/json"
    ).json()
    assert cost["mixture"]["total"] > cost["dense"]["total"]
    made = client.post(
        "/api/v1/layouts/",
        {"name": "R", "base_version": base.pk, "spec": SPEC},
        content_type="application/json",
    )
    assert made.status_code == 201, made.content
    url = f"/api/v1/layouts/{made.json()['id']}/"
    changed = client.patch(
        url, {"revision": 1, "spec": {**SPEC, "top_k": 1}}, content_type="application/json"
    )
    assert changed.json()["revision"] == 2
    assert [one["revision"] for one in client.get(f"{url}revisions/").json()] == [2, 1]
    assert (
        client.get(f"{url}cost/").json()["mixture"]["active_per_token"] < cost["mixture"]["active_per_token"]
    )
    for idle in ({"revision": 2}, {"revision": 2, "note": "why"}):
        refused = client.patch(url, idle, content_type="application/json")
        assert refused.status_code == 422 and "must change something" in refused.json()["detail"]
    again = client.patch(url, {"revision": 1, "name": "S"}, content_type="application/json")
    assert (again.status_code, again.json()["code"]) == (409, "stale_revision")
    stranger = Client(headers=people.bearer("outsider", "read", "write"))
    assert stranger.get(url).status_code == 404
    theirs = stranger.post(
        "/api/v1/layouts/preview/", {"base_version": base.pk, "spec": SPEC}, content_type="application/json"
    )
    assert theirs.status_code == 404
    reader = Client(headers=people.bearer("teammate", "read"))
    assert (
        reader.post(
            "/api/v1/layouts/preview/",
            {"base_version": base.pk, "spec": SPEC},
            content_type="application/json",
        ).status_code
        == 200
    )
    assert reader.delete(url).status_code == 403
    assert client.delete(url).status_code == 204


def test_a_layout_outlives_a_new_name_of_its_model(people, layout):
    model_edit(caller=people.owner, model_id=layout.base_version.model_id, name="Renamed")
    assert "Renamed" in people.client("owner").get(reverse("layouts:list")).content.decode()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"num_experts": "1000000000"}, "Experts per layer: at most 1024."),
        ({"moe_intermediate_size": "99999999999"}, "Expert width: at most 262144."),
        ({"num_experts": "0"}, "Experts per layer: at least 1."),
        ({"layers": ""}, "Layers with experts: This field is required."),
    ],
)
def test_what_the_browser_would_hold_back_is_sent_and_answered(people, base, typed, words):
    client = people.client("owner")
    editor = client.get(reverse("layouts:new")).content.decode()
    form = editor[editor.index('<form id="layout-form"') :].split(">", 1)[0]
    assert " novalidate" in form
    assert 'hx-sync="this:queue last"' in form
    answer = client.post(
        reverse("layouts:preview"), {**FORM, "base_version": base.pk, **typed}
    ).content.decode()
    assert words in answer
    assert 'data-state="danger"' in answer
    assert 'data-cost="total"' not in answer


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", "top-k (9) must not exceed the number of experts (8)."),
        ("zh-hans", "top-k（9）不能大于专家数（8）。"),
    ],
)
def test_a_layout_that_cannot_be_built_says_why_in_the_readers_language(people, base, language, words):
    client = people.client("owner")
    client.cookies["django_language"] = language
    answer = client.post(
        reverse("layouts:preview"),
        {**FORM, "base_version": base.pk, "top_k": "9"},
        headers={"accept-language": language},
    ).content.decode()
    assert words in answer
    assert "LayoutSpec" not in answer and "Value error" not in answer
