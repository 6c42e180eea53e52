"""What exactly was wrong with a refused row, in the reader's language.

Refusals are stored as the parsers told them, in English and in Python's names, so that a row reads the same whoever
uploaded it; here those fragments become words.
"""

from __future__ import annotations

import re

from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

KINDS: dict[str, Promise] = {
    "NoneType": _("null"),
    "bool": _("true or false"),
    "int": _("a number"),
    "float": _("a number"),
    "list": _("a list"),
    "dict": _("an object"),
    "str": _("text that is no part"),
    "None": _("a part without a type"),
}
JSON_FAULTS: dict[str, Promise] = {
    "Expecting value": _("a value is missing"),
    "Expecting ',' delimiter": _("a comma is missing"),
    "Expecting ':' delimiter": _("a colon is missing"),
    "Expecting property name enclosed in double quotes": _("a key in double quotes is missing"),
    "Unterminated string starting at": _("a string does not end"),
    "Invalid control character at": _("a string holds a control character"),
    "Invalid \\escape": _("a backslash escapes nothing"),
    "Invalid \\uXXXX escape": _("\\u is not followed by four hexadecimal digits"),
    "Illegal trailing comma before end of object": _("a comma stands before the closing brace"),
    "Illegal trailing comma before end of array": _("a comma stands before the closing bracket"),
    "Extra data": _("more text follows the object"),
    "a number has too many digits": _("a number has too many digits"),
    "it nests too deeply": _("it nests too deeply"),
}
CSV_FAULTS: dict[str, Promise] = {
    "unexpected end of data": _("the file ends inside quotes"),
    "line contains NUL": _("it holds NUL"),
    "new-line character seen in unquoted field": _("a line breaks outside quotes"),
    "field larger than field limit": _("a cell is longer than 1 MiB"),
}
EXPECTED_AFTER_QUOTE = re.compile(r"'(?P<mark>.)' expected after '\"'")
PLACE = re.compile(r"(?P<fault>.+?) at line \d+, column (?P<column>\d+)")
REPEATED = re.compile(r"the key (?P<key>'.*'|\".*\") appears twice in one object")


def detail_in_words(code: str, detail: str) -> str:
    """Return what stands in a reason's place for the detail; what is not known stays as it is."""
    if code == "not_text":
        return str(KINDS.get(detail, detail))
    if code == "not_json":
        return _json_fault(detail)
    if code == "bad_csv":
        return _csv_fault(detail)
    if code == "duplicate_key" and (found := REPEATED.fullmatch(detail)):
        return found["key"]
    if code == "bad_text" and detail.startswith("a string holds NUL"):
        return gettext("NUL, or half a surrogate pair")
    return detail


def _json_fault(detail: str) -> str:
    found = PLACE.fullmatch(detail)
    if found is None:
        return str(JSON_FAULTS.get(detail, detail))
    fault = JSON_FAULTS.get(found["fault"])
    words = {"fault": str(fault) if fault else found["fault"], "column": found["column"]}
    return gettext("%(fault)s (column %(column)s)") % words


def _csv_fault(detail: str) -> str:
    if found := EXPECTED_AFTER_QUOTE.fullmatch(detail):
        return gettext("after a closing quote stands something other than “%(mark)s”") % {
            "mark": found["mark"]
        }
    return next((str(words) for known, words in CSV_FAULTS.items() if detail.startswith(known)), detail)
