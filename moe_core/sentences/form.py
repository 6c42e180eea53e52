"""Sentences with named places: said from a code and its values, and read back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter


class Sentences:
    """Sentences by code, each with named places such as "{top_k}"."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        self.templates = dict(templates)
        self._patterns = {code: _pattern(template) for code, template in self.templates.items()}

    def say(self, code: str, **values: object) -> str:
        """The sentence of a code. Raises KeyError for an unknown code or a missing value."""
        return self.templates[code].format(**values)

    def understand(self, text: str) -> tuple[str, dict[str, str]] | None:
        """The code and the values that a text was made of; None when no template fits it."""
        for code, pattern in self._patterns.items():
            if found := pattern.fullmatch(text):
                return code, found.groupdict()
        return None

    def renamed(self, text: str, names: Mapping[str, Mapping[str, str]]) -> str:
        """The text with other words for the values of some places, by place and value; as it is where no template fits."""
        for pattern in self._patterns.values():
            if found := pattern.fullmatch(text):
                return _renamed(found, names)
        return text


def _renamed(found: re.Match[str], names: Mapping[str, Mapping[str, str]]) -> str:
    text = found.string
    # From the end on, so that what stands before keeps its place.
    for place in sorted(names.keys() & found.groupdict().keys(), key=found.start, reverse=True):
        begin, end = found.span(place)
        text = text[:begin] + names[place].get(found[place], found[place]) + text[end:]
    return text


def _pattern(template: str) -> re.Pattern[str]:
    parts: list[str] = []
    for words, place, _spec, _conversion in Formatter().parse(template):
        parts.append(re.escape(words))
        if place is not None:
            # A value that stands twice must be the same in both places.
            parts.append(f"(?P={place})" if f"(?P<{place}>.+?)" in parts else f"(?P<{place}>.+?)")
    return re.compile("".join(parts), re.DOTALL)
