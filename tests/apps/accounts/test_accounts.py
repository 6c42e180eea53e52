"""First admin, tokens, roles and the audit log."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import DatabaseError, connection, transaction

from accounts.access import Role
from accounts.audit import audit_record, audit_verify
from accounts.models import ApiToken, AuditEvent, Membership, User
from accounts.selectors import caller_of_token, token_find
from accounts.services import (
    api_token_create,
    api_token_revoke,
    first_admin_create,
    setup_token_issue,
    setup_token_valid,
)
from common.errors import Conflict, DomainError, Forbidden, Invalid, NotFound


@pytest.mark.django_db(transaction=True)
def test_the_setup_link_makes_one_admin_however_many_try_at_once() -> None:
    token = setup_token_issue()

    def attempt(number: int) -> bool:
        try:
            first_admin_create(
                token=token, username=f"u{number}", password="a-long-pass-phrase", team_name="T"
            )
        except DomainError:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    assert User.objects.filter(is_superuser=True).count() == 1
    assert not setup_token_valid(token)
    with pytest.raises(Conflict):
        setup_token_issue()


@pytest.mark.django_db
def test_a_weak_password_leaves_the_link_usable() -> None:
    token = setup_token_issue()
    with pytest.raises(Invalid):
        first_admin_create(token=token, username="ann", password="short", team_name="T")
    assert setup_token_valid(token)


def test_a_token_is_stored_hashed_and_ends_when_revoked(people) -> None:
    token, secret = api_token_create(caller=people.owner, name="ci", scopes=["read"])
    assert secret not in str(ApiToken.objects.values().get())
    assert token_find(secret) == token
    assert token_find(secret[:-1]) is None
    api_token_revoke(caller=people.owner, token_id=token.pk)
    assert token_find(secret) is None


def test_a_token_never_exceeds_its_maker(people) -> None:
    with pytest.raises(Forbidden):
        api_token_create(caller=people.teammate, name="ci", scopes=["write"])
    token, _secret = api_token_create(caller=people.owner, name="ci", scopes=["read", "write"])
    caller = caller_of_token(token)
    assert caller is not None
    assert caller.role == Role.EDITOR
    Membership.objects.filter(user=people.owner.user).update(role=Role.VIEWER)
    assert caller_of_token(token).role == Role.VIEWER


def test_an_outsider_cannot_end_our_token(people) -> None:
    token, _secret = api_token_create(caller=people.owner, name="ci", scopes=["read"])
    with pytest.raises(NotFound):
        api_token_revoke(caller=people.outsider, token_id=token.pk)


def test_the_audit_log_refuses_changes_and_shows_tampering(people) -> None:
    first = audit_record(caller=people.owner, action="test", target="x", colour="red")
    audit_record(caller=people.owner, action="test", target="y")
    assert audit_verify() is None
    for change in (
        lambda: first.delete(),
        lambda: AuditEvent.objects.filter(pk=first.pk).update(actor="nobody"),
    ):
        with pytest.raises(DatabaseError), transaction.atomic():
            change()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE accounts_auditevent DISABLE TRIGGER audit_append_only")
        cursor.execute("UPDATE accounts_auditevent SET actor = 'nobody' WHERE id = %s", [first.pk])
        cursor.execute("ALTER TABLE accounts_auditevent ENABLE TRIGGER audit_append_only")
    assert audit_verify() == first.pk


def test_the_api_takes_a_token_and_refuses_the_rest(people) -> None:
    client = people.client("owner")
    assert client.get("/api/v1/schema/").status_code == 200
    client.logout()
    assert client.get("/api/v1/schema/").status_code == 401
    assert client.get("/api/v1/schema/", headers=people.bearer("owner", "infer")).status_code == 403
    assert client.get("/api/v1/schema/", headers=people.bearer("teammate", "read")).status_code == 200


def test_a_token_gets_the_limits_that_the_form_and_the_api_ask_for(people) -> None:
    page = people.client("owner")
    form = {
        "name": "site",
        "scopes": ["infer"],
        "days": 30,
        "max_concurrent": 4,
        "monthly_token_limit": 900_000,
    }
    assert page.post("/tokens/", form).status_code == 200
    made = ApiToken.objects.get(name="site")
    assert (made.max_concurrent, made.monthly_token_limit) == (4, 900_000)
    assert page.post("/tokens/", {"name": "free", "scopes": ["infer"], "days": 30}).status_code == 200
    free = ApiToken.objects.get(name="free")
    assert (free.max_concurrent, free.monthly_token_limit) == (16, None)
    asked = {"name": "ci", "scopes": ["infer"], "max_concurrent": 2, "monthly_token_limit": 5000}
    key = people.bearer("owner", "admin")
    reply = page.post("/api/v1/tokens/", asked, content_type="application/json", headers=key)
    assert (reply.status_code, reply.json()["max_concurrent"], reply.json()["monthly_token_limit"]) == (
        201,
        2,
        5000,
    )


@pytest.mark.parametrize(
    "limit", [{"max_concurrent": 0}, {"max_concurrent": 1001}, {"monthly_token_limit": 0}, {"monthly_token_limit": 10**13}]
)  # fmt: skip
def test_a_limit_out_of_bounds_is_refused(people, limit) -> None:
    reply = people.client("owner").post("/tokens/", {"name": "x", "scopes": ["infer"], "days": 30, **limit})
    assert reply.status_code == 422
    with pytest.raises(Invalid):
        api_token_create(caller=people.owner, name="x", scopes=["infer"], **limit)
    assert not ApiToken.objects.exists()


@pytest.mark.parametrize(
    ("who", "offered"),
    [("teammate", {"read", "infer"}), ("owner", {"read", "write", "deploy", "infer", "admin"})],
)
def test_the_page_offers_the_scopes_that_its_reader_may_give(people, who, offered) -> None:
    page = people.client(who).get("/tokens/").content.decode()
    assert set(re.findall(r'name="scopes" value="(\w+)"', page)) == offered


def test_a_viewer_who_asks_for_more_is_refused_by_the_page_and_by_the_service(people) -> None:
    viewer = people.client("teammate")
    for wrong in ({"scopes": ["admin"]}, {"scopes": ["write"]}, {"scopes": ["read"], "max_concurrent": 17}):
        reply = viewer.post("/tokens/", {"name": "x", "days": 30, **wrong})
        assert reply.status_code == 422
    with pytest.raises(Invalid):
        api_token_create(caller=people.teammate, name="x", scopes=["infer"], max_concurrent=17)
    assert not ApiToken.objects.exists()
    assert (
        viewer.post(
            "/tokens/", {"name": "x", "days": 30, "scopes": ["infer"], "max_concurrent": 16}
        ).status_code
        == 200
    )
    page = viewer.get("/tokens/").content.decode()
    assert 'max="16"' in page
    assert 'max="1000"' in people.client("owner").get("/tokens/").content.decode()


def test_the_page_offers_to_revoke_only_what_its_reader_may_revoke(people) -> None:
    api_token_create(caller=people.owner, name="ci", scopes=["read"])
    own, _secret = api_token_create(caller=people.teammate, name="mine", scopes=["read"])
    shown = re.findall(
        r'data-open="revoke-(\d+)"', people.client("teammate").get("/tokens/").content.decode()
    )
    assert shown == [str(own.pk)]
    assert people.client("owner").get("/tokens/").content.decode().count('data-open="revoke-') == 2


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_a_person_without_a_team_is_told_the_way_in_and_can_leave(people, language) -> None:
    Membership.objects.filter(user=people.teammate.user).delete()
    lonely = people.client("teammate")
    for path in ("/", "/jobs/", "/team/", "/api/"):
        reply = lonely.get(path, headers={"accept-language": language})
        page = reply.content.decode()
        assert reply.status_code == 403
        assert {"en": "Ask an admin of a team to invite you", "zh-hans": "请团队管理员发出邀请"}[
            language
        ] in page
        assert 'action="/signout/"' in page
        assert 'action="/i18n/setlang/"' in page
    program = lonely.get("/api/v1/jobs/")
    assert (program.status_code, "invite you" in program.json()["detail"]) == (403, True)
    assert lonely.post("/signout/").status_code == 302
