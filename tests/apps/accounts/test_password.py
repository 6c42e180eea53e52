"""People change their own password: with the old one, a bounded number of guesses, and a line in the log."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import AuditEvent, SignInLimit, User
from accounts.throttle import ACCOUNT

OLD, NEW = "a-long-pass-phrase", "another-long-phrase"
PATH = "/account/password/"


@pytest.fixture
def tim(people) -> User:
    user = people.teammate.user
    user.set_password(OLD)
    user.save()
    return user


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def form(old: str = OLD, new: str = NEW, again: str = "") -> dict[str, str]:
    return {"old_password": old, "new_password1": new, "new_password2": again or new}


def test_a_person_changes_their_password_and_their_other_sessions_end(tim, people) -> None:
    here, elsewhere = signed_in(tim), signed_in(tim)
    assert here.post(PATH, form()).status_code == 302
    tim.refresh_from_db()
    assert tim.check_password(NEW)
    assert here.get("/team/").status_code == 200
    assert elsewhere.get("/team/").status_code == 302
    line = AuditEvent.objects.get(action="account.password_changed")
    assert (line.actor, line.target, line.team, line.detail) == ("tim", "tim", people.teammate.team, {})


@pytest.mark.parametrize(
    "wrong", [form(old="not-the-old-one"), form(new="short"), form(again="something-else-long")]
)
def test_a_refused_change_changes_nothing(tim, wrong) -> None:
    reply = signed_in(tim).post(PATH, wrong)
    assert reply.context["form"].errors
    tim.refresh_from_db()
    assert tim.check_password(OLD)
    assert not AuditEvent.objects.exists()


def test_the_old_password_is_guessed_a_bounded_number_of_times(tim) -> None:
    thief = signed_in(tim)
    seen = [thief.post(PATH, form(old=f"guess-{number}")).status_code for number in range(ACCOUNT.tries + 1)]
    assert seen == [200] * ACCOUNT.tries + [429]
    refused = thief.post(PATH, form())
    assert (refused.status_code, int(refused["Retry-After"]) <= ACCOUNT.every_s) == (429, True)
    tim.refresh_from_db()
    assert tim.check_password(OLD)


def test_a_new_password_that_is_refused_costs_no_guess(tim) -> None:
    client = signed_in(tim)
    for _ in range(2 * ACCOUNT.tries):
        assert client.post(PATH, form(new="short")).status_code == 200
    assert SignInLimit.objects.count() == 1
    assert client.post(PATH, form()).status_code == 302


def test_the_page_stands_in_the_persons_menu_in_both_languages(tim) -> None:
    client = signed_in(tim)
    assert f'href="{PATH}"' in client.get("/team/").content.decode()
    assert "修改密码" in client.get(PATH, headers={"accept-language": "zh-hans"}).content.decode()
    assert Client().get(PATH).status_code == 302
