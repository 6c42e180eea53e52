"""What the engine asks of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from moe_core.checkpoint.tokenizer import Message
from moe_core.engine.detokenizer import TextStream


class TextCodec(Protocol):
    """Text to tokens and back; safe to use from several threads."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens; the model may have rows for more."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for control tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a plain prompt."""
        ...

    def format_chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, up to where the assistant is to answer."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token as text to be shown."""
        ...

    def stream(self) -> TextStream:
        """A decoder for the answer of one sequence."""
        ...
