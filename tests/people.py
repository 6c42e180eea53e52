"""Three standing people and their teams: owner and teammate in one, outsider in another."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from django.test import Client

from accounts.access import Role
from accounts.caller import Caller
from accounts.models import Membership, Team, User
from accounts.services import api_token_create, team_create


@dataclass(frozen=True)
class People:
    """Who takes part in a test. `owner` is admin, `teammate` viewer of one team; `outsider` is admin of another."""

    owner: Caller
    teammate: Caller
    outsider: Caller

    def client(self, who: str) -> Client:
        """Return a signed-in browser."""
        client = Client()
        client.force_login(getattr(self, who).user)
        return client

    def bearer(self, who: str, *scopes: str) -> dict[str, str]:
        """Return headers with a fresh token."""
        _token, secret = api_token_create(caller=getattr(self, who), name="test", scopes=list(scopes))
        return {"authorization": f"Bearer {secret}"}


@pytest.fixture
def people(db: None) -> People:
    """Return the three standing people."""
    return make_people()


def make_people() -> People:
    """Make them, for a fixture that lives longer than a test too."""
    owner, teammate, outsider = (User.objects.create_user(name) for name in ("olga", "tim", "otto"))
    house: Team = team_create(name="House", owner=owner)
    other: Team = team_create(name="Other", owner=outsider)
    Membership.objects.create(user=teammate, team=house, role=Role.VIEWER)
    return People(
        Caller(house, owner, Role.ADMIN),
        Caller(house, teammate, Role.VIEWER),
        Caller(other, outsider, Role.ADMIN),
    )
