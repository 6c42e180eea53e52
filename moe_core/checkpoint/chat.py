"""Chat formats by our own code: a template that comes with a model is recognised, never run.

Formats: "chatml" is `<|im_start|>role\\ncontent<|im_end|>\\n` for each message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from moe_core.errors import SpecError
from moe_core.spec.base import Spec

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
MAX_MESSAGES = 4096
MAX_CONTENT_CHARS = 2 * 1024 * 1024

# Templates whose whole text is known: what stands before and after the default system prompt.
_SMOLLM_HEAD = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
_SMOLLM_TAIL = (
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ChatMessage(Spec):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_CONTENT_CHARS)]


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The name of a format and the system prompt that stands in when none is given."""

    name: Literal["chatml"]
    default_system: str | None = None


@dataclass(frozen=True, slots=True)
class ChatPiece:
    """A run of text, or one control token by its text.

    `learnt_from` is the character from which on an assistant is trained to say it; None where it is not.
    """

    text: str
    is_control: bool = False
    learnt_from: int | None = None


def recognise(template: str | None, has_chatml_tokens: bool) -> ChatFormat | None:
    """The format that a template text stands for, compared as text; None when the model cannot chat."""
    if not has_chatml_tokens:
        return None
    # A line break may be written as itself or as an escape.
    template = (template or "").replace("\\n", "\n")
    if template.startswith(_SMOLLM_HEAD) and template.endswith(_SMOLLM_TAIL):
        system = template[len(_SMOLLM_HEAD) : len(template) - len(_SMOLLM_TAIL)]
        if not set(system) & set("'{}\\%"):
            return ChatFormat("chatml", system)
    return ChatFormat("chatml")


def parse_messages(messages: Sequence[ChatMessage | dict[str, str]]) -> list[ChatMessage]:
    """Check messages; SpecError for none, too many, unknown roles and content that is not text."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise SpecError(f"a conversation has 1 to {MAX_MESSAGES} messages, not {len(messages)}")
    return [item if isinstance(item, ChatMessage) else ChatMessage.parse(item) for item in messages]


def pieces_of(
    chat: ChatFormat, messages: Sequence[ChatMessage], add_generation_prompt: bool
) -> list[ChatPiece]:
    """The conversation as text and control tokens, the default system prompt first when none is given."""
    turns = list(messages)
    if chat.default_system is not None and turns[0].role != "system":
        turns.insert(0, ChatMessage(role="system", content=chat.default_system))
    pieces: list[ChatPiece] = []
    for turn in turns:
        head = f"{turn.role}\n"
        learnt = turn.role == "assistant"
        # Head and content are one run of text, as in the template: line breaks at their border may merge.
        text = ChatPiece(head + turn.content, learnt_from=len(head) if learnt else None)
        end = ChatPiece(IM_END, is_control=True, learnt_from=0 if learnt else None)
        pieces += [_START, text, end, ChatPiece("\n")]
    if add_generation_prompt:
        pieces += [_START, ChatPiece("assistant\n")]
    return pieces


_START = ChatPiece(IM_START, is_control=True)
