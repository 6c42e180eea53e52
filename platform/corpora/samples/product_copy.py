"""Product copy: what the installed packages say about themselves on their own pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from .dialogue import MIN_ANSWER_CHARS, Dialogue, chosen, cut_at_sentence, unwrapped

SOURCES = ("the descriptions of the installed Python packages (each under its own licence)",)

_MARKDOWN_HEADING = re.compile(r"^#{1,4}\s+(.+?)\s*#*$")
_UNDERLINE = re.compile(r"^([=\-~^`'\"*+#.])\1{2,}\s*$")
_CODE_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_DIRECTIVE = re.compile(r"^\.\. .*\n(?:(?:[ \t]+.*)?\n)*", re.MULTILINE)
_HTML = re.compile(r"<!--.*?-->|</?[a-zA-Z][^>]*>", re.DOTALL)
_IMAGE = re.compile(r"\[?!\[[^\]]*\]\([^)]*\)\]?(?:\([^)]*\))?|!\[[^\]]*\]\[[^\]]*\]")
_LINK = re.compile(r"\[([^\]]+)\](?:\([^)]*\)|\[[^\]]*\])")
_RST_LINK = re.compile(r"`([^`<]+?)\s*<[^>]+>`__?")
_RST_ROLE = re.compile(r":[\w:.+-]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`")
_RST_REFERENCE = re.compile(r"`([^`]+)`__?|(\b\w+)_(?=[\s.,;)])")
_NOISE = re.compile(
    r"https?://|pip install|\|[\w -]+\||^\s*(?:>>>|\$ |import |from \w+ import)|\{%|::|#\d{3}|[{}<>|\\]"
    r"|={3}|-{4}|(?<!\w)_\w|@\w|\b(?:below|above|following)\b",
    re.MULTILINE,
)
_DULL_HEADING = re.compile(
    r"licen[sc]e|copyright|release|contribut|install|author|credit|thank|sponsor|contact|test|build|develop"
    r"|donat|badge|contents|requirement|bug|backer|security|citation|^fixed|^added|deprecat|^supported|_",
    re.IGNORECASE,
)

_CHANGES = re.compile(
    r"change|history|news|release notes|what'?s new|migration|upgrad|^v?\d+\.\d+", re.IGNORECASE
)

_INTRODUCTION = (
    "Write a short introduction for {name}. In one line: {summary}",
    "We need an opening paragraph for the product page of {name}. It is: {summary}",
    "Introduce {name} to someone who has never heard of it. In short: {summary}",
)
_SECTION = (
    "Write the “{heading}” section of the product page for {name}.",
    "Draft the copy under the heading “{heading}” for {name}. The product: {summary}",
    "What should the page of {name} say about “{heading}”?",
)


def dialogues() -> Iterator[Dialogue]:
    """A brief and the copy that answers it, for every section of every package's description."""
    packages = {d.metadata["Name"].lower(): d for d in metadata.distributions() if d.metadata["Name"]}
    for _, package in sorted(packages.items()):
        yield from _copy_of(package)


def _copy_of(package: metadata.Distribution) -> Iterator[Dialogue]:
    name = package.metadata["Name"]
    summary = (package.metadata["Summary"] or "").strip().rstrip(".")
    description = package.metadata.get_payload()  # type: ignore[attr-defined]
    if not summary or not isinstance(description, str):
        return
    introduced = False
    for heading, body in _sections(description):
        if _CHANGES.search(heading):
            # What follows is the history of the package, version by version.
            return
        answer = _prose(body)
        if len(answer) < 2 * MIN_ANSWER_CHARS or answer.count("`") % 2 or _DULL_HEADING.search(heading):
            continue
        templates = _SECTION if introduced and heading else _INTRODUCTION
        introduced = True
        question = chosen(templates, f"{name} {heading}").format(
            name=name, summary=f"{summary}.", heading=heading
        )
        yield Dialogue((question, answer), "copy")


def _sections(description: str) -> Iterator[tuple[str, str]]:
    """(heading, body) pairs; Markdown and reStructuredText headings both count."""
    text = _HTML.sub("", _DIRECTIVE.sub("", _CODE_FENCE.sub("", description)))
    heading, body = "", list[str]()
    for line in text.splitlines():
        markdown = _MARKDOWN_HEADING.match(line)
        if markdown:
            yield heading, "\n".join(body)
            heading, body = _plain(markdown[1]), []
        elif _UNDERLINE.match(line) and body and body[-1].strip():
            title = _plain(body.pop())
            yield heading, "\n".join(body)
            heading, body = title, []
        elif not _UNDERLINE.match(line):
            body.append(line)
    yield heading, "\n".join(body)


def _prose(body: str) -> str:
    """The paragraphs and lists of a section that read as sentences."""
    kept = [part for part in unwrapped(_plain(_without_code(body))).split("\n\n") if _reads_well(part)]
    return cut_at_sentence("\n\n".join(kept))


def _without_code(body: str) -> str:
    return "\n".join("" if line.startswith(("    ", "\t")) else line for line in body.splitlines())


def _reads_well(part: str) -> bool:
    """Whole sentences in English, without code, links or leftovers of markup."""
    if len(part) < MIN_ANSWER_CHARS or _NOISE.search(part):
        return False
    letters = sum(character.isalpha() or character == " " for character in part)
    plain = sum(character.isascii() for character in part)
    is_list = part.startswith("- ")
    is_sentence = (part[0].isupper() or part[0] in "`*") and part[-1] in ".!?)`"
    return (is_list or is_sentence) and letters / len(part) > 0.88 and plain / len(part) > 0.98


def _plain(text: str) -> str:
    text = _LINK.sub(r"\1", _IMAGE.sub("", text))
    text = _RST_ROLE.sub(r"\1", _RST_LINK.sub(r"\1", text))
    text = _RST_REFERENCE.sub(lambda match: match[1] or match[2], text.replace("``", "`"))
    return re.sub(r" +([.,;])(?=\s|$)", r"\1", text.replace("**", "")).strip()
