"""Chinese interface texts: the simplified Chinese catalogues of the installed Django packages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from babel.messages.pofile import read_po

from .dialogue import Dialogue, chosen

SOURCES = ("Django, django-celery-beat and django-timezone-field translations (BSD)",)

_PACKAGES = ("django", "django_celery_beat", "timezone_field")
_DIALOGUE_CHARS = 90
_MARKUP = re.compile(r"[{}<>%]|&\w+;")
_HAN = re.compile(r"[一-鿿]")
_QUESTIONS = (
    "请把这句界面文字译成简体中文：{text}",
    "Translate this interface text into Simplified Chinese: {text}",
    "“{text}” 用中文怎么说？",
)


def dialogues() -> Iterator[Dialogue]:
    """Translation requests in the order of the catalogues: a long text alone, short ones several at a time."""
    turns: list[str] = []
    for source, target in _messages():
        turns += [chosen(_QUESTIONS, source).format(text=source), target]
        if sum(map(len, turns)) >= _DIALOGUE_CHARS:
            yield Dialogue(tuple(turns), "chinese")
            turns = []


def _messages() -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for path in _catalogues():
        with path.open("rb") as handle:
            for message in read_po(handle, locale="zh_Hans"):
                source, target = _first(message.id), _first(message.string)
                clean = len(source) > 2 and _HAN.search(target) and not _MARKUP.search(source)
                if clean and not message.fuzzy and source not in seen:
                    seen.add(source)
                    yield source, target


def _catalogues() -> Iterator[Path]:
    for package in _PACKAGES:
        # The package is found, never imported: two of the three want Django's settings first.
        found = find_spec(package)
        for root in (found and found.submodule_search_locations) or ():
            yield from sorted(Path(root).glob("**/locale/zh_Hans/LC_MESSAGES/*.po"))


def _first(text: str | tuple[str, ...] | list[str] | None) -> str:
    """A message with plural forms counts by its first form."""
    first = text if isinstance(text, str) else (text or ("",))[0]
    return " ".join(first.split())
