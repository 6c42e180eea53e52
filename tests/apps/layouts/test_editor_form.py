"""The editor says everything that a layout can say, keeps what was typed, and puts each complaint beside its field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import reverse

from layouts.forms import LayoutForm, initial_of
from layouts.models import Layout
from moe_core.spec import LayoutSpec
from registry.gates import GATES, SCHEMAS
from tests.apps.registry.fixtures import DENSE, make_version

pytestmark = pytest.mark.django_db
PLAIN = {"moe_layers": [1, 3], "num_experts": 4, "top_k": 2}
KINDS = [
    {"kind": "swiglu", "width": 48, "activation": "gelu"},
    {"kind": "swiglu", "width": 48, "activation": "gelu"},
    {"kind": "mlp", "width": 24, "activation": "relu2", "bias": True},
    {"kind": "identity"},
    {"kind": "zero"},
    {"kind": "constant"},
]
WHOLE = [
    PLAIN,
    {**PLAIN, "num_experts": 6, "expert_kinds": KINDS, "free_expert_cost": 0.5},
    {**PLAIN, "num_shared_experts": 1, "shared_intermediate_size": 40, "moe_intermediate_size": 32},
    {**PLAIN, "norm_topk_prob": False, "temperature": 0.5},
    {**PLAIN, "temperature_schedule": {"kind": "linear", "start": 4.0, "end": 0.5, "num_steps": 20, "step": 3}},
    {**PLAIN, "capacity": {"train_factor": None, "eval_factor": 2.0, "overflow": "next_best", "priority": "weight"}},
    {**PLAIN, "gate": {"kind": "noisy_topk", "noise_floor": 0.2, "selection_bias": True}},
    {**PLAIN, "gate": {"kind": "sigmoid_groups", "num_groups": 2, "topk_group": 2, "selection_bias": False, "logit_bias": True}},
    {**PLAIN, "top_k": 1, "gate": {"kind": "switch", "jitter": 0.1}},
    {**PLAIN, "gate": {"kind": "hash", "choice": "clustered", "weights": "learned", "seed": 7}},
    {**PLAIN, "gate": {"kind": "hierarchical", "num_domains": 2, "groups_per_domain": 2}},
]  # fmt: skip


@pytest.fixture
def base(people, tmp_path):
    return make_version(people, tmp_path)


def typed(spec, base, **more):
    """What a browser sends of the editor that shows a layout, nothing touched."""
    parsed = LayoutSpec.parse(spec).model_dump(mode="json")
    form = LayoutForm(bases=[base], initial=initial_of(parsed, width=64, name="L", base_version=base.pk))
    sent = {}
    for name, field in form.fields.items():
        value = form[name].value()
        if isinstance(value, bool):
            # A box that is off sends the hidden “off” before it.
            sent[name] = "on" if value else "off"
        else:
            sent[name] = "" if value is None else str(value)
        assert field.widget is not None
    return {**sent, **more}


@pytest.mark.parametrize("spec", WHOLE, ids=lambda spec: ", ".join(sorted(set(spec) - set(PLAIN))) or "plain")
def test_a_layout_goes_through_the_form_unchanged(base, spec):
    form = LayoutForm(typed(spec, base), bases=[base])
    assert form.is_valid(), form.errors
    assert LayoutSpec.parse(form.spec()) == LayoutSpec.parse(spec)
    assert set(form.spec()) == set(LayoutSpec.model_fields)


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_every_gate_can_be_chosen_with_all_of_its_fields(base, kind):
    words = GATES[kind]
    assert {*words.asks, *words.more, *words.fixed} == set(SCHEMAS[kind].model_fields) - {"kind"}
    assert words.sentence and words.title
    css = Path(finders.find("layouts/layouts.css")).read_text()
    assert f'option[value="{kind}"]:checked) [data-gate="{kind}"]' in css
    top_k = {"switch": 1, "base": 1, "gshard_top2": 2}.get(kind, 2)
    spec = {**PLAIN, "top_k": top_k, "gate": {"kind": kind}}
    form = LayoutForm(typed(spec, base), bases=[base])
    assert form.is_valid(), form.errors
    assert form.spec()["gate"] == LayoutSpec.parse(spec).gate.model_dump(mode="json")


def test_experts_that_choose_are_not_asked_for_a_bias_that_moves_nothing(base):
    fields = LayoutForm(bases=[base]).fields
    assert "gate-expert_choice-capacity_factor" in fields and "gate-switch-selection_bias" in fields
    assert "gate-expert_choice-selection_bias" not in fields


def test_weights_that_sum_to_one_are_hidden_for_gates_that_weigh_by_themselves():
    kinds = {kind for kind, schema in SCHEMAS.items() if schema.weighs_by_itself}
    css = Path(finders.find("layouts/layouts.css")).read_text()
    hidden = re.search(
        r"#layout-form:has\(#id_gate option:is\(([^)]+)\):checked\) \.for-normed \{ display: none; \}", css
    )
    assert hidden and set(re.findall(r'value="(\w+)"', hidden[1])) == kinds
    assert (
        'form.norm_topk_prob css="for-normed"'
        in (Path(settings.ROOT) / "templates/layouts/editor.html").read_text()
    )
    page = (Path(settings.ROOT) / "docs/reference/routers.md").read_text()
    said = re.search(r"`norm_topk_prob` does nothing under ([^;]+?), which weigh", page)
    assert said and set(re.findall(r"`(\w+)`", said[1])) == kinds


def test_a_gates_source_is_that_of_the_reference():
    page = (Path(settings.ROOT) / "docs/reference/routers.md").read_text()
    gates = page[: page.index("\n\n", page.index("| `softmax_topk`"))]
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", gates, re.MULTILINE))
    assert {kind: words.source for kind, words in GATES.items()} == rows


def test_a_different_bound_of_the_specification_is_a_different_bound_of_the_form(base):
    form = LayoutForm(bases=[base])
    limits = {
        name: (form.fields[name].min_value, form.fields[name].max_value) for name in ("num_experts", "top_k")
    }
    assert limits == {"num_experts": (1, 1024), "top_k": (1, 64)}
    p = form.fields["gate-top_p-p"]
    assert (p.max_value, [one.bound for one in p.validators if hasattr(one, "bound")]) == (1.0, [0.0])


@pytest.mark.parametrize(
    ("changed", "field", "words"),
    [
        ({"gate": "switch"}, "gate", "sends a token to one expert"),
        ({"gate": "top_p", "gate-top_p-p": "0"}, "gate-top_p-p", "above 0."),
        ({"gate": "top_p", "gate-top_p-p": "x"}, "gate-top_p-p", "a number is needed."),
        ({"gate": "sigmoid_groups", "gate-sigmoid_groups-num_groups": "3"}, "gate", "must be divisible"),
        ({"capacity-overflow": "drop", "capacity-train_factor": "-1"}, "capacity-train_factor", "above 0."),
        ({"gate": "base", "top_k": "1", "capacity-overflow": "drop"}, "capacity-overflow", "evenly by itself"),
        ({"schedule-kind": "constant"}, "schedule-end", "has one value"),
        ({"num_experts": ""}, "num_experts", "This field is required."),
        ({"experts": "mixed", "kinds-0-width": ""}, "kinds-0-width", "How wide?"),
        ({"experts": "mixed", "kinds-0-activation": "relu"}, "kinds-0-activation", "silu, gelu"),
        ({"experts": "mixed", "kinds-0-count": "0"}, "kinds-0-count", "at least 1."),
        ({"experts": "mixed", "kinds-0-kind": "zero", "kinds-1-kind": "identity"}, "experts", "feed-forward"),
    ],
)  # fmt: skip
def test_a_complaint_stands_beside_its_field_and_nothing_is_lost(people, base, changed, field, words):
    sent = {**typed({**PLAIN, "norm_topk_prob": False}, base), "gate-hash-seed": "77", **changed}
    reply = people.client("owner").post(reverse("layouts:new"), sent)
    assert reply.status_code == 422
    form = reply.context["form"]
    assert list(form.errors) == [field] and words in " ".join(form.errors[field])
    page = reply.content.decode()
    assert f'id="id_{field}_error"' in page
    for name, value in {**changed, "gate-hash-seed": "77"}.items():
        assert form[name].value() == value
    assert form["norm_topk_prob"].value() is False
    assert not Layout.objects.exists()


def test_what_does_not_count_now_cannot_be_wrong(base):
    nonsense = {"gate-top_p-p": "x", "capacity-min_tokens": "x", "schedule-start": "x", "kinds-0-count": "x"}
    form = LayoutForm(typed(PLAIN, base, **nonsense), bases=[base])
    assert form.is_valid(), form.errors
    mixed = typed(
        {**PLAIN, "num_experts": 6, "expert_kinds": KINDS}, base, num_experts="x", moe_intermediate_size="x"
    )
    form = LayoutForm(mixed, bases=[base])
    assert form.is_valid(), form.errors


def test_rows_come_and_go_without_a_script_and_keep_what_was_typed(people, base):
    client, page = people.client("owner"), reverse("layouts:new")
    sent = typed(
        {**PLAIN, "num_experts": 6, "expert_kinds": KINDS}, base, name="Kept", **{"kinds-1-width": "odd"}
    )
    more = client.post(page, {**sent, "act": "add-kind"})
    form = more.context["form"]
    assert (more.status_code, form.num_rows, form.errors) == (200, 6, {})
    assert (form["name"].value(), form["kinds-1-width"].value(), form["kinds-1-bias"].value()) == (
        "Kept",
        "odd",
        True,
    )
    fewer = client.post(page, {**sent, "act": "drop-kind-0"}).context["form"]
    assert fewer.num_rows == 4
    assert (fewer["kinds-0-kind"].value(), fewer["kinds-0-width"].value()) == ("mlp", "odd")
    assert fewer["kinds-1-kind"].value() == "identity"
    assert not Layout.objects.exists()


def test_the_preview_prices_experts_of_several_kinds(people, base):
    client = people.client("owner")
    spec = {**PLAIN, "num_experts": 6, "expert_kinds": KINDS}
    answer = client.post(reverse("layouts:preview"), typed(spec, base)).content.decode()
    hidden = DENSE.hidden_size
    assert "2 × SwiGLU, 48 wide, gelu" in answer and "1 × MLP, 24 wide, relu2" in answer
    cost = Client(headers=people.bearer("owner", "read")).post(
        "/api/v1/layouts/preview/", {"base_version": base.pk, "spec": spec}, content_type="application/json"
    ).json()  # fmt: skip
    assert [(one["count"], one["params"]) for one in cost["experts"]] == [
        (2, 3 * 48 * hidden), (1, 2 * 24 * hidden + 24 + hidden), (1, 0), (1, 0), (1, 3 * hidden),
    ]  # fmt: skip
    # What one layer holds is what two layers of the mixture cost.
    assert cost["mixture"]["params"]["experts"] == 2 * sum(
        one["count"] * one["params"] for one in cost["experts"]
    )


def test_experts_of_different_width_are_drawn_different(people, base):
    spec = {**PLAIN, "num_experts": 6, "expert_kinds": KINDS}
    page = people.client("owner").post(reverse("layouts:preview"), typed(spec, base)).content.decode()
    drawn = [
        (kind, float(width))
        for kind, width in re.findall(r'data-kind="(\w+)"><rect[^>]+width="([\d.]+)"', page)
    ]
    assert [kind for kind, _width in drawn] == ["swiglu", "swiglu", "mlp"]
    assert drawn[0][1] == drawn[1][1] > drawn[2][1]
    for kind in ("identity", "zero", "constant"):
        assert f'data-kind="{kind}"' in page
    alike = people.client("owner").post(reverse("layouts:preview"), typed(PLAIN, base)).content.decode()
    assert "data-kind" not in alike


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_a_saved_layout_opens_with_everything_that_it_says(people, base, language):
    client = people.client("owner")
    client.cookies["django_language"] = language
    spec = {**WHOLE[6], "capacity": {"overflow": "residual"}, "temperature_schedule": {"kind": "cosine"}}
    reply = client.post(reverse("layouts:new"), typed(spec, base))
    layout = Layout.objects.get()
    assert reply.url == reverse("layouts:detail", args=[layout.pk])
    assert LayoutSpec.parse(layout.spec) == LayoutSpec.parse(spec)
    form = client.get(reply.url).context["form"]
    assert form["gate"].value() == "noisy_topk"
    assert form["gate-noisy_topk-noise_floor"].value() == 0.2
    assert (form["capacity-overflow"].value(), form["schedule-kind"].value()) == ("residual", "cosine")


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (("gate", "p"), "gate-top_p-p"),
        (("gate",), "gate"),
        (("gate", "num_groups"), "gate"),
        (("capacity", "min_tokens"), "capacity-min_tokens"),
        (("moe_layers", 1), "layers"),
    ],
)
def test_a_fault_of_a_specification_stands_beside_the_field_of_the_chosen_gate(people, base, place, field):
    form = LayoutForm(typed({**PLAIN, "gate": {"kind": "top_p"}}, base), bases=[base])
    assert form.field_of(place) == field


def test_programs_are_told_of_every_fault_at_once(people, base):
    client = Client(headers=people.bearer("owner", "read", "write"))

    def refused(spec):
        reply = client.post(
            "/api/v1/layouts/",
            {"name": "R", "base_version": base.pk, "spec": spec},
            content_type="application/json",
        )
        assert (reply.status_code, reply["Content-Type"]) == (422, "application/problem+json")
        return {one["field"]: one["message"] for one in reply.json()["errors"]}

    of_fields = refused(
        {**PLAIN, "num_experts": 0, "top_k": 99, "gate": {"kind": "top_p", "p": 2}, "surprise": 1}
    )
    assert set(of_fields) == {"spec.num_experts", "spec.top_k", "spec.gate.p", "spec.surprise"}
    of_whole = refused(
        {"moe_layers": [3, 1], "num_experts": 4, "top_k": 5, "shared_intermediate_size": 8, "gate": {"kind": "switch"},
         "temperature": 2, "temperature_schedule": {}, "expert_kinds": [{"kind": "zero"}]}
    )  # fmt: skip
    assert set(of_whole) == {
        "spec.moe_layers", "spec.top_k", "spec.shared_intermediate_size", "spec.gate", "spec.temperature",
        "spec.expert_kinds",
    }  # fmt: skip


def test_an_empty_request_is_answered(people, base):
    reply = people.client("owner").post(reverse("layouts:preview"), {})
    assert reply.status_code == 200 and 'data-state="danger"' in reply.content.decode()


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", "Gate: The gate “switch” sends a token to one expert, and top-k is 2; set it to 1."),
        ("zh-hans", "门控：门控“switch”只把词元送往一个专家，而 top-k 为 2；请设为 1。"),
    ],
)
def test_a_layout_that_cannot_be_built_says_why_and_the_way_out(people, base, language, said):
    client = people.client("owner")
    client.cookies["django_language"] = language
    sent = typed({**PLAIN, "top_k": 2}, base, gate="switch")
    assert said in client.post(reverse("layouts:preview"), sent).content.decode()
