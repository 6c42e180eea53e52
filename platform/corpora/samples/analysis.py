"""Data analysis: what NumPy and the standard library say about their statistics and arrays."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator

from .dialogue import MIN_ANSWER_CHARS, Dialogue, chosen, cut_at_sentence, unwrapped

SOURCES = ("NumPy docstrings (BSD)", "Python standard library docstrings (PSF)")

_MODULES = (
    "statistics",
    "numpy",
    "numpy.linalg",
    "numpy.fft",
    "numpy.random",
    "numpy.lib.stride_tricks",
    "random",
    "fractions",
    "csv",
    "heapq",
    "bisect",
    "math",
    "itertools",
    "collections",
    "decimal",
    "datetime",
)
_UNDERLINED = re.compile(r"^(\w[\w ]+)\n-{3,}\s*$", re.MULTILINE)
_DIRECTIVE = re.compile(r"^([ \t]*)\.\. .*\n(?:(?:\1[ \t]+.*|[ \t]*)(?:\n|$))*", re.MULTILINE)
_ROLE = re.compile(r":[\w:]+:`~?([^`]+)`")
_FOOTNOTE = re.compile(r"\s*\[\d+\]_")
_NOISE = re.compile(
    r"doctest: ?\+|\.\. |https?://|plt\.|matplotlib|\\\\|\\frac|\\sum|:math:|\\le|\\sqrt|\\alpha|\^\{|:label:"
)

_WHAT = (
    "What does `{name}` compute, and when would I use it?",
    "Explain `{name}` to a data analyst.",
    "I have a table of measurements. What can `{name}` do for me?",
)
_PARAMETERS = (
    "Which parameters does `{name}` take?",
    "How do I call `{name}`? List what it expects.",
)
_RETURNS = ("What does `{name}` return?", "Describe the result of `{name}`.")
_EXAMPLE = ("Show me an example of `{name}`.", "Give a worked example with `{name}`.")
_NOTES = (
    "Is there anything to watch out for with `{name}`?",
    "What should I know before I rely on `{name}`?",
)
_QUESTIONS = {
    "": _WHAT,
    "Parameters": _PARAMETERS,
    "Returns": _RETURNS,
    "Examples": _EXAMPLE,
    "Notes": _NOTES,
}


def dialogues() -> Iterator[Dialogue]:
    """A question and an answer for each documented part of each public function."""
    for module_name in _MODULES:
        module = importlib.import_module(module_name)
        for name in sorted(vars(module)):
            if not name.startswith("_") and _belongs(vars(module)[name], module_name):
                yield from _about(f"{module_name}.{name}", vars(module)[name])


def _belongs(thing: object, module_name: str) -> bool:
    """Whether the thing is at home in this package and not merely imported by it."""
    home = str(getattr(thing, "__module__", None) or module_name).lstrip("_")
    return home.split(".")[0] == module_name.split(".")[0] or home in {"builtins", "functools"}


def _about(name: str, thing: object) -> Iterator[Dialogue]:
    if not callable(thing) or (inspect.isclass(thing) and issubclass(thing, BaseException)):
        return
    documentation = inspect.getdoc(thing) or ""
    for part, text in _parts(_DIRECTIVE.sub("", documentation)):
        answer = _answer(part, text)
        if part not in _QUESTIONS or len(answer) < 2 * MIN_ANSWER_CHARS or _NOISE.search(answer):
            continue
        question = chosen(_QUESTIONS[part], f"{name} {part}").format(name=name)
        yield Dialogue((question, answer), "analysis")


def _parts(documentation: str) -> Iterator[tuple[str, str]]:
    """("", summary) first, then each underlined section of a NumPy-style docstring."""
    pieces = _UNDERLINED.split(documentation)
    yield "", _without_signature(pieces[0])
    yield from zip(pieces[1::2], pieces[2::2], strict=True)


def _without_signature(summary: str) -> str:
    paragraphs = summary.strip().split("\n\n")
    is_signature = bool(re.match(r"^[\w.]+\(.*", paragraphs[0])) and not paragraphs[0].rstrip().endswith(".")
    return "\n\n".join(paragraphs[1:] if is_signature else paragraphs)


def _answer(part: str, text: str) -> str:
    plain = _FOOTNOTE.sub("", _ROLE.sub(r"`\1`", text)).replace("``", "`").strip()
    if part == "Examples" or ">>>" in plain:
        return _whole_examples(plain)
    if part in {"Parameters", "Returns"}:
        return cut_at_sentence(_described_list(plain))
    return cut_at_sentence(unwrapped(plain))


def _whole_examples(text: str, limit: int = 700) -> str:
    """As many complete example paragraphs as fit."""
    kept, size = list[str](), 0
    for paragraph in re.split(r"\n\s*\n", text):
        size += len(paragraph)
        if size > limit:
            break
        kept.append(paragraph.strip("\n"))
    return "\n\n".join(kept)


def _described_list(text: str) -> str:
    """`name : type` with its indented description becomes one list item."""
    items: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if line[0].isspace() and items:
            items[-1] += f" {' '.join(line.split())}"
        else:
            items.append(f"- {line.strip().replace(' : ', ' (', 1)}{'):' if ' : ' in line else ':'}")
    return "\n".join(items)
