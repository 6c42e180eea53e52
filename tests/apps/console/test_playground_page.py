"""The playground in a browser: the code beside the answer is the request that was made."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, Route, expect

from deployments.models import Deployment
from registry.models import Model, ModelVersion
from tests.in_browser import shown
from tests.people import People

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser]


def serve(people: People) -> None:
    model = Model.objects.create(team=people.owner.team, name="Tiny", slug="tiny")
    version = ModelVersion.objects.create(model=model, number=1, spec={}, files={}, size_bytes=1)
    Deployment.objects.create(
        team=people.owner.team,
        name="support",
        desired_version=version,
        live_version=version,
        live_revision=1,
        desired_replicas=1,
    )


def gateway_of(page: Page) -> list[dict]:
    """A gateway that says the same to everybody, and keeps what it was asked."""
    asked: list[dict] = []

    def reply(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or ""))
        parts = [{"delta": {"content": "A late truck."}}, {"delta": {}, "finish_reason": "stop"}]
        lines = [f"data: {json.dumps({'choices': [{'index': 0, **part}]})}\n\n" for part in parts]
        route.fulfill(content_type="text/event-stream", body="".join([*lines, "data: [DONE]\n\n"]))

    models = {"data": [{"id": "support"}]}
    page.route(lambda url: url.endswith("/v1/models"), lambda route: route.fulfill(json=models))
    page.route(lambda url: url.endswith("/v1/chat/completions"), reply)
    return asked


def test_the_code_after_an_answer_is_the_request_that_was_made(people: People) -> None:
    serve(people)
    with shown(people.client("owner")) as page:
        asked = gateway_of(page)
        page.goto("/playground/")
        page.fill("#prompt", "Why is it late?")
        page.click("#send")
        expect(page.locator(".turn.assistant .words")).to_have_text("A late truck.")
        expect(page.locator("#code-curl")).to_contain_text("Why is it late?")
        code = page.locator("#code-curl").text_content() or ""
        shown_body = json.loads(code[code.index("-d '") + 4 : code.rindex("'")])
        assert shown_body["messages"] == asked[0]["messages"]
        assert "A late truck." not in (page.locator("#code-python").text_content() or "")
        page.fill("#prompt", "And now?")
        assert "A late truck." in (page.locator("#code-python").text_content() or "")
