"""Downloads: the report of refused rows as CSV that no spreadsheet will run."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from django.http import StreamingHttpResponse
from django.utils.translation import gettext as _

from corpora.models import CorpusFile, Refusal
from corpora.reasons import reason

# What a spreadsheet takes for the beginning of a formula, full-width signs included.
FORMULA = re.compile(r"^[\s'\"]*[=+\-@＝＋－＠\t\r\n|%]")


def safe_cell(text: str) -> str:
    """Return text that a spreadsheet shows as text."""
    return f"'{text}" if FORMULA.match(text) else text


class _Echo:
    """A file that hands back what is written."""

    def write(self, text: str) -> str:
        return text


def refusals_csv(file: CorpusFile) -> StreamingHttpResponse:
    """Return the refused rows of a file, one line each, as a download."""
    response = StreamingHttpResponse(_lines(file), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="refused-rows-{file.pk}.csv"'
    response["X-Content-Type-Options"] = "nosniff"
    return response


def _lines(file: CorpusFile) -> Iterator[str]:
    table = csv.writer(_Echo())
    yield "\ufeff"
    yield table.writerow([_("row"), _("code"), _("reason"), _("begins with")])
    for refusal in Refusal.objects.filter(file=file).iterator(chunk_size=500):
        yield table.writerow(
            [
                refusal.row,
                refusal.code,
                safe_cell(reason(refusal.code, refusal.detail)),
                safe_cell(refusal.excerpt),
            ]
        )
