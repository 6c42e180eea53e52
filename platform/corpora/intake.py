"""Reading one file: rows checked, repeats dropped, the rest written to the two sides of the split."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.db import connection

from common.leases import Claim, lease_guarded, lease_renew
from corpora.lines import Line, utf8_lines
from corpora.models import CorpusFile, FileState, Refusal, RowKey
from corpora.reasons import Unusable
from corpora.rows import Refused, Row, is_held_out, row_from_json
from corpora.tables import table_rows
from registry import store
from registry.models import UploadKind

BATCH_ROWS = 500
BATCH_BYTES = 4 << 20
MAX_ROWS = 2_000_000
MAX_REFUSALS_KEPT = 10_000
MAX_DOMAINS = 64
NO_DOMAIN = ""
KEY_BYTES = 16
CLAIM_KEYS = """
INSERT INTO corpora_rowkey (corpus_id, file_id, digest)
SELECT %s, %s, unnest(%s::bytea[]) ON CONFLICT (corpus_id, digest) DO NOTHING RETURNING digest
"""


@dataclass(slots=True)
class Tally:
    """What happened to the rows of one file."""

    encoding: str = "utf-8"
    is_encoding_guessed: bool = False
    rows: int = 0
    refused: int = 0
    duplicates: int = 0
    characters: int = 0
    by_refusal: Counter[str] = field(default_factory=Counter)
    train: Counter[str] = field(default_factory=Counter)
    # About how many tokens there are to train on, by domain; the tokenizer is the model's, and it is not known here.
    about_tokens: Counter[str] = field(default_factory=Counter)
    held_out: Counter[str] = field(default_factory=Counter)

    def as_counts(self) -> dict[str, Any]:
        """Plain data for the file's row."""
        codes = sorted(self.train.keys() | self.held_out.keys())
        return {
            "encoding": self.encoding,
            "is_encoding_guessed": self.is_encoding_guessed,
            "rows": self.rows,
            "refused": self.refused,
            "duplicates": self.duplicates,
            "characters": self.characters,
            "train": self.train.total(),
            "held_out": self.held_out.total(),
            "by_refusal": dict(self.by_refusal),
            "about_tokens": dict(self.about_tokens),
            "by_domain": {
                code: {"train": self.train[code], "held_out": self.held_out[code]} for code in codes
            },
        }


