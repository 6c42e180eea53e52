"""Contracts: the clauses of the licences that the installed packages and Python itself come under."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from .dialogue import Dialogue, chosen, cut_at_sentence, unwrapped

SOURCES = ("the licence texts of the installed Python packages and of Python",)

_MIN_CLAUSE_CHARS = 120
_LICENCE_FILE = re.compile(r"licen[sc]e|copying|notice", re.IGNORECASE)
_TITLES = (
    ("Apache License", "the Apache License"),
    ("Mozilla Public License", "the Mozilla Public License"),
    ("GNU LESSER GENERAL PUBLIC", "the GNU Lesser General Public License"),
    ("GCC RUNTIME LIBRARY EXCEPTION", "the GCC Runtime Library Exception"),
    ("GNU GENERAL PUBLIC", "the GNU General Public License"),
    ("Zope Public License", "the Zope Public License"),
    ("PYTHON SOFTWARE FOUNDATION", "the Python Software Foundation License"),
    ("PostgreSQL", "the PostgreSQL License"),
    ("UNICODE", "the Unicode License"),
    ("Permission is hereby granted, free of charge", "the MIT License"),
    ("Permission to use, copy, modify", "a permissive licence"),
    ("Redistribution and use in source and binary", "the BSD License"),
)
_TOPICS = (
    (r"terminat|reinstat", "termination"),
    (r"patent", "patents"),
    (r"trademark|trade name|endorse", "names and trademarks"),
    (r"liab|damages", "the limits of liability"),
    (r"warrant|as is", "warranty"),
    (r"modif|derivative|adapt", "modified versions"),
    (r"source code|object code|corresponding source", "giving out the source code"),
    (r"librar|link|combin", "combining it with other works"),
    (r"distribut|convey|copies", "passing copies on"),
    (r"accept|agree", "acceptance"),
    (r"copyright", "the copyright notice"),
    (r"law|jurisdiction|court", "the governing law"),
)
_QUESTIONS = (
    "Quote the clause on {topic} from {licence}.",
    "Draft a clause on {topic}, in the wording of {licence}.",
    "How does {licence} word the part about {topic}?",
    "Our contract needs a paragraph on {topic}. What does {licence} say?",
)
_CLAUSE_NUMBER = re.compile(r"^\(?(?:\d{1,2}(?:\.\d+)*|[a-z]|[ivx]+)[.)]\s+")
_DECORATION = re.compile(r"^[ \t#*=/;-]+|[=*]{3,}|-{4,}", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.;:])\s+")


def dialogues() -> Iterator[Dialogue]:
    """One dialogue for each clause of each licence, the commonest licences met first."""
    seen: set[str] = set()
    for path in _licence_files():
        text = path.read_text("utf-8", errors="replace")
        licence = _TITLES[-1][1]
        for clause in _clauses(text):
            licence = _title_in(clause) or licence
            topic = _topic_of(clause)
            if topic and len(clause) >= _MIN_CLAUSE_CHARS and _reads_well(clause) and _is_new(clause, seen):
                question = chosen(_QUESTIONS, clause).format(topic=topic, licence=licence)
                yield Dialogue((question, clause), "contracts")


def _licence_files() -> Iterator[Path]:
    packages = {d.metadata["Name"].lower(): d for d in metadata.distributions() if d.metadata["Name"]}
    for _, package in sorted(packages.items()):
        for entry in sorted(package.files or [], key=str):
            path = Path(str(package.locate_file(entry)))
            if ".dist-info" in str(entry) and _LICENCE_FILE.search(entry.name) and path.is_file():
                yield path
    python = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if python.is_file():
        yield python


def _clauses(text: str) -> Iterator[str]:
    for part in re.split(r"\n\s*\n", _DECORATION.sub("", text.replace("\r", ""))):
        clause = _CLAUSE_NUMBER.sub("", unwrapped(part).removeprefix("- ").strip())
        yield cut_at_sentence(clause)


def _is_new(clause: str, seen: set[str]) -> bool:
    """Whether most of the clause was not met before: many licences differ in a name or two only."""
    sentences = [re.sub(r"\W+", "", part).casefold()[:80] for part in _SENTENCE.split(clause)]
    known = sum(sentence in seen for sentence in sentences)
    seen.update(sentences)
    return 2 * known < len(sentences)


def _title_in(clause: str) -> str | None:
    return next((title for words, title in _TITLES if words.casefold() in clause[:160].casefold()), None)


def _reads_well(clause: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in clause)
    capitals = sum(character.isupper() for character in clause)
    if re.search(r"://|\ufffd|@|\.[ch]\b|^copyright|all rights reserved", clause, re.IGNORECASE):
        return False
    return (
        letters / len(clause) > 0.9
        and capitals / len(clause) < 0.9
        and clause[0].isalpha()
        and clause[-1] in ".;:,"
    )


def _topic_of(clause: str) -> str | None:
    """The topic whose words the clause uses most, or None where it uses none."""
    text = clause.casefold()
    count, topic = max(
        ((len(re.findall(pattern, text)), topic) for pattern, topic in _TOPICS), key=lambda c: c[0]
    )
    return topic if count else None
