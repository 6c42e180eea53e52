"""Chat formats by our own code: a template that comes with a model is recognised, never run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from moe_core.checkpoint.chat_formats import FormatName, Named, Part, Role, Wording
from moe_core.errors import SpecError
from moe_core.spec.base import Spec

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

    role: Role
    content: Annotated[str, Field(max_length=MAX_CONTENT_CHARS)]


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The name of a format and the system prompt that stands in when none is given."""

    name: FormatName
    default_system: str | None = None


@dataclass(frozen=True, slots=True)
class ChatPiece:
    """A run of text with the ranges of characters that an assistant is trained to say, or one control token."""

    part: Part
    learnt: tuple[tuple[int, int], ...] = ()

    def learns(self, start: int) -> bool:
        """Whether an assistant is trained to say the token that begins at this character."""
        return any(low <= start < high for low, high in self.learnt)


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


def with_default_system(chat: ChatFormat, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages, the format's default system prompt first when they have none."""
    if chat.default_system is None or messages[0].role == "system":
        return list(messages)
    return [ChatMessage(role="system", content=chat.default_system), *messages]


def pieces_of(
    wording: Wording, messages: Sequence[ChatMessage], add_generation_prompt: bool = False
) -> list[ChatPiece]:
    """The conversation as runs of text and control tokens."""
    parts: list[tuple[Part, bool]] = [(part, False) for part in wording.begin]
    for message in messages:
        turn = wording.turns[message.role]
        learnt = message.role == "assistant"
        parts += [(part, False) for part in turn.head]
        parts += [(part, learnt) for part in (turn.lead + message.content, *turn.end)]
        parts.append((turn.tail, False))
    if add_generation_prompt:
        parts += [(part, False) for part in wording.opening]
    return _joined(parts)


def _joined(parts: Sequence[tuple[Part, bool]]) -> list[ChatPiece]:
    """Text between two control tokens is one run, as in a template: letters at its inner borders may merge."""
    pieces: list[ChatPiece] = []
    text = ""
    learnt: tuple[tuple[int, int], ...] = ()
    for part, is_learnt in [*parts, (Named.EOS, False)]:
        if isinstance(part, str):
            learnt += ((len(text), len(text) + len(part)),) if is_learnt else ()
            text += part
            continue
        pieces += [ChatPiece(text, learnt)] if text else []
        pieces.append(ChatPiece(part, ((0, 1),) if is_learnt else ()))
        text, learnt = "", ()
    return pieces[:-1]
