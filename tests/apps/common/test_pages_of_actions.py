"""An address that only takes POST shows a person who reloads it the way to the page that it belongs to."""

from __future__ import annotations

import pytest
from django.test import Client

from common.middleware import page_above
from tests.people import People

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("address", "page"),
    [
        ("/models/upload/", "/models/"),
        ("/tokens/3/revoke/", "/tokens/"),
        ("/team/members/2/role/", "/team/"),
        ("/team/switch/", "/team/"),
        ("/domains/check/", "/domains/"),
        ("/deployments/7/update/", "/deployments/7/"),
        ("/signout/", "/"),
    ],
)
def test_a_reload_shows_the_way_to_the_page(people: People, address: str, page: str) -> None:
    for language, words in (("en", "only takes what a form sends"), ("zh-hans", "只接收表单提交")):
        reply = people.client("owner").get(address, headers={"accept-language": language})
        assert reply.status_code == 405 and "POST" in reply.headers["Allow"]
        assert f'href="{page}"' in reply.content.decode() and words in reply.content.decode()
    assert people.client("owner").head(address).status_code == 405


def test_a_program_is_told_that_it_called_wrongly(people: People) -> None:
    reply = people.client("owner").get("/models/upload/", headers={"accept": "application/json"})
    assert (reply.status_code, reply.content) == (405, b"")
    assert people.client("owner").put("/models/upload/").status_code == 405


def test_a_stranger_learns_nothing() -> None:
    assert Client().get("/models/upload/").headers["Location"].startswith("/signin/")


def test_the_way_up_ends() -> None:
    assert page_above("/") == page_above("/nowhere/at/all/") == "/"
