"""A request that nobody could take is in the books all the same; one that broke a rule is not."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from django.utils import timezone

from accounts.models import ApiToken
from gateway import engines
from gateway.bodies import ChatBody
from gateway.callers import Principal
from gateway.completions import Completions
from gateway.directory import ReplicaAddress, Target
from gateway.engines import EngineAway
from gateway.errors import ApiError, from_engine, no_such_model, unavailable
from gateway.framing import Head
from gateway.http import Call
from gateway.meter import Used
from gateway.models import Quota, Usage
from gateway.selectors import keys_of, usage_of_team

REPLICA = ReplicaAddress(7, 1, "/nowhere")
WHO = Principal("token:1", 5, "house", 1, max_concurrent=2)


def target(*replicas: ReplicaAddress) -> Target:
    return Target(3, "support", 0, 9, "support v1", 1, (), replicas, is_wanted=True)


class Books:
    """Keeps what the meter was told."""

    def __init__(self) -> None:
        self.rows: list[Used] = []

    def note(self, used: Used) -> None:
        self.rows.append(used)


class Paths:
    """A directory and its engines, of which each look-up and each request ends as the test says."""

    def __init__(self, found: Target | ApiError, engine: BaseException) -> None:
        self.found, self.engine = found, engine
        self.in_flight: dict[int, int] = {REPLICA.id: 0}
        self.bodies: list[dict[str, Any]] = []
        self.told: ApiError | None = None

    async def find(self, _team: int, _name: str) -> Target:
        if isinstance(self.found, ApiError):
            raise self.found
        return self.found

    def forget(self, _team: int, _name: str) -> None:
        pass

    def choose(self, target: Target, tried: set[tuple[int, int]]) -> ReplicaAddress | None:
        self.in_flight.setdefault(REPLICA.id, 0)
        return next((one for one in target.replicas if (one.id, one.epoch) not in tried), None)

    async def generate(self, _replica: ReplicaAddress, body: dict[str, Any]) -> Any:
        self.bodies.append(body)
        raise self.engine


def asked(found: Target | ApiError, engine: BaseException) -> list[Used]:
    """The books after one request, which must have failed."""
    return asked_by(Paths(found, engine))


def asked_by(paths: Paths, **more: Any) -> list[Used]:
    books = Books()
    doors: Any = Completions(None, None, paths, books)  # type: ignore[arg-type]
    scope = {"method": "POST", "path": "/v1/chat/completions", "headers": []}
    call = Call(scope, None, None, "r1")  # type: ignore[arg-type]
    asks = {"model": "support", "messages": [{"role": "user", "content": "hi"}]}
    body = ChatBody.model_validate(asks | more)
    with patch("gateway.engines.generate", paths.generate), pytest.raises(ApiError) as told:
        asyncio.run(doors.answer(call, WHO, body, "chat"))
    paths.told = told.value
    return books.rows


@pytest.mark.parametrize(
    ("found", "engine", "reason"),
    [
        (target(), EngineAway(), "unavailable"),
        (target(REPLICA), EngineAway(), "unavailable"),
        (target(REPLICA), unavailable("gone", code="engine_lost"), "unavailable"),
        (target(REPLICA), from_engine(429, "engine_busy", "full"), "busy"),
        (target(REPLICA), from_engine(429, "queue_timeout", "full"), "busy"),
        (
            unavailable("The database does not answer.", code="database_unavailable"),
            EngineAway(),
            "unavailable",
        ),
    ],
)
def test_a_request_that_nobody_could_take_is_noted(found, engine, reason):
    (row,) = asked(found, engine)
    assert (row.finish_reason, row.team_id, row.token_id, row.completion_tokens) == (reason, 5, 1, 0)
    assert row.deployment_id == (3 if isinstance(found, Target) else None)
    assert row.total_ms is not None


def test_an_engine_is_told_whose_request_it_is_and_whose_prefixes_it_may_reuse() -> None:
    paths = Paths(target(REPLICA), EngineAway())
    asked_by(paths)
    (body,) = paths.bodies
    assert (body["fair_key"], body["cache_salt"]) == (WHO.key, "team:5")


@pytest.mark.parametrize(
    ("found", "engine"),
    [
        (no_such_model("support"), EngineAway()),
        (target(REPLICA), from_engine(400, "bad_request", "no")),
        (target(REPLICA), from_engine(413, "prompt_too_long", "no")),
    ],
)
def test_a_request_that_broke_a_rule_is_not(found, engine):
    assert asked(found, engine) == []


@pytest.mark.parametrize(
    ("status", "code", "param", "named"),
    [
        (400, "invalid_request", "logit_bias", "logit_bias"),
        (400, "prompt_too_long", "prompt_ids", "messages"),
        (400, "invalid_request", "routed_experts", "return_routed_experts"),
        (400, "invalid_grammar", "grammar", "response_format"),
        # Met at the first step, by the engine's loop.
        (503, "no_way_on", None, "response_format"),
        (400, "invalid_request", None, None),
    ],
)
def test_what_an_engine_refuses_is_named_as_the_client_sent_it(
    status: int, code: str, param: str | None, named: str | None
) -> None:
    body = {
        "response_format": {"type": "json_object"},
        "logit_bias": {"90": 1},
        "return_routed_experts": True,
    }
    said = {"error": {"code": code, "message": "no", "param": param}}
    refusal = engines._refusal(Head(status, {}), json.dumps(said).encode())
    paths = Paths(target(REPLICA), refusal)
    assert asked_by(paths, **body) == []
    assert paths.told is not None
    assert paths.told.as_object()["error"]["param"] == named


@pytest.mark.django_db
def test_the_page_counts_outages_as_failures_and_says_how_many_there_were(people):
    reasons = ["stop"] * 15 + ["error"] + ["unavailable"] * 20 + ["busy"]
    for number, reason in enumerate(reasons):
        Usage.objects.create(
            team=people.owner.team, version_id=0, request_id=f"r{number}", path="/v1/x", finish_reason=reason
        )
    found = usage_of_team(people.owner.team)
    assert (found["requests"], found["failed"], found["not_taken"]) == (37, 22, 21)
    page = people.client("owner").get("/gateway/").content.decode()
    assert "22 of 37 requests of the last day failed." in page
    assert "21 met no engine with a place" in page


@pytest.mark.django_db
def test_the_table_shows_each_keys_month_with_or_without_a_limit(people):
    people.bearer("owner", "infer")
    people.bearer("owner", "infer")
    limited, free = ApiToken.objects.order_by("id")
    ApiToken.objects.filter(pk=limited.pk).update(monthly_token_limit=900_000, max_concurrent=4)
    month = timezone.now().date().replace(day=1)
    Quota.objects.create(token=limited, month=month, used=1234, reserved=99)
    Quota.objects.create(token=free, month=month, used=5, reserved=0)
    for number, days in enumerate((0, 0, 40)):
        row = Usage.objects.create(
            team=people.owner.team, token=free, version_id=1, request_id=f"m{number}", path="/v1/x",
            finish_reason="stop", prompt_tokens=300, completion_tokens=21,
        )  # fmt: skip
        Usage.objects.filter(pk=row.pk).update(at=timezone.now() - timedelta(days=days))
    assert {one.token: one.month_used for one in keys_of(people.owner.team)} == {limited: 1234, free: 642}
    page = people.client("owner").get("/gateway/").content.decode()
    row = page[page.index("<tbody>") : page.index("</tbody>")].split("</tr>")
    assert [row[0].count("not limited"), row[1].count("not limited")] == [1, 0]
    assert row[0].index("642") < row[0].index("not limited")
