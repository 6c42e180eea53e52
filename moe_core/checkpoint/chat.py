"""Chat formats by our own code: a template that comes with a model is recognised, never run."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from moe_core.checkpoint.chat_formats import WORDINGS, FormatName, Named, Part, Role, Wording
from moe_core.errors import SpecError
from moe_core.spec.base import Spec

MAX_MESSAGES = 4096
MAX_CONTENT_CHARS = 2 * 1024 * 1024
MAX_SYSTEM_CHARS = 10_000

# Templates whose whole text is known: what stands before and after the default system prompt.
_SMOLLM_HEAD = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
_SMOLLM_TAIL = (
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_KIMI_SYSTEM = re.compile(r"<\|im_system\|>system<\|im_middle\|>([^'{}\\%<]+)<\|im_end\|>")


class ChatMessage(Spec):
    """One message of a conversation."""

    role: Role
    content: Annotated[str, Field(max_length=MAX_CONTENT_CHARS)]


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The name of a format, the system prompt that stands in when none is given, and whether the begin token comes first."""

    name: FormatName
    default_system: str | None = None
    begins: bool = False

    @property
    def wording(self) -> Wording:
        """How it is written."""
        return WORDINGS[self.name]


@dataclass(frozen=True, slots=True)
class ChatPiece:
    """A run of text with the ranges of characters that an assistant is trained to say, or one control token."""

    part: Part
    learnt: tuple[tuple[int, int], ...] = ()

    def learns(self, start: int) -> bool:
        """Whether an assistant is trained to say the token that begins at this character."""
        return any(low <= start < high for low, high in self.learnt)


def recognise(template: str | None, tokens: Collection[str], *, has_eos: bool = True) -> ChatFormat | None:
    """The format that a template text stands for, compared as text; None when the model cannot chat.

    `tokens` are the control tokens of the vocabulary. One with those of chatml means chatml, unless the template is that of
    another format.
    """
    # A line break may be written as itself or as an escape.
    template = (template or "").replace("\\n", "\n")
    begins = "bos_token" in template
    words = in_one_spelling(template)
    for name, wording in WORDINGS.items():
        if wording.marks and (has_eos or not wording.needs_eos) and _fits(wording, words, tokens):
            return ChatFormat(name, _default_system(name, template), begins)
    if not WORDINGS["chatml"].tokens <= set(tokens):
        return None
    return ChatFormat("chatml", _default_system("chatml", template), begins)


def in_one_spelling(template: str) -> str:
    """A template's text with one kind of quotes, single blanks, tight braces and keys in brackets."""
    words = re.sub(r"[ \t]+", " ", template.replace('"', "'")).replace(
        "message.content", "message['content']"
    )
    return re.sub(r"\s*-?\}\}", "}}", re.sub(r"\{\{-?\s*", "{{", words))


def _fits(wording: Wording, words: str, tokens: Collection[str]) -> bool:
    return (
        all(mark in words for mark in wording.marks)
        and not any(mark in words for mark in wording.not_marks)
        and all(token in tokens for token in wording.tokens)
        and not any(token in tokens for token in wording.not_tokens)
    )


def _default_system(name: FormatName, template: str) -> str | None:
    """The system prompt that a template puts where none is given, in the templates whose place for it is known."""
    # Its dates are said even then.
    system = "" if name == "llama3_1" else None
    if name == "chatml" and template.startswith(_SMOLLM_HEAD) and template.endswith(_SMOLLM_TAIL):
        system = template[len(_SMOLLM_HEAD) : len(template) - len(_SMOLLM_TAIL)]
    if name in ("kimi", "kimi_thinking") and (found := _KIMI_SYSTEM.search(template)):
        system = found[1]
    return None if system is None or set(system) & set("'{}\\%") or len(system) > MAX_SYSTEM_CHARS else system


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
    parts: list[tuple[Part, bool]] = []
    turns = _arranged(wording, [(message.role, message.content) for message in messages])
    for place, (role, content) in enumerate(turns, start=1):
        turn, learnt = wording.turns[role], role == "assistant"
        if learnt and place == len(turns) and wording.closing is not None:
            turn = wording.closing
        said = content.strip() if role in wording.strips else content
        parts += [(part, False) for part in turn.head]
        parts += [(part, learnt) for part in (turn.lead + said, *turn.end)]
        parts.append((turn.tail, False))
    if add_generation_prompt:
        parts += [(part, False) for part in wording.opening]
    return _joined(parts)


def _arranged(wording: Wording, turns: list[tuple[Role, str]]) -> list[tuple[Role, str]]:
    """The turns with the system's words where the format has them."""
    system = "\n\n".join(content for role, content in turns if role == "system")
    if wording.system == "turn" or not system:
        return turns
    others = [turn for turn in turns if turn[0] != "system"]
    users = [place for place, (role, _) in enumerate(others) if role == "user"]
    if wording.system == "front" or not users:
        return [("system", system), *others]
    asked = users[-1 if wording.system == "last_user" else 0]
    return [*others[:asked], ("user", f"{system}\n\n{others[asked][1]}"), *others[asked + 1 :]]


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
