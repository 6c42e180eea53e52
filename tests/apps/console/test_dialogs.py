"""A dialog whose form came back with errors is open on the answer, so that its errors can be read."""

from __future__ import annotations

import re

import pytest
from django.urls import reverse

from tests.apps.registry.fixtures import make_version, store_dir  # noqa: F401
from tests.people import People

pytestmark = pytest.mark.django_db


def dialogs_open(page: str) -> list[str]:
    return re.findall(r'<dialog [^>]*id="([^"]+)"[^>]* data-opened>', page)


@pytest.mark.parametrize(
    ("path", "form", "dialog"),
    [
        ("/tokens/", {"name": "ci"}, "new-token"),
        ("/team/", {"role": "viewer", "days": "99"}, "invite"),
        ("/data/", {"name": ""}, "new-corpus"),
    ],
)
def test_a_refused_form_brings_its_dialog_back(
    people: People, path: str, form: dict[str, str], dialog: str
) -> None:
    client = people.client("owner")
    assert dialogs_open(client.get(path).content.decode()) == []
    reply = client.post(path, form)
    page = reply.content.decode()
    assert (reply.status_code, dialogs_open(page)) == (422, [dialog])
    assert '<span class="error"' in page.split(f'id="{dialog}"')[1].split("</dialog>")[0]


def test_dialogs_that_post_elsewhere_come_back_too(people: People, tmp_path) -> None:
    dense = make_version(people, tmp_path)
    client = people.client("owner")
    for url, form, dialog in (
        (reverse("registry:edit", args=[dense.model_id]), {"name": ""}, "describe"),
        (reverse("layouts:import"), {"text": "{", "base_version": dense.pk}, "import"),
        (
            reverse("layouts:import"),
            {"text": '{"name": "x", "spec": {}}', "base_version": dense.pk},
            "import",
        ),
    ):
        reply = client.post(url, form)
        assert (reply.status_code, dialogs_open(reply.content.decode())) == (422, [dialog]), url
