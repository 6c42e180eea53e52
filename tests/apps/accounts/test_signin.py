"""Signing in: guesses are held back, people are not; every sign-in leaves a line in the audit log."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F
from django.test import Client

from accounts import throttle
from accounts.models import AuditEvent, SignInLimit, User
from accounts.throttle import ADDRESS, NAME, NAME_AT_ADDRESS, take, tries_of
from common.errors import Busy

HERE, THERE = "203.0.113.7", "198.51.100.9"
RIGHT, WRONG = "a-long-pass-phrase", "a-wrong-pass-phrase"


@pytest.fixture
def olga(people) -> User:
    user = people.owner.user
    user.set_password(RIGHT)
    user.save()
    return user


def attempt(name: str, password: str, address: str = HERE, client: Client | None = None, **headers):
    return (client or Client()).post(
        "/signin/", {"username": name, "password": password}, REMOTE_ADDR=address, headers=headers
    )


def use_up(name: str, address: str = HERE) -> None:
    for _ in range(NAME_AT_ADDRESS.tries):
        assert attempt(name, WRONG, address).status_code == 200


def pass_time(seconds: int) -> None:
    """Let the clock of every bound go on."""
    SignInLimit.objects.update(spent_until=F("spent_until") - timedelta(seconds=seconds))


@pytest.mark.parametrize("name", ["olga", "nobody-of-this-name"])
def test_guesses_are_held_back_whether_or_not_the_account_exists(olga, name) -> None:
    use_up(name)
    refused = attempt(name, RIGHT)
    assert refused.status_code == 429
    assert 1 <= int(refused["Retry-After"]) <= NAME_AT_ADDRESS.every_s
    assert "Too many attempts have failed. Wait" in refused.content.decode()
    assert "_auth_user_id" not in refused.wsgi_request.session


def test_the_refusal_reads_the_same_for_a_known_and_an_unknown_name(olga) -> None:
    bodies = []
    for name in ("olga", "none"):
        use_up(name, HERE if name == "olga" else THERE)
        reply = attempt(name, WRONG, HERE if name == "olga" else THERE, accept="application/json")
        body = reply.json()
        bodies.append({key: body[key] for key in ("code", "status", "title")})
    assert bodies[0] == bodies[1]
    assert bodies[0]["code"] == "too_many_signins"


def test_the_sentence_is_chinese_for_a_chinese_reader(olga) -> None:
    use_up("olga")
    refused = attempt("olga", WRONG, **{"accept-language": "zh-hans"})
    assert "失败次数过多" in refused.content.decode()


def test_another_spelling_of_a_name_has_no_tries_of_its_own(olga) -> None:
    use_up("olga")
    assert attempt("  OLGA ", WRONG).status_code == 429


def test_tries_come_back_with_time(olga) -> None:
    use_up("olga")
    pass_time(NAME_AT_ADDRESS.every_s)
    assert attempt("olga", RIGHT).status_code == 302


def test_a_right_password_costs_nothing(olga) -> None:
    for _ in range(3 * NAME_AT_ADDRESS.tries):
        assert attempt("olga", RIGHT).status_code == 302


def test_a_stranger_at_one_address_does_not_keep_the_owner_out_elsewhere(olga) -> None:
    """The stranger goes on for a quarter of an hour, with every try that comes back to that address."""
    for _ in range(15):
        while attempt("olga", WRONG, THERE).status_code == 200:
            pass
        pass_time(60)
    assert attempt("olga", RIGHT, HERE).status_code == 302


def test_strangers_everywhere_do_not_keep_a_known_browser_out(olga) -> None:
    browser = Client()
    assert attempt("olga", RIGHT, client=browser).status_code == 302
    browser.post("/signout/")
    for number in range(NAME.tries):
        attempt("olga", WRONG, f"192.0.2.{number}")
    assert attempt("olga", RIGHT, "192.0.2.250").status_code == 429
    assert attempt("olga", RIGHT, client=browser).status_code == 302


def test_a_known_browser_has_bounded_guesses_too_and_is_known_to_its_person_alone(olga) -> None:
    browser = Client()
    attempt("olga", RIGHT, client=browser)
    browser.post("/signout/")
    cookie = browser.cookies["turnout_browser"]
    assert (cookie["httponly"], cookie["path"], cookie["samesite"]) == (True, "/signin/", "Lax")
    seen = [attempt("olga", WRONG, client=browser).status_code for _ in range(12)]
    assert seen == [200] * throttle.KNOWN_BROWSER.tries + [429] * 2
    seen = [attempt("tim", WRONG, client=browser).status_code for _ in range(6)]
    assert seen == [200] * NAME_AT_ADDRESS.tries + [429]


def test_a_forged_cookie_makes_no_browser_known(olga) -> None:
    forger = Client()
    forger.cookies["turnout_browser"] = "eyJicm93c2VyIjoiMSIsIm5hbWUiOiJvbGdhIn0:1v:xxxx"
    seen = [attempt("olga", WRONG, client=forger).status_code for _ in range(6)]
    assert seen[-1] == 429


def test_one_address_has_bounded_tries_over_all_names(olga) -> None:
    seen = [attempt(f"name-{number}", WRONG).status_code for number in range(ADDRESS.tries + 1)]
    assert seen == [200] * ADDRESS.tries + [429]
    assert attempt("name-0", WRONG, THERE).status_code == 200


def test_a_customer_with_a_whole_ipv6_network_is_one_address() -> None:
    assert tries_of("x", "2001:db8::1") == tries_of("x", "2001:db8::ffff:2")
    assert tries_of("x", "2001:db8::1") != tries_of("x", "2001:db8:0:1::1")
    assert tries_of("x", "::ffff:203.0.113.7") == tries_of("x", HERE)


@pytest.mark.django_db(transaction=True)
def test_processes_that_ask_at_once_get_no_more_tries_than_there_are() -> None:
    def one(_number: int) -> bool:
        try:
            take(tries_of("olga", HERE))
        except Busy:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(40))) == NAME_AT_ADDRESS.tries


def test_a_refused_try_takes_nothing_from_the_other_bounds(olga) -> None:
    use_up("olga")
    before = sorted(SignInLimit.objects.values_list("key", "spent_until"))
    assert attempt("olga", WRONG).status_code == 429
    assert sorted(SignInLimit.objects.values_list("key", "spent_until")) == before


def test_what_is_kept_of_tries_names_nobody_and_is_swept(olga) -> None:
    use_up("olga")
    assert not [
        row for row in SignInLimit.objects.values_list("key", flat=True) if "olga" in row or HERE in row
    ]
    pass_time(10_000)
    throttle.sweep()
    assert not SignInLimit.objects.exists()


def test_signing_in_failing_and_signing_out_are_audited(olga, people) -> None:
    browser = Client()
    attempt("olga", WRONG, client=browser)
    attempt("olga", RIGHT, client=browser)
    browser.post("/signout/")
    lines = AuditEvent.objects.filter(action__startswith="sign").order_by("id")
    assert [(one.action, one.actor, one.target) for one in lines] == [
        ("signin.failed", "—", "olga"), ("signin", "olga", "olga"), ("signout", "olga", "olga"),
    ]  # fmt: skip
    assert {one.team for one in lines} == {people.owner.team}
    assert [one.detail.get("address") for one in lines] == [HERE, HERE, None]
    assert "signin.failed" in people.client("owner").get("/audit/").content.decode()


def test_a_name_that_nobody_has_is_not_written_down(olga) -> None:
    attempt("my-secret-password", WRONG)
    line = AuditEvent.objects.get(action="signin.failed")
    assert (line.target, line.team) == ("—", None)


def test_a_refused_token_is_told_which_scope_it_lacks(people) -> None:
    client = Client()
    reply = client.get("/api/v1/jobs/", headers=people.bearer("owner", "infer"))
    assert reply.status_code == 403
    assert (
        reply.json()["detail"] == "This token lacks the scope “read”; make one that has it under API tokens."
    )
    reply = client.post(
        "/api/v1/deployments/", {}, "application/json", headers=people.bearer("owner", "write")
    )
    assert "“deploy”" in reply.json()["detail"]


def test_a_viewer_is_not_sent_for_a_token_that_they_cannot_make(people) -> None:
    for path in ("jobs", "deployments"):
        headers = people.bearer("teammate", "read")
        reply = Client().post(f"/api/v1/{path}/", {}, "application/json", headers=headers)
        assert (reply.status_code, reply.json()["detail"]) == (403, "This needs the role Editor; yours is Viewer.")
    reply = Client().post("/api/v1/jobs/", {}, "application/json", headers=people.bearer("owner", "read"))
    assert "lacks the scope “write”" in reply.json()["detail"], "an admin can make such a token"


def test_the_admin_of_a_team_is_not_sent_to_themselves(people) -> None:
    said = {}
    for path in ("/admin/", "/jobs/tune/"):
        for who in ("owner", "teammate"):
            said[path, who] = people.client(who).get(path).content.decode()
    way = "An admin of your team can give you a role"
    assert [key for key, page in said.items() if way in page] == [("/jobs/tune/", "teammate")]
    assert all("Whoever runs this installation" in said["/admin/", who] for who in ("owner", "teammate"))


def test_a_caller_without_a_token_is_told_the_header(people) -> None:
    for language, words in (("en", "You did not send an API token"), ("zh-hans", "请求中没有 API 令牌")):
        reply = Client().get("/api/v1/jobs/", headers={"accept-language": language})
        assert reply.status_code == 401
        assert words in reply.json()["detail"] and "Authorization: Bearer" in reply.json()["detail"]


def test_a_refused_person_is_told_which_role_it_takes(people) -> None:
    reply = people.client("teammate").post("/api/v1/layouts/", {}, "application/json")
    assert (reply.status_code, reply.json()["detail"]) == (
        403,
        "This needs the role Editor; yours is Viewer.",
    )
