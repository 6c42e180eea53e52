"""The theme button: both panels, and the way back to what the system says."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.in_browser import shown
from tests.people import People

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser]


def test_the_button_comes_back_to_as_the_system(people: People) -> None:
    client = people.client("owner")
    with shown(client) as page:
        page.goto("/playground/")
        root = page.locator("html")
        seen = []
        for _ in range(3):
            page.click("[data-theme-toggle]")
            seen.append(root.get_attribute("data-theme"))
        assert seen == ["dark", "light", "light"]
        assert page.evaluate("document.cookie").endswith("turnout_theme=auto")
        page.emulate_media(color_scheme="dark")
        expect(root).to_have_attribute("data-theme", "dark")
