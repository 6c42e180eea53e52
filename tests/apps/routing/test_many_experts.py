"""Maps of more experts than the matrix draws: what is not drawn is typed, told of, and never lost."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from django.urls import reverse

from routing import services
from routing.drafts import MAX_TYPED
from routing.models import DomainMap
from routing.selectors import map_get, routing_spec
from tests.people import People

pytestmark = pytest.mark.django_db
SUPPORT = {"code": "support", "name_en": "Support", "name_zh": "客服", "examples": ["a", "b", "c"]}
COPY = {"code": "copy", "name_en": "Copy", "name_zh": "文案", "examples": ["a", "b", "c"]}


class Sent(HTMLParser):
    """What a browser sends of a page's form when nothing is touched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields: dict[str, list[str]] = {}
        self._name, self._chosen = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        is_box = given.get("type") in ("checkbox", "radio")
        if tag == "input" and given.get("name") and (not is_box or "checked" in given):
            self._add(given["name"], given.get("value"))
        elif tag in ("textarea", "select"):
            self._name, self._chosen = given.get("name") or "", ""
        elif tag == "option" and (not self._chosen or "selected" in given):
            self._chosen = given.get("value") or ""

    def handle_data(self, data: str) -> None:
        if self._name and self.lasttag == "textarea":
            self._chosen += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("textarea", "select"):
            self._add(self._name, self._chosen.strip())
            self._name = ""

    def _add(self, name: str | None, value: str | None) -> None:
        self.fields.setdefault(name or "", []).append(value or "")


@pytest.fixture
def wide(people: People) -> DomainMap:
    plan = {
        "num_experts": 128,
        "domains": [{**SUPPORT, "experts": [3, 100, 101, 102]}, {**COPY, "experts": [5, 70]}],
        "general_experts": [4, 90, 127],
        "policy": {
            "prior_layers": {
                "1": {"mode": "bias", "strength": 1.23456789},
                "2": {"mode": "floor", "floor": 0.123456789},
            }
        },
    }
    return services.map_create(caller=people.owner, name="Wide", plan=plan)


def opened(people: People, wide: DomainMap) -> tuple[Any, str, dict[str, list[str]]]:
    client, url = people.client("owner"), reverse("routing:detail", args=[wide.pk])
    return client, url, Sent(client.get(url).content.decode()).fields


def test_a_save_without_a_change_keeps_every_expert_and_every_digit(people: People, wide: DomainMap) -> None:
    before = routing_spec(wide)
    client, url, sent = opened(people, wide)
    assert client.post(url, sent).status_code == 302
    saved = map_get(people.owner.team, wide.pk)
    assert (saved.revision, routing_spec(saved)) == (1, before)


def test_experts_that_are_not_drawn_are_typed(people: People, wide: DomainMap) -> None:
    client, url, sent = opened(people, wide)
    assert sent["typed-experts-0"] == ["100-102"] and sent["typed-general"] == ["90, 127"]
    sent |= {"typed-experts-0": ["64 – 66，7、120"], "typed-general": [""]}
    assert client.post(url, sent).status_code == 302
    spec = routing_spec(map_get(people.owner.team, wide.pk))
    # Of those that have a box the field may speak too.
    assert (spec.domains[0].experts, spec.general_experts) == ((3, 7, 64, 65, 66, 120), (4,))


@pytest.mark.parametrize(
    ("field", "typed", "said", "chinese"),
    [
        ("typed-experts-1", "70, x", "Copy: “x” is no expert and no range", "“x”不是专家编号"),
        ("typed-experts-1", "107-100", "“107-100” is no expert", "“107-100”不是专家编号"),
        ("typed-experts-1", "4000", "“4000” is no expert", "“4000”不是专家编号"),
        ("typed-experts-1", "70, 128", "Copy names expert 128, but the last one is 127.", "128"),
        ("typed-general", "90-", "General: “90-” is no expert", "“90-”不是专家编号"),
        ("typed-general", "200", "General names expert 200, but the last one is 127.", "200"),
    ],
)
def test_what_is_no_expert_is_refused_beside_its_field_and_stays_typed(
    people: People, wide: DomainMap, field: str, typed: str, said: str, chinese: str
) -> None:
    client, url, sent = opened(people, wide)
    sent[field] = [typed]
    for language, words in (("en", said), ("zh-hans", chinese)):
        reply = client.post(url, sent, headers={"accept-language": language})
        page = reply.content.decode()
        assert reply.status_code == 422
        assert words in page and f'id="id_{field}_error"' in page
        assert Sent(page).fields[field] == [typed]
    assert map_get(people.owner.team, wide.pk).revision == 1


def test_fewer_experts_leave_none_out_without_a_word(people: People, wide: DomainMap) -> None:
    client, url, sent = opened(people, wide)
    sent["num_experts"] = ["8"]
    reply = client.post(url, sent)
    assert reply.status_code == 422
    assert "Support names expert 100, but the last one is 7." in reply.content.decode()
    # Nothing went: with the number put right the page saves what it had.
    again = Sent(reply.content.decode()).fields | {"num_experts": ["128"]}
    assert client.post(url, again).status_code == 302
    assert map_get(people.owner.team, wide.pk).domains.all()[0].experts == [3, 100, 101, 102]
    resized = client.post(reverse("routing:check"), {**sent, "op": "resize"}).content.decode()
    assert "Left out, as there is no such expert: 70, 90, 100-102, 127." in resized
    assert "typed-experts-0" not in resized


def test_the_largest_map_is_drawn_and_saved_as_it_is(people: People) -> None:
    domains = [
        {**SUPPORT, "code": f"d{row}", "experts": [*range(64), *range(65 + row % 2, 1024, 2)]}
        for row in range(64)
    ]
    plan = {"num_experts": 1024, "domains": domains}
    made = services.map_create(caller=people.owner, name="Largest", plan=plan)
    client, url, sent = opened(people, made)
    page = client.get(url).content
    assert page.count(b'type="checkbox"') == (64 + 1) * 64
    assert len(page) < 2 * 2**20
    assert len(sent["typed-experts-1"][0]) < MAX_TYPED
    assert client.post(url, sent).status_code == 302
    assert routing_spec(map_get(people.owner.team, made.pk)) == routing_spec(made)
