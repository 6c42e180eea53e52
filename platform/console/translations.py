"""Every string that a person can see, and whether its Chinese exists. Each app owns its own catalogue."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from django.conf import settings
from django.utils.translation.template import templatize

KEYWORDS = {
    **dict.fromkeys(("_", "gettext", "gettext_lazy", "gettext_noop")),
    **dict.fromkeys(("ngettext", "ngettext_lazy"), (1, 2)),
    **dict.fromkeys(("pgettext", "pgettext_lazy"), ((1, "c"), 2)),
    **dict.fromkeys(("npgettext", "npgettext_lazy"), ((1, "c"), 2, 3)),
}
CATALOGUE = Path("locale/zh_Hans/LC_MESSAGES/django.po")
SHARED_TEMPLATES = {"accounts", "console", "errors", "partials", "ui", "rest_framework", "admin"}


@dataclass(frozen=True, slots=True)
class Message:
    """A string to be translated."""

    app: str
    source: Path
    line: int
    msgid: str
    plural: str | None
    context: str | None


def platform_dir() -> Path:
    """The source root of the apps."""
    return Path(settings.ROOT) / "platform"


def messages() -> Iterator[Message]:
    """All strings of the templates and of the platform's Python, in the order of the files."""
    templates = Path(settings.ROOT) / "templates"
    for source in sorted([*templates.rglob("*.html"), *templates.rglob("*.txt")]):
        yield from _of_file(
            source, _owner_of_template(source.relative_to(templates)), templatize(source.read_text())
        )
    for source in sorted(platform_dir().rglob("*.py")):
        if "migrations" not in source.parts:
            yield from _of_file(
                source, source.relative_to(platform_dir()).parts[0], source.read_text(), python=True
            )


def _owner_of_template(path: Path) -> str:
    first = path.parts[0]
    return "console" if len(path.parts) == 1 or first in SHARED_TEMPLATES else first


def _of_file(source: Path, app: str, text: str, *, python: bool = False) -> Iterator[Message]:
    # A template leaves ragged indentation behind, which a Python tokenizer refuses.
    code = text if python else "\n".join(line.lstrip() for line in text.split("\n"))
    found = extract("python", io.BytesIO(code.encode()), keywords=KEYWORDS, options={"encoding": "utf-8"})
    for line, msgid, _comments, context in found:
        one, many = (msgid[0], msgid[1]) if isinstance(msgid, (tuple, list)) else (msgid, None)
        if one:
            yield Message(app, source, line, one, many, context)


def catalogue(app: str) -> Catalog:
    """The Chinese catalogue of an app; empty when there is none."""
    path = platform_dir() / app / CATALOGUE
    if not path.exists():
        return Catalog(locale="zh_Hans_CN")
    with path.open("rb") as file:
        return read_po(file, locale="zh_Hans_CN", abort_invalid=True)


def catalogues() -> dict[str, Catalog]:
    """All Chinese catalogues by app."""
    return {
        path.parents[3].name: catalogue(path.parents[3].name)
        for path in platform_dir().glob(f"*/{CATALOGUE}")
    }


def compile_stale() -> list[Path]:
    """Compile every catalogue that is newer than its compiled form; the compiled ones are never committed."""
    done = []
    for source in sorted(platform_dir().glob(f"*/{CATALOGUE}")):
        target = source.with_suffix(".mo")
        if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
            continue
        _write_compiled(source, target)
        done.append(target)
    return done


def _write_compiled(source: Path, target: Path) -> None:
    # Several processes may start at once, so each writes beside the target and renames.
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    with source.open("rb") as file:
        entries = read_po(file, locale="zh_Hans_CN", abort_invalid=True)
    with draft.open("wb") as file:
        write_mo(file, entries)
    draft.replace(target)


def missing(wanted: Iterable[Message] | None = None) -> list[Message]:
    """The strings that no catalogue translates (fuzzy ones do not count)."""
    known = {
        (entry.id[0] if isinstance(entry.id, (tuple, list)) else entry.id, entry.context)
        for each in catalogues().values()
        for entry in each
        if entry.id and not entry.fuzzy and _filled(entry.string)
    }
    seen: set[tuple[str, str | None]] = set()
    out = []
    for message in messages() if wanted is None else wanted:
        key = (message.msgid, message.context)
        if key not in known and key not in seen:
            seen.add(key)
            out.append(message)
    return out


def _filled(text: str | tuple[str, ...] | list[str] | None) -> bool:
    parts = [text] if isinstance(text, str) else list(text or ())
    return bool(parts) and all(part.strip() for part in parts)