def read_file(file: CorpusFile, claim: Claim) -> None:
    """Read one file from its beginning; everything it said before is replaced. Raises Unusable for a useless file."""
    with lease_guarded(claim):
        RowKey.objects.filter(file=file).delete()
        file.refusals.all().delete()
    tally = Tally()
    incoming = Path(settings.STORE_DIR) / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=incoming) as folder:
        train, held_out = Path(folder) / "train.jsonl", Path(folder) / "held_out.jsonl"
        with train.open("wb") as train_sink, held_out.open("wb") as held_out_sink:
            for batch in _batches(_outcomes(file, tally)):
                lease_renew(claim)
                _take(file, claim, batch, tally, train_sink, held_out_sink)
        if not tally.rows:
            raise Unusable("no_rows")
        sides = {"train": _stored(train), "held_out": _stored(held_out)}
    with lease_guarded(claim):
        CorpusFile.objects.filter(pk=file.pk).update(
            state=FileState.READY, counts=tally.as_counts(), error="", error_code="",
            train_id=sides["train"], held_out_id=sides["held_out"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Read:
    """One row as it came, with its number in the file and how it begins."""

    number: int
    outcome: Row | Refused
    excerpt: str
    num_bytes: int


def _outcomes(file: CorpusFile, tally: Tally) -> Iterator[Read]:
    encoding, lines = utf8_lines(store.path_of(file.upload.artifact_id), named=file.encoding)
    tally.encoding, tally.is_encoding_guessed = encoding.name, encoding.is_guessed
    default = file.default_domain or None
    is_table = file.upload.kind == UploadKind.CSV
    domains: set[str] = set()
    for read in _table(lines, default) if is_table else _json_lines(lines, default):
        if tally.rows >= MAX_ROWS:
            yield Read(read.number, Refused("row_limit", str(MAX_ROWS)), "", 0)
            return
        tally.rows += 1
        yield _bounded_domains(read, domains)


def _bounded_domains(read: Read, domains: set[str]) -> Read:
    """Refuse the sixty-fifth domain: a column of free text was taken for a domain."""
    if not isinstance(read.outcome, Row) or read.outcome.domain is None:
        return read
    if len(domains) >= MAX_DOMAINS and read.outcome.domain not in domains:
        return Read(read.number, Refused("too_many_domains", read.outcome.domain), read.excerpt, 0)
    domains.add(read.outcome.domain)
    return read


def _json_lines(lines: Iterator[Line], default: str | None) -> Iterator[Read]:
    for line in lines:
        if not line.raw.strip():
            continue
        try:
            if line.is_too_long:
                raise Refused("row_too_long")
            outcome: Row | Refused = row_from_json(line.raw, default)
        except Refused as refused:
            outcome = refused
        yield Read(line.number, outcome, line.raw[:600].decode("utf-8", "replace"), len(line.raw))


def _table(lines: Iterator[Line], default: str | None) -> Iterator[Read]:
    for number, outcome, excerpt in table_rows(lines, default):
        yield Read(number, outcome, excerpt[:600], 1024)


def _batches(reads: Iterator[Read]) -> Iterator[list[Read]]:
    batch: list[Read] = []
    size = 0
    for read in reads:
        batch.append(read)
        size += read.num_bytes
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _take(
    file: CorpusFile, claim: Claim, batch: list[Read], tally: Tally, train: IO[bytes], held_out: IO[bytes]
) -> None:
    """Claim the rows' hashes; what was claimed before, here or in another file, is a repeat."""
    rows: dict[bytes, tuple[Row, bytes]] = {}
    for read in batch:
        if isinstance(read.outcome, Row):
            digest = read.outcome.digest()
            key = digest[:KEY_BYTES]
            tally.duplicates += key in rows
            rows.setdefault(key, (read.outcome, digest))
    _refuse(file, claim, [read for read in batch if isinstance(read.outcome, Refused)], tally)
    fresh = _claimed(file, claim, list(rows))
    tally.duplicates += len(rows) - len(fresh)
    for key, (row, digest) in rows.items():
        if key not in fresh:
            continue
        counter, sink = (tally.held_out, held_out) if is_held_out(digest) else (tally.train, train)
        counter[row.domain or NO_DOMAIN] += 1
        if counter is tally.train:
            tally.about_tokens[row.domain or NO_DOMAIN] += row.about_tokens()
        tally.characters += sum(len(message["content"]) for message in row.messages)
        sink.write(row.as_line())


def _claimed(file: CorpusFile, claim: Claim, digests: list[bytes]) -> set[bytes]:
    if not digests:
        return set()
    with lease_guarded(claim), connection.cursor() as cursor:
        cursor.execute(CLAIM_KEYS, [file.corpus_id, file.pk, digests])
        return {bytes(row[0]) for row in cursor.fetchall()}


def _refuse(file: CorpusFile, claim: Claim, reads: list[Read], tally: Tally) -> None:
    room = max(0, MAX_REFUSALS_KEPT - tally.refused)
    tally.refused += len(reads)
    refusals = []
    for read in reads:
        assert isinstance(read.outcome, Refused)
        tally.by_refusal[read.outcome.code] += 1
        refusals.append(
            Refusal(file=file, row=read.number, code=read.outcome.code, detail=_shown(read.outcome.detail),
                    excerpt=_shown(read.excerpt))
        )  # fmt: skip
    if refusals[:room]:
        with lease_guarded(claim):
            Refusal.objects.bulk_create(refusals[:room])


def _shown(text: str) -> str:
    """Text that can be stored and shown: one line, no control characters."""
    return "".join(mark if mark.isprintable() else " " for mark in text)[:200]


def _stored(path: Path) -> str | None:
    return store.put_file(path).sha256 if os.path.getsize(path) else None


def preview_rows(
    sha256: str, *, domain: str | None, offset: int, limit: int, scan: int = 50_000
) -> list[dict[str, Any]]:
    """Return some rows of one side of a split; `domain` None means every domain. Reads at most `scan` rows."""
    found: list[dict[str, Any]] = []
    with store.path_of(sha256).open("rb") as source:
        for number, line in enumerate(source):
            if number >= scan or len(found) >= offset + limit:
                break
            row = json.loads(line)
            if domain is None or (row["domain"] or NO_DOMAIN) == domain:
                found.append(row)
    return found[offset:]


def joined(parts: list[str]) -> str | None:
    """Store the given objects one after the other as one object; None when there are none."""
    if not parts:
        return None

    def chunks() -> Iterator[bytes]:
        for sha256 in parts:
            with store.path_of(sha256).open("rb") as source:
                while chunk := source.read(store.CHUNK_BYTES):
                    yield chunk

    return store.put_stream(chunks()).sha256
