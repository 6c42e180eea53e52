"""Text to token ids and back, and conversations to prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from moe_core.checkpoint.chat import (
    ChatFormat,
    ChatMessage,
    ChatPiece,
    parse_messages,
    pieces_of,
    with_default_system,
)
from moe_core.checkpoint.chat_formats import PLAIN, PLAIN_WITHOUT_EOS, Control
from moe_core.checkpoint.files import parse_json_object, read_bytes, read_json_object
from moe_core.checkpoint.layout import MAX_CONFIG_BYTES, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from moe_core.checkpoint.stream import Spelling, StreamDecoder
from moe_core.checkpoint.tokenizer_config import TokenizerConfig
from moe_core.checkpoint.tokenizer_json import MAX_TOKENIZER_BYTES, check_tokenizer_json
from moe_core.errors import CheckpointError, FormatError, SpecError

Message = ChatMessage | dict[str, str]


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """A conversation as token ids; `learnt[i]` is True where an assistant is trained to say token i."""

    ids: list[int]
    learnt: list[bool]


class Tokenizer:
    """The tokenizer of a model directory. Safe to share between threads."""

    def __init__(self, directory: Path | str) -> None:
        directory = Path(directory)
        raw = read_bytes(directory / TOKENIZER_FILE, MAX_TOKENIZER_BYTES)
        data = parse_json_object(raw, TOKENIZER_FILE, MAX_TOKENIZER_BYTES)
        check_tokenizer_json(data)
        self._spelling = Spelling.of(data)
        self._has_first_space = bool(_first_spaces(data.get("pre_tokenizer")))
        self.config = TokenizerConfig.parse(
            read_json_object(directory / TOKENIZER_CONFIG_FILE, MAX_CONFIG_BYTES)
        )
        # Two readings of one file: one to which control tokens in text are mere text, one that honours them.
        self._raw, self._plain = raw, _build(raw)
        self._plain.encode_special_tokens = True
        self._added: dict[int, AddedToken] = self._plain.get_added_tokens_decoder()
        # Of tokens that were answered: no more than there are.
        self._bytes_of: dict[int, bytes] = {}
        self.bos_id = self._id_of(self.config.bos_token)
        self.pad_id = self._id_of(self.config.pad_token)
        ends = [self.config.eos_token, *self.config.more_eos_tokens]
        self.eos_ids: tuple[int, ...] = tuple(i for i in map(self._id_of, ends) if i is not None)

    @cached_property
    def _honouring(self) -> RustTokenizer:
        """Made when it is first asked for: serving never does, and a large vocabulary takes a tenth of a second."""
        return _build(self._raw)

    @cached_property
    def _inside(self) -> RustTokenizer:
        """The plain reading for text behind a control token, where SentencePiece may put no space first."""
        if not self._has_first_space:
            return self._plain
        data = parse_json_object(self._raw, TOKENIZER_FILE, MAX_TOKENIZER_BYTES)
        for part in _first_spaces(data["pre_tokenizer"]):
            part["prepend_scheme"] = "never"
        tokenizer = _build(json.dumps(data).encode())
        tokenizer.encode_special_tokens = True
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._plain.get_vocab_size()

    @property
    def chat_format(self) -> ChatFormat | None:
        """How conversations are written for this model; None when it cannot chat."""
        return self.config.chat

    def encode(self, text: str, *, control_tokens: bool = False) -> list[int]:
        """Ids of a text. Text that looks like a control token stays text unless `control_tokens` is True."""
        tokenizer = self._honouring if control_tokens else self._plain
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if self.config.add_bos_token and self.bos_id is not None else ids

    def decode(self, ids: Sequence[int], *, control_tokens: bool = False) -> str:
        """Text of ids; control tokens are left out unless `control_tokens` is True."""
        text: str = self._plain.decode(list(ids), skip_special_tokens=not control_tokens)
        return text

    def format_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """The prompt of a conversation, ready for the assistant's answer.

        Raises SpecError when the messages are not a conversation or the model has no chat format.
        """
        chat = self.chat_format
        if chat is None or chat.wording.is_for_logs_only:
            raise SpecError("this model has no chat format; send a prompt instead of messages")
        turns = with_default_system(chat, parse_messages(messages))
        return self._tokens(pieces_of(chat.wording, turns, add_generation_prompt), chat.begins).ids

    def log_tokens(self, messages: Sequence[Message]) -> ChatTokens:
        """A conversation of the logs as ids, with the mask of what the assistant is trained to say.

        It is written as it is, without a default system prompt: in the model's chat format, or as plain paragraphs
        (`chat_formats.PLAIN`) where it has none. Raises SpecError when the messages are not a conversation.
        """
        turns, chat = parse_messages(messages), self.chat_format
        if chat is not None:
            return self._tokens(pieces_of(chat.wording, turns), chat.begins)
        pieces = pieces_of(PLAIN if self.eos_ids else PLAIN_WITHOUT_EOS, turns)
        # As `encode` reads a prompt: its begin token does not stand in the text.
        return self._tokens(pieces, self.config.add_bos_token, is_in_text=False)

    def _tokens(self, pieces: Sequence[ChatPiece], begins: bool, *, is_in_text: bool = True) -> ChatTokens:
        ids = [self.bos_id] if begins and self.bos_id is not None else []
        learnt = [False] * len(ids)
        is_start = not ids or not is_in_text
        for place, piece in enumerate(pieces):
            piece_ids, starts = self._piece(piece, self._plain if is_start and place == 0 else self._inside)
            ids += piece_ids
            learnt += map(piece.learns, starts)
        return ChatTokens(ids, learnt)

    def _piece(self, piece: ChatPiece, reading: RustTokenizer) -> tuple[list[int], list[int]]:
        """Ids of a piece and the character at which each starts."""
        if isinstance(piece.part, str):
            encoding = reading.encode(piece.part, add_special_tokens=False)
            return encoding.ids, [start for start, _ in encoding.offsets]
        if isinstance(piece.part, Control):
            return [self._needed(piece.part.text)], [0]
        return list(self.eos_ids[:1]), [0] * len(self.eos_ids[:1])

    def stream(self) -> StreamDecoder:
        """A decoder for one answer, token by token; control tokens give no text."""
        return StreamDecoder(self.token_bytes, skips_space=self._spelling.skips_space)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for control tokens and for ids without a token."""
        known = self._bytes_of.get(token_id)
        if known is None:
            known = self._bytes_of[token_id] = self._spelt(token_id)
        return known

    def _spelt(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return b"" if added.special else added.content.encode()
        token = self._plain.id_to_token(token_id)
        if token is None:
            return b""
        return self._spelling.bytes_of(token)

    def token_text(self, token_id: int) -> str:
        """A token on its own, to be shown: control tokens by their name, broken bytes as U+FFFD."""
        added = self._added.get(token_id)
        return added.content if added is not None else self.token_bytes(token_id).decode("utf-8", "replace")

    def _id_of(self, token: str | None) -> int | None:
        if token is None:
            return None
        return self._needed(token)

    def _needed(self, token: str) -> int:
        token_id: int | None = self._plain.token_to_id(token)
        if token_id is None:
            raise CheckpointError(
                f"{TOKENIZER_FILE}: has no token {token!r}, which {TOKENIZER_CONFIG_FILE} names"
            )
        return token_id


def _first_spaces(part: Any) -> list[dict[str, Any]]:
    """The parts of a pre-tokenizer that put a space before the first word of a text alone."""
    if not isinstance(part, dict):
        return []
    inner = [found for child in part.get("pretokenizers", ()) for found in _first_spaces(child)]
    return [part, *inner] if part.get("prepend_scheme") == "first" else inner


def _build(raw: bytes) -> RustTokenizer:
    try:
        return RustTokenizer.from_buffer(raw)
    except Exception as error:  # tokenizers raises bare Exception for every fault
        raise FormatError(f"{TOKENIZER_FILE}: {str(error)[:200]}") from error
