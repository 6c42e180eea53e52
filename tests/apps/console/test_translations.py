"""English and Chinese are equals: every string a person can see exists in both."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from django.conf import settings

from console.translations import catalogues, messages, missing, platform_dir

PLACES = re.compile(r"%\((\w+)\)[sd]|\{(\w+)\}")
JS_WORD = re.compile(r"""\bt\(\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""")


def test_every_string_has_its_chinese() -> None:
    lacking = [f"{one.app} {one.source.name}:{one.line} {one.msgid!r}" for one in missing()]
    assert not lacking, "run `manage.py translations`; lacking:\n" + "\n".join(lacking)


def test_a_translation_keeps_every_place_of_the_original() -> None:
    wrong = [
        f"{app}: {entry.id!r} → {entry.string!r}"
        for app, each in catalogues().items()
        for entry in each
        if entry.id and set(places(entry.string)) != set(places(entry.id))
    ]
    assert not wrong, "\n".join(wrong)


def places(text: str | tuple[str, ...]) -> list[str]:
    parts = [text] if isinstance(text, str) else list(text)
    return [found[0] or found[1] for part in parts for found in PLACES.findall(part)]


def test_the_same_string_has_one_chinese_unless_a_context_parts_them() -> None:
    seen: dict[tuple[str, str | None], tuple[str, str]] = {}
    clashes = []
    for app, each in catalogues().items():
        for entry in each:
            if not entry.id:
                continue
            key = (entry.id if isinstance(entry.id, str) else entry.id[0], entry.context)
            first = seen.setdefault(key, (app, str(entry.string)))
            if first[1] != str(entry.string):
                clashes.append(f"{key[0]!r}: {first[0]} says {first[1]}, {app} says {entry.string}")
    assert not clashes, "\n".join(clashes)


def test_every_word_of_javascript_is_handed_to_the_page() -> None:
    known = {msgid for module in word_modules() for msgid in importlib.import_module(module).WORDS}
    lacking = [
        f"{source.name}: {text}"
        for source in sorted(platform_dir().glob("*/static/**/*.js"))
        for text in spoken(source)
        if text not in known
    ]
    assert not lacking, "add to the app's words.py:\n" + "\n".join(lacking)


def word_modules() -> list[str]:
    return [f"{path.parent.name}.words" for path in platform_dir().glob("*/words.py")]


def spoken(source: Path) -> list[str]:
    return [(double or single).replace('\\"', '"') for double, single in JS_WORD.findall(source.read_text())]


def test_no_word_of_javascript_is_handed_out_in_vain() -> None:
    text = "\n".join(path.read_text() for path in platform_dir().glob("*/static/**/*.js"))
    modules = [importlib.import_module(name) for name in word_modules()]
    unused = [
        word
        for module in modules
        for word in module.WORDS
        if f'"{word}"' not in text and word not in getattr(module, "FROM_EVENTS", ())
    ]
    assert not unused, "\n".join(unused)


def test_chinese_uses_full_width_marks_and_no_space_before_percent() -> None:
    wrong = [
        f"{app}: {entry.string}"
        for app, each in catalogues().items()
        for entry in each
        if entry.id
        and isinstance(entry.string, str)
        and re.search(r"[\u4e00-\u9fff][,;:!?]|\d %(?!\()", entry.string)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_extractor_sees_templates_and_python() -> None:
    found = {(one.app, one.msgid) for one in messages()}
    assert ("console", "Skip to content") in found
    assert ("accounts", "Team name") in found
    assert Path(settings.ROOT / "templates").is_dir()
