"""Customer support: questions and replies from two openly licensed question-and-answer packages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files

import yaml

from .dialogue import Dialogue

SOURCES = ("zaragoza-construction-faq (CC-BY-4.0)", "chatterbot-corpus (BSD)")


def dialogues() -> Iterator[Dialogue]:
    """The English construction help desk first, then first-line technical support."""
    yield from _construction_help_desk()
    yield from _technical_support()


def _construction_help_desk() -> Iterator[Dialogue]:
    table = files("zaragoza_construction_faq") / "data" / "faq-en.jsonl"
    for line in table.read_text("utf-8").splitlines():
        row = json.loads(line)
        yield Dialogue((row["q"].strip(), row["a"].strip()), "support")


def _technical_support() -> Iterator[Dialogue]:
    for topic in ("tech_support", "computers"):
        table = files("chatterbot_corpus") / "data" / "english" / f"{topic}.yml"
        for turns in yaml.safe_load(table.read_text("utf-8"))["conversations"]:
            yield Dialogue((str(turns[0]).strip(), str(turns[1]).strip()), "support")
