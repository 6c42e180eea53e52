"""Experts that are typed are said in their row and judged while they are typed, in a real browser."""

from __future__ import annotations

import pytest
from django.urls import reverse
from playwright.sync_api import expect

from routing import services
from routing.selectors import map_get
from tests.apps.console.test_phone import TOO_WIDE
from tests.apps.routing.test_many_experts import COPY, SUPPORT
from tests.in_browser import shown
from tests.people import People

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser]


@pytest.mark.parametrize("width", [1280, 390])
def test_experts_that_are_typed_are_said_in_their_row_and_judged(people: People, width: int) -> None:
    domains = [{**SUPPORT, "experts": [3, 100]}, {**COPY, "experts": [5, *range(64, 128, 2)]}]
    made = services.map_create(
        caller=people.owner, name="Wide", plan={"num_experts": 128, "domains": domains}
    )
    with shown(people.client("owner"), width) as page:
        page.goto(reverse("routing:detail", args=[made.pk]))
        expect(page.locator('[data-typed="experts-0"]')).to_have_text("100")
        page.fill('[name="typed-experts-0"]', "100-103, 200")
        page.fill('[name="typed-general"]', "127")
        expect(page.locator('[data-typed="experts-0"]')).to_have_text("100-103, 200")
        expect(page.locator('[data-typed="general"]')).to_have_text("127")
        expect(page.locator("#verdict-place")).to_contain_text("expert 200, but the last one is 127")
        page.fill('[name="typed-experts-0"]', "101, 103")
        expect(page.locator("#remarks-place")).not_to_contain_text("200")
        assert page.evaluate(TOO_WIDE) == []
        page.locator("button.primary").click()
        expect(page.locator(".berth").first).to_have_text("r2")
        expect(page.locator('[name="typed-general"]')).to_have_value("127")
    saved = map_get(people.owner.team, made.pk)
    assert (saved.domains.all()[0].experts, saved.general_experts) == ([3, 101, 103], [127])
