"""How conversations are written, as a table: what stands before and after the messages of each role.

"chatml" is `<|im_start|>role\\ncontent<|im_end|>\\n` for each message. "plain" is for logs alone, where a model has no
format of its own: paragraphs with the role in words, an answer closed by the end token.
Source: the prompt of DeepSeek-V2 (arXiv 2405.04434) for the plain format, which names the system too here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Role = Literal["system", "user", "assistant"]
FormatName = Literal["chatml"]
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by its text."""

    text: str


class Named(Enum):
    """A control token by what the tokenizer calls it; left out where it names none."""

    BOS_IF_ADDED = "the begin token of a tokenizer that puts it before every text"
    EOS = "the end token"


Part = str | Control | Named


@dataclass(frozen=True, slots=True)
class Turn:
    """What stands around a message. An assistant is trained to say `lead`, the message and `end`."""

    head: tuple[Part, ...]
    lead: str = ""
    end: tuple[Part, ...] = ()
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Wording:
    """A format: what a conversation begins with, and the turns of each role."""

    turns: Mapping[Role, Turn]
    begin: tuple[Part, ...] = ()

    @property
    def opening(self) -> tuple[Part, ...]:
        """What asks for the assistant's next message."""
        return self.turns["assistant"].head


def _chatml(role: Role) -> Turn:
    return Turn((Control(IM_START), f"{role}\n"), end=(Control(IM_END),), tail="\n")


def _plain(answer: Turn) -> Wording:
    turns: Mapping[Role, Turn] = {
        "system": Turn(("System:",), lead=" ", tail="\n\n"),
        "user": Turn(("User:",), lead=" ", tail="\n\n"),
        "assistant": answer,
    }
    return Wording(turns, (Named.BOS_IF_ADDED,))


WORDINGS: Mapping[FormatName, Wording] = {
    "chatml": Wording({role: _chatml(role) for role in ("system", "user", "assistant")}),
}
PLAIN = _plain(Turn(("Assistant:",), lead=" ", end=(Named.EOS,)))
# For a tokenizer without an end token: an answer ends as a paragraph does.
PLAIN_WITHOUT_EOS = _plain(Turn(("Assistant:",), lead=" ", end=("\n\n",)))
