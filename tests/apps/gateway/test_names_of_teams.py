"""The gateway looks a model's name up in the key's team, and nowhere else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deployments.services import deployment_create
from gateway.database import Database
from gateway.directory import Directory, Target
from gateway.errors import ApiError
from tests.apps.registry.fixtures import make_version
from tests.apps.registry.fixtures import store_dir as store_dir
from tests.people import make_people


async def looked_up(*questions: tuple[int, str]) -> list[Target | ApiError]:
    """What one directory answers to teams that ask one after the other, so that what it remembers counts too."""
    database = Database()
    await database.open()
    directory = Directory(database)
    answers: list[Any] = []
    try:
        for team, name in questions:
            try:
                answers.append(await directory.find(team, name))
            except ApiError as error:
                answers.append(error)
    finally:
        await database.close()
    return answers


@pytest.mark.django_db(transaction=True)
def test_one_name_leads_each_team_to_its_own_deployment(tmp_path) -> None:
    people = make_people()
    made = {}
    for who in ("owner", "outsider"):
        version = make_version(people, tmp_path, name=f"Of {who}", who=who)
        made[who] = deployment_create(caller=getattr(people, who), name="shop", version_id=version.pk)
    alone = make_version(people, tmp_path, name="Alone")
    deployment_create(caller=people.owner, name="alone", version_id=alone.pk)
    house, other = people.owner.team.pk, people.outsider.team.pk
    found = asyncio.run(
        looked_up((house, "shop"), (other, "shop"), (house, "shop"), (other, "alone"), (other, "no-such"))
    )
    assert [one.id for one in found[:3]] == [made["owner"].pk, made["outsider"].pk, made["owner"].pk]
    # A name that only another team uses is answered as one that nobody uses.
    assert [(one.status, one.code, str(one).replace("alone", "no-such")) for one in found[3:]] == [
        (404, "model_not_found", str(found[4]))
    ] * 2
