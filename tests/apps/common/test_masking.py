"""No secret of ours reaches a log."""

from __future__ import annotations

import logging

import pytest
from django.conf import settings
from django.test import Client

from accounts.access import Role
from accounts.invitations import invitation_create
from accounts.tokens import INVITATION_PREFIX, TOKEN_PREFIX, token_new
from common.masking import MaskSecrets, masked


def written(record: logging.LogRecord) -> str:
    assert MaskSecrets().filter(record)
    return logging.Formatter("%(message)s").format(record)


@pytest.mark.parametrize("prefix", [TOKEN_PREFIX, INVITATION_PREFIX])
def test_a_secret_is_cut_to_its_beginning_in_words_and_in_values(prefix) -> None:
    secret = token_new(prefix)
    for message, values in (("Not Found: %s", (f"/join/{secret}/",)), (f"Bearer {secret} is wrong", ())):
        record = logging.LogRecord("django.request", logging.WARNING, __file__, 1, message, values, None)
        line = written(record)
        assert secret not in line
        assert f"{secret[:7]}…" in line


def test_other_lines_stay_as_they_are() -> None:
    text = "a sign-in from 203.0.113.7 is held back for 60 s; ti_short; 4f9a2c"
    assert masked(text) == text
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "%s of %s", ("1", "2"), None)
    assert written(record) == "1 of 2"


def test_every_handler_masks() -> None:
    assert all("secrets" in handler["filters"] for handler in settings.LOGGING["handlers"].values())


def test_a_refused_form_does_not_write_its_open_link_down(people, caplog) -> None:
    """Django logs the address of every refusal."""
    _invitation, secret = invitation_create(caller=people.owner, role=Role.VIEWER)
    assert Client().post(f"/join/{secret}/", {"username": "nora", "password": "short"}).status_code == 422
    lines = [one.getMessage() for one in caplog.records if "/join/" in one.getMessage()]
    assert [secret in line for line in lines] == [False], lines
