"""A person designs a layer of unlike experts with a noisy gate, and tunes it with a schedule, in a real browser."""

from __future__ import annotations

import re

import pytest
from django.utils.translation import override
from playwright.sync_api import expect

from common.figures import compact_parts
from jobs.models import Job
from layouts.models import Layout
from moe_core.spec import LayoutSpec, TuneSpec, cost_of
from routing.services import map_create
from tests.apps.jobs.fixtures import PLAN, make_corpus
from tests.apps.registry.fixtures import DENSE, make_version
from tests.in_browser import shown

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser]

WANTED = {
    "moe_layers": [0, 1, 2, 3], "num_experts": 4, "top_k": 2,
    "expert_kinds": [
        {"kind": "swiglu", "width": 64}, {"kind": "swiglu", "width": 64}, {"kind": "swiglu", "width": 16}, {"kind": "identity"},
    ],
}  # fmt: skip


@pytest.fixture
def world(people, tmp_path):
    map_create(caller=people.owner, name="Map", plan=PLAN)
    make_corpus(people)
    return make_version(people, tmp_path)


@pytest.mark.parametrize(("width", "language"), [(1280, "en"), (390, "zh-hans")])
def test_a_layer_of_unlike_experts_is_designed_and_tuned_with_a_schedule(
    people, world, width, language
) -> None:
    with shown(people.client("owner"), width, language) as page:
        page.goto("/layouts/new/")
        plain = page.locator("[data-cost='total']").inner_text()
        expect(page.locator("#kinds")).to_be_hidden()
        expect(page.locator("#id_gate-noisy_topk-noise_floor")).to_be_hidden()

        page.select_option("#id_experts", "mixed")
        expect(page.locator("#id_num_experts")).to_be_hidden()
        page.fill("#id_kinds-0-count", "2")
        page.fill("#id_kinds-1-count", "1")
        page.fill("#id_kinds-1-width", "16")
        # The answer comes while one types.
        expect(page.locator("[data-cost='total']")).not_to_have_text(plain)

        page.get_by_role("button", name=re.compile("Add a kind|添加一种")).click()
        expect(page.locator("#id_kinds-2-kind")).to_be_visible()
        assert page.locator("#id_kinds-1-width").input_value() == "16"
        page.select_option("#id_kinds-2-kind", "identity")
        expect(page.locator("#id_kinds-2-width")).to_be_hidden()
        expect(page.locator("#diagram-place [data-kind='identity']")).to_have_count(1)
        with override(language):
            total, _unit = compact_parts(cost_of(LayoutSpec.parse(WANTED).applied_to(DENSE)).total)
        expect(page.locator("[data-cost='total']")).to_contain_text(total)
        wide, narrow = (
            page.locator("#diagram-place [data-kind='swiglu'] rect").nth(place).get_attribute("width")
            for place in (0, 2)
        )
        assert float(wide) > float(narrow)

        page.select_option("#id_gate", "noisy_topk")
        expect(page.locator("#id_gate-noisy_topk-noise_floor")).to_be_visible()
        expect(page.locator("[data-gate='softmax_topk']")).to_be_hidden()
        page.locator("[data-gate='noisy_topk'] summary").click()
        page.check("#id_gate-noisy_topk-selection_bias")

        # A refusal keeps everything, beside the field.
        page.fill("#id_kinds-1-width", "0")
        page.locator("button[form='layout-form']").click()
        expect(page.locator("#id_kinds-1-width_error")).to_be_visible()
        assert page.locator("#id_gate").input_value() == "noisy_topk"
        assert page.locator("#id_gate-noisy_topk-selection_bias").is_checked()
        page.fill("#id_kinds-1-width", "16")
        page.fill("#id_name", "Uneven")
        page.locator("button[form='layout-form']").click()
        page.wait_for_url(re.compile(r"/layouts/\d+/"))
        assert page.evaluate("document.documentElement.scrollWidth") <= width

        layout = Layout.objects.get(name="Uneven")
        spec = LayoutSpec.parse(layout.spec)
        assert spec.expert_kinds == LayoutSpec.parse(WANTED).expert_kinds
        assert (spec.gate.kind, spec.gate.selection_bias, spec.num_experts) == ("noisy_topk", True, 4)

        page.goto(f"/jobs/tune/?layout={layout.pk}&model_version={world.pk}")
        expect(page.locator("#id_schedule-kind")).to_be_hidden()
        page.get_by_text(re.compile("More: temperature, noise|更多：温度、噪声")).click()
        page.select_option("#id_schedule-kind", "cosine")
        page.fill("#id_schedule-start", "3")
        page.fill("#id_schedule-num_steps", "12")
        page.fill("#id_balance_bias_rate", "0.01")
        expect(page.locator("#id_capacity-train_factor")).to_be_hidden()
        page.locator("main form button.primary").click()
        page.wait_for_url(re.compile(r"/jobs/\d+/"))
        expect(page.locator("[data-part='recipe']")).to_contain_text("0.01")

    told = TuneSpec.parse(Job.objects.get().inputs["tune"])
    assert told.temperature_schedule is not None
    assert (
        told.temperature_schedule.kind,
        told.temperature_schedule.start,
        told.temperature_schedule.end,
    ) == ("cosine", 3, 1)
    assert (told.balance_bias_rate, told.layout) == (0.01, spec)


def test_without_a_script_the_same_page_designs_the_same_layer(people, world) -> None:
    client = people.client("owner")
    with shown(client) as page:
        page.route("**/*.js", lambda route: route.abort())
        page.goto("/layouts/new/")
        page.select_option("#id_experts", "mixed")
        page.fill("#id_name", "By hand")
        page.fill("#id_kinds-0-count", "3")
        page.get_by_role("button", name="Add a kind").click()
        expect(page.locator("#id_kinds-2-kind")).to_be_visible()
        assert page.locator("#id_name").input_value() == "By hand"
        page.select_option("#id_kinds-2-kind", "zero")
        page.locator("button[value='drop-kind-1']").click()
        expect(page.locator("#id_kinds-2-kind")).to_have_count(0)
        page.select_option("#id_gate", "top_p")
        expect(page.locator("#id_gate-top_p-p")).to_be_visible()
        page.locator("button[form='layout-form']").click()
        page.wait_for_url(re.compile(r"/layouts/\d+/"))
    spec = LayoutSpec.parse(Layout.objects.get(name="By hand").spec)
    assert [one.kind for one in spec.expert_kinds or ()] == ["swiglu", "swiglu", "swiglu", "zero"]
    assert spec.gate.kind == "top_p"
