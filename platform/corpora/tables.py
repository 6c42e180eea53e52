"""CSV logs: columns found by their names, records bounded, a broken record costs only itself."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from corpora.lines import Line
from corpora.reasons import Unusable
from corpora.rows import MAX_ROW_BYTES, Message, Refused, Row, row_of, text_of

COLUMNS = {
    "system": ("system", "系统"),
    "user": ("user", "prompt", "question", "input", "instruction", "query", "用户", "问题", "提问"),
    "assistant": (
        "assistant",
        "response",
        "answer",
        "output",
        "completion",
        "reply",
        "助手",
        "回答",
        "回复",
        "答复",
    ),
    "domain": ("domain", "category", "领域", "业务领域", "类别"),
}
DELIMITERS = ",;\t"
MAX_COLUMNS = 256
# What the csv module says when the input ends inside quotes.
END_IN_QUOTES = "unexpected end of data"
# One limit for the whole process; this is the only place that reads CSV.
csv.field_size_limit(MAX_ROW_BYTES)

Outcome = Row | Refused


class Feed:
    """Hands lines to the csv module as text and watches that no record grows over the limit."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self.lines = lines
        self.taken = 0
        self.num_lines = 0
        self.excerpt = ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        text = line.raw.decode("utf-8", "replace")
        if not self.taken:
            self.excerpt = text
        self.taken += len(line.raw) + 1
        self.num_lines += 1
        if line.is_too_long or self.taken > MAX_ROW_BYTES:
            # Only a quote makes one record of several lines.
            raise (
                Refused("row_too_long") if self.num_lines == 1 else Refused("open_quote", str(self.num_lines))
            )
        return text + "\n"

    def begin(self) -> None:
        """Forget the record before."""
        self.taken, self.num_lines, self.excerpt = 0, 0, ""


def table_rows(lines: Iterator[Line], default_domain: str | None) -> Iterator[tuple[int, Outcome, str]]:
    """Yield (row number as a spreadsheet shows it, row or refusal, how it begins)."""
    feed = Feed(lines)
    header, delimiter = _header(feed)
    columns = _columns(header)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    number = 1
    while True:
        number += 1
        feed.begin()
        try:
            record = next(reader)
            if not any(cell.strip() for cell in record):
                continue
            outcome: Outcome = _row(record, columns, len(header), default_domain)
        except StopIteration:
            return
        except Refused as refused:
            outcome = refused
        except csv.Error as error:
            is_open = str(error) == END_IN_QUOTES
            outcome = (
                Refused("open_quote", str(feed.num_lines)) if is_open else Refused("bad_csv", str(error))
            )
        yield number, outcome, feed.excerpt


def _header(feed: Feed) -> tuple[list[str], str]:
    try:
        first = next(feed)
    except (StopIteration, Refused):
        raise Unusable("no_header") from None
    delimiter = max(DELIMITERS, key=first.count)
    try:
        header = next(csv.reader([first], delimiter=delimiter, strict=True), [])
    except csv.Error:
        header = []
    return [name.strip().lower() for name in header], delimiter


def _columns(header: list[str]) -> dict[str, int]:
    if len(header) > MAX_COLUMNS:
        raise Unusable("too_many_columns", str(MAX_COLUMNS))
    found: dict[str, int] = {}
    for role, names in COLUMNS.items():
        places = [header.index(name) for name in names if name in header]
        if places:
            found[role] = places[0]
    if "user" not in found or "assistant" not in found:
        raise Unusable("no_columns", ", ".join(header)[:200])
    return found


def _row(record: list[str], columns: dict[str, int], width: int, default_domain: str | None) -> Row:
    if len(record) > max(width, MAX_COLUMNS) or len(record) <= max(columns["user"], columns["assistant"]):
        raise Refused("wrong_width", f"{len(record)} / {width}")
    messages: list[Message] = []
    for role in ("system", "user", "assistant"):
        place = columns.get(role)
        if place is None or place >= len(record) or (role == "system" and not record[place].strip()):
            continue
        messages.append({"role": role, "content": text_of(record[place])})
    place = columns.get("domain")
    domain = record[place] if place is not None and place < len(record) else None
    return row_of(tuple(messages), domain, default_domain)
