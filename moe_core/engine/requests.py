"""What a request to the engine may say: closed, and every number bounded."""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moe_core.checkpoint.chat import ChatMessage
from moe_core.engine.sampling_params import SamplingParams
from moe_core.spec.base import Code
from moe_core.spec.model import TokenId

MAX_PROMPT_TOKENS = 1 << 20
MAX_PROMPT_CHARS = 4 << 20
MAX_CHOICES = 16
MAX_SCHEMA_CHARS, MAX_REGEX_CHARS = 64 << 10, 8 << 10
Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


class PromptBody(BaseModel):
    """A prompt in one of three forms."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    prompt_ids: TokenIds | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        given = [name for name in ("prompt_ids", "prompt", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"send exactly one of prompt_ids, prompt and messages, not {len(given)}")
        return self

    @property
    def prompt_field(self) -> str:
        """The field that the prompt came in."""
        return next(name for name in ("prompt_ids", "prompt", "messages") if getattr(self, name) is not None)

    @property
    def num_chars(self) -> int:
        """How much text there is to tokenise."""
        return len(self.prompt or "") + sum(len(message.content) for message in self.messages or ())


class GrammarBody(BaseModel):
    """What an answer must match: exactly one of the five."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    json_object: Literal[True] | None = None
    json_schema: dict[str, Any] | None = None
    regex: Annotated[str, Field(min_length=1, max_length=MAX_REGEX_CHARS)] | None = None
    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(min_length=1, max_length=256)
        ]
        | None
    ) = None
    # Lark's notation, as llguidance reads it.
    grammar: Annotated[str, Field(min_length=1, max_length=MAX_SCHEMA_CHARS)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"send exactly one kind of grammar, not {len(given)}: {', '.join(given) or 'none'}"
            )
        if self.json_schema is not None and len(json.dumps(self.json_schema)) > MAX_SCHEMA_CHARS:
            raise ValueError(f"the JSON schema may have {MAX_SCHEMA_CHARS} characters at most")
        return self

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


class TokenizeBody(BaseModel):
    """Text or a conversation to be turned into tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)] | None = None

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("send either text or messages")
        return self


class TraceBody(PromptBody):
    """A prompt whose routing is to be shown."""

    domain: Code | None = None


class GenerateBody(PromptBody):
    """A request for an answer."""

    request_id: Annotated[str, Field(max_length=200, pattern=r"^[ -~]*$")] = ""
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10.0)] = 1.0
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,7}$")], Annotated[float, Field(ge=-100.0, le=100.0)]],
        Field(max_length=1024),
    ] = {}
    seed: Seed | None = None
    # So many answers to the one prompt, which is computed once.
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    min_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    grammar: GrammarBody | None = None
    stop: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=16)] | None
    ) = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] = []
    ignore_eos: bool = False
    domain: Code | None = None
    # Requests with different salts never share cached prefixes: a team's name keeps its prompts unguessable.
    cache_salt: Annotated[str, Field(max_length=200)] = ""
    # Keys share the engine evenly, however many requests each has; within a key the lower priority goes first.
    fair_key: Annotated[str, Field(max_length=200)] = ""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    routed_experts: bool = False
    # Tokens before this place of the prompt are left out of the record.
    routed_experts_start_len: Annotated[int, Field(ge=0, le=MAX_PROMPT_TOKENS)] = 0
    epoch: Annotated[int, Field(ge=0)] | None = None
    # Text is written at most so often; 0: each token when it is there.
    stream_interval_ms: Annotated[int, Field(ge=0, le=10_000)] = 0

    def sampling(self) -> SamplingParams:
        """How to sample; without max_tokens the context is the limit, without a seed one is drawn."""
        return SamplingParams(
            max_tokens=self.max_tokens or MAX_PROMPT_TOKENS,
            temperature=float(self.temperature),
            top_p=float(self.top_p),
            top_k=self.top_k,
            min_p=float(self.min_p),
            presence_penalty=float(self.presence_penalty),
            frequency_penalty=float(self.frequency_penalty),
            repetition_penalty=float(self.repetition_penalty),
            logit_bias=tuple((int(token_id), float(bias)) for token_id, bias in self.logit_bias.items()),
            min_tokens=min(self.min_tokens, self.max_tokens or MAX_PROMPT_TOKENS),
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            stop=tuple(self.stop or ()),
            stop_token_ids=frozenset(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            num_logprobs=self.logprobs,
        )
