"""Two teams serve under one name: each key reaches its own team's engine, and each team's usage counts its own."""

from __future__ import annotations

import pytest

from gateway.models import Usage
from tests.apps.deployments.stack import until
from tests.apps.gateway.served import Instance

pytestmark = pytest.mark.django_db
NAME = "shop"
TEAMS = ("owner", "outsider")


@pytest.fixture(scope="module")
def served(instance: Instance) -> dict[str, int]:
    """The number of each team's deployment of the name."""
    return {who: instance.serve(NAME, who=who).pk for who in TEAMS}


def test_each_key_reaches_the_deployment_of_its_team(instance, served):
    for who in (*TEAMS, *TEAMS):
        body = {"model": NAME, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        status, _headers, reply = instance.ask("POST", "/v1/chat/completions", body, key=instance.key(who))
        assert (status, reply["model"]) == (200, NAME)
    until(lambda: Usage.objects.filter(finish_reason__in=("stop", "length")).count() == 4)
    for who in TEAMS:
        used = Usage.objects.filter(team=getattr(instance.people, who).team)
        assert set(used.values_list("deployment", flat=True)) == {served[who]}
        assert used.count() == 2


def test_each_team_is_listed_its_own(instance, served):
    for who in TEAMS:
        status, _headers, reply = instance.ask("GET", "/v1/models", key=instance.key(who))
        assert (status, [one["id"] for one in reply["data"]]) == (200, [NAME])
        status, _headers, reply = instance.ask("GET", f"/v1/models/{NAME}", key=instance.key(who))
        assert reply["turnout"]["deployment"] == served[who]
