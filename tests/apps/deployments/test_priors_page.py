"""The forms of a deployment show a prior's number where the chosen mode has one, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from deployments.services import deployment_create
from tests.apps.registry.fixtures import make_version, moe_spec
from tests.in_browser import shown

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser]
NUMBERS = {"prior_strength": "bias", "prior_floor": "floor"}


def test_a_number_stands_beside_its_mode(people: Any, tmp_path: Path) -> None:
    version = make_version(people, tmp_path, spec=moe_spec(num_experts=8, top_k=2))
    made = deployment_create(caller=people.owner, name="support", version_id=version.pk)
    with shown(people.client("owner"), 1280) as page:
        for address, prefix in (("/deployments/new/", ""), (f"/deployments/{made.pk}/", "update-")):
            page.goto(address)
            if prefix:
                page.locator('[data-open="update"]').first.click()
            for mode in ("", "floor", "bias", "mask"):
                page.select_option(f'[name="{prefix}prior_mode"]', mode)
                for name, own in NUMBERS.items():
                    expect(page.locator(f'[name="{prefix}{name}"]')).to_be_visible(visible=mode == own)
