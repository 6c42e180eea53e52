"""tokenizer_config.json as we write and read it: tokens with a role, and the name of the chat format."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from moe_core.checkpoint.chat import MAX_SYSTEM_CHARS, ChatFormat
from moe_core.checkpoint.chat_formats import FormatName
from moe_core.spec.base import Spec

TokenText = Annotated[str, Field(min_length=1, max_length=200)]


class ChatFormatConfig(Spec):
    """Which of our formats a model was trained to chat in."""

    name: FormatName = "chatml"
    default_system: Annotated[str, Field(max_length=MAX_SYSTEM_CHARS)] | None = None
    begins: bool = False

    @classmethod
    def of(cls, chat: ChatFormat | None) -> Self | None:
        """What is written for a format that was recognised."""
        if chat is None:
            return None
        return cls(name=chat.name, default_system=chat.default_system, begins=chat.begins)


class TokenizerConfig(Spec):
    """The closed subset; transformers reads its tokens too."""

    tokenizer_class: Literal["PreTrainedTokenizerFast"] = "PreTrainedTokenizerFast"
    bos_token: TokenText | None = None
    eos_token: TokenText | None = None
    more_eos_tokens: Annotated[tuple[TokenText, ...], Field(max_length=15)] = ()
    pad_token: TokenText | None = None
    add_bos_token: bool = False
    chat_format: ChatFormatConfig | None = None

    @property
    def chat(self) -> ChatFormat | None:
        """The chat format to use, or None."""
        if self.chat_format is None:
            return None
        said = self.chat_format
        return ChatFormat(said.name, said.default_system, said.begins)
