"""Why a row was refused, in words. `%(detail)s` is the value in question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext, ngettext_lazy
from django.utils.translation import gettext_lazy as _

from common.errors import Invalid
from common.told import told
from corpora.details import detail_in_words

REASONS: dict[str, Any] = {
    "too_large": _("The row is longer than 1 MiB."),
    "row_too_long": _("The row is longer than 1 MiB."),
    "not_utf8": _("The row is not UTF-8 text."),
    "too_deep": _("The JSON is nested too deeply."),
    "not_json": _("The row is not JSON: %(detail)s."),
    "duplicate_key": _("A key is repeated: %(detail)s."),
    "not_finite": _("A number is not finite."),
    "bad_text": _("The text holds a character that no log needs: %(detail)s."),
    "not_object": _("The row is JSON, but not an object."),
    "no_messages": _("There is no list “messages”; keys found: %(detail)s."),
    "empty_messages": _("“messages” is no list, or an empty one."),
    "too_many_messages": _("There are %(detail)s messages; 1,000 are the most."),
    "not_message": _("A message is not an object with “role” and “content”."),
    "unknown_role": _("The role “%(detail)s” is none of system, user, assistant."),
    "not_text": _("A message holds something other than text: %(detail)s."),
    "empty_text": _("A message is empty."),
    "no_user": _("Nobody asks: there is no message of the user."),
    "no_answer": _("The last message is not the assistant's, so there is nothing to learn from."),
    "bad_domain": _("“%(detail)s” is no domain code (2 to 12 small letters, digits, hyphens)."),
    "too_many_domains": _("The file names more than 64 domains; this one was over: %(detail)s."),
    "bad_csv": _("The record is not well-formed CSV: %(detail)s."),
    "open_quote": ngettext_lazy(
        "A quote opens in this record and never closes: %(detail)s line was read as it stands; close the quote, or "
        "double it.",
        "A quote opens in this record and never closes, so %(detail)s lines were read as one; close the quote, or "
        "double it.",
        "detail",
    ),
    "wrong_width": _("The record has another number of columns than the header: %(detail)s."),
    "row_limit": _("The file has more than %(detail)s rows; the rest was not read."),
}

# Those whose detail is a number that decides between one and many.
COUNTED = frozenset({"open_quote"})


def reason(code: str, detail: str = "") -> str:
    """Return the sentence for a refusal in the reader's language."""
    sentence = REASONS.get(code)
    if sentence is None:
        return code
    if code in COUNTED:
        return str(sentence % {"detail": int(detail) if detail.isdigit() else 0})
    return str(sentence) % {"detail": detail_in_words(code, detail) or gettext("none")}


# Why a whole file was refused.
FILE_REASONS: Mapping[str, Promise] = {
    "unknown_encoding": _(
        "The file is not UTF-8, and nothing in it tells its encoding. Name its encoding, or save it as UTF-8 (in a "
        "spreadsheet: “CSV UTF-8”) and add it again."
    ),
    "no_rows": _("The file holds no row."),
    "no_header": _("The table has no header row with column names."),
    "too_many_columns": _("The table has more than %(detail)s columns."),
    "no_columns": _(
        "The table needs a column “user” (or prompt, question) and a column “assistant” (or response, answer); "
        "it has: %(detail)s."
    ),
}


class Unusable(Invalid):
    """A file of which nothing can be taken: a code of FILE_REASONS and the value in question."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(file_reason(code, detail), code=code)
        self.detail = detail


def file_reason(code: str, detail: str = "") -> str:
    """Return why a file was refused in the reader's language; what has no code is told as it was said."""
    sentence = FILE_REASONS.get(code)
    return told(detail) if sentence is None else str(sentence) % {"detail": detail}
