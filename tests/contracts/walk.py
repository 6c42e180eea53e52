"""Four people who walk every address with every method, in one furnished house; each step is undone at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any

import pytest
from django.db import transaction
from django.test import Client

from tests.contracts.house import contents, furnish, row_counts
from tests.people import People, make_people

WHO = ("anonymous", "outsider", "teammate", "owner")


@dataclass(frozen=True, slots=True)
class Step:
    """One answer, and whether anything was changed on the way to it."""

    method: str
    status: int
    location: str
    body: bytes

    @property
    def is_refusal(self) -> bool:
        """Whether nobody was let in: 401, 403, or the way to the sign-in page."""
        return self.status in (401, 403) or (self.status == 302 and self.location.startswith("/signin/"))

    @property
    def succeeded(self) -> bool:
        """Whether it did something or showed something."""
        return self.status < 400 and not self.is_refusal


class Walk:
    """The house with its people; `step` is one request that leaves no trace."""

    def __init__(self, people: People) -> None:
        self.people = people
        self.things = furnish(people.owner)
        self.clients = {who: Client(raise_request_exception=False) for who in WHO}
        for who in WHO[1:]:
            self.clients[who].force_login(getattr(people, who).user)
        self.cookies = {who: self.clients[who].cookies.output(header="") for who in WHO}
        self.before = self.state()

    def state(self) -> tuple[Any, Any]:
        """Return all that could have been changed."""
        return contents(self.things), row_counts()

    def step(self, who: str, method: str, path: str, accept: str = "application/json") -> Step:
        """Make one request as somebody and undo what it did."""
        with undone():
            return self.send(who, method, path, accept)

    def changes(self, who: str, methods: tuple[str, ...], path: str) -> tuple[list[Step], tuple[Any, Any]]:
        """Make some requests in a row and return their answers with the state that they leave behind."""
        with undone():
            steps = [self.send(who, method, path, "*/*") for method in methods]
            return steps, self.state()

    def send(self, who: str, method: str, path: str, accept: str) -> Step:
        """Make one request."""
        client = self.clients[who]
        client.cookies = SimpleCookie(self.cookies[who])
        reply = client.generic(method, path, "{}", "application/json", headers={"accept": accept})
        body = b"".join(reply.streaming_content) if reply.streaming else reply.content
        return Step(method, reply.status_code, reply.headers.get("Location", ""), body)


@contextmanager
def undone() -> Iterator[None]:
    """Whatever happens to the database inside has not happened outside."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.fixture(scope="module")
def walk(django_db_setup: None, django_db_blocker: Any) -> Iterator[Walk]:
    """Return the furnished house, made once for a whole module of tests."""
    with django_db_blocker.unblock(), undone():
        yield Walk(make_people())
