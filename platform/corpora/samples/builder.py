"""Write the demo's logs: one file a domain, made anew from the installed packages each time."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .catalogue import DOMAINS, SampleDomain
from .dialogue import Dialogue, without_repeats

MIN_DIALOGUES = 40
# No domain may drown the others: about 50,000 tokens of English each.
MAX_DOMAIN_CHARS = 200_000


class SampleError(Exception):
    """A domain's sources hold too little to make logs from."""


@dataclass(frozen=True, slots=True)
class SampleFile:
    """One written log file."""

    domain: str
    path: Path
    num_dialogues: int
    num_chars: int


def build(out_dir: Path, domains: Sequence[SampleDomain] = DOMAINS) -> list[SampleFile]:
    """Write `<domain>.jsonl` or `.csv` for each domain, and `domains.json`; the same bytes every time."""
    out_dir.mkdir(parents=True, exist_ok=True)
    written = [_write(domain, out_dir) for domain in domains]
    listing = [_described(domain, file) for domain, file in zip(domains, written, strict=True)]
    text = json.dumps(listing, ensure_ascii=False, indent=2)
    (out_dir / "domains.json").write_text(f"{text}\n", "utf-8")
    return written


def selected(domain: SampleDomain) -> list[Dialogue]:
    """The domain's dialogues without repeats, at most MAX_DOMAIN_CHARS of them, in the order of the source."""
    everything = list(without_repeats(domain.dialogues()))
    budget, kept = MAX_DOMAIN_CHARS, set[int]()
    # A hash decides who stays, so that the choice spreads over the whole source and never changes.
    for index in sorted(range(len(everything)), key=lambda i: _rank(everything[i])):
        budget -= sum(map(len, everything[index].turns))
        if budget < 0:
            break
        kept.add(index)
    if len(kept) < MIN_DIALOGUES:
        raise SampleError(
            f"domain {domain.code!r} has {len(kept)} dialogues, at least {MIN_DIALOGUES} are needed; "
            f"install its sources: {', '.join(domain.sources)}"
        )
    return [everything[index] for index in sorted(kept)]


def _rank(dialogue: Dialogue) -> bytes:
    return hashlib.sha256("\n".join(dialogue.turns).encode()).digest()


def _write(domain: SampleDomain, out_dir: Path) -> SampleFile:
    dialogues = selected(domain)
    path = out_dir / domain.file_name
    if domain.file_format == "csv":
        _write_csv(path, dialogues)
    else:
        lines = (json.dumps(dialogue.as_json(), ensure_ascii=False) for dialogue in dialogues)
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return SampleFile(domain.code, path, len(dialogues), sum(len(t) for d in dialogues for t in d.turns))


def _write_csv(path: Path, dialogues: list[Dialogue]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(("user", "assistant", "domain"))
        for dialogue in dialogues:
            question, answer = dialogue.turns
            table.writerow((question, answer, dialogue.domain))


def _described(domain: SampleDomain, file: SampleFile) -> dict[str, object]:
    return {
        "code": domain.code,
        "name_en": domain.name_en,
        "name_zh": domain.name_zh,
        "description_en": domain.description_en,
        "description_zh": domain.description_zh,
        "examples": list(domain.examples),
        "experts": list(domain.experts),
        "file": file.path.name,
        "dialogues": file.num_dialogues,
        "sources": list(domain.sources),
    }
