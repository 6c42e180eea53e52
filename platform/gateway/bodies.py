"""Request bodies of /v1: closed, every number bounded. What OpenAI's clients send is taken; what we cannot do is refused
by name, not ignored; what changes nothing (`user`, `metadata`, …) is accepted."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from gateway.structured import Closed, StructuredFields
from gateway.unsupported import (
    NoAudio,
    NoEcho,
    NoPrediction,
    NoReasoning,
    NoSearch,
    NoStore,
    NoSuffix,
    NoTools,
    NoVerbosity,
)

DEFAULT_MAX_TOKENS = 1024
MAX_TEXT = 2 * 2**20
Text = Annotated[str, Field(max_length=MAX_TEXT)]
ModelName = Annotated[str, Field(min_length=1, max_length=80)]
DomainCode = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Tokens = Annotated[int, Field(ge=1, le=1 << 20)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,7}$")]
TokenId = Annotated[int, Field(ge=0, lt=1 << 20)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
MAX_CHOICES = 16
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
# The engine's names for a prompt in its forms, and those that it has for other fields.
PROMPTS = ("prompt", "prompt_ids", "messages", "text")
RENAMED = {"routed_experts": "return_routed_experts"}
RARELY_SENT = (
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "routed_experts_start_len",
)
B = TypeVar("B", bound="Body")


class TextPart(Closed):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class ChatMessage(Closed):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]
    name: Annotated[str, Field(max_length=64)] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    annotations: Annotated[list[Any], Field(max_length=64)] | None = None

    def plain(self) -> dict[str, str]:
        """The turn as the engine takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Closed):
    """What a stream carries beside its text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Body(Closed, StructuredFields):
    """What both kinds of completion have in common."""

    prompt_field: ClassVar[str] = "prompt"
    model: ModelName
    domain: DomainCode | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    max_tokens: Tokens | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=1024)] | None = None
    # Beyond OpenAI's, under the names that vLLM gave them.
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10.0)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool = False
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None
    service_tier: Annotated[str, Field(max_length=32)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    # Under the names that SGLang gave them.
    return_routed_experts: bool = False
    routed_experts_start_len: Annotated[int, Field(ge=0, le=1 << 20)] = 0

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self

    @model_validator(mode="after")
    def _start_of_a_record(self) -> Self:
        if self.routed_experts_start_len and not self.return_routed_experts:
            raise ValueError("routed_experts_start_len needs return_routed_experts to be true")
        return self

    @property
    def num_choices(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    @property
    def num_tokens_wanted(self) -> int:
        """The longest answer that may come."""
        return self.max_tokens or DEFAULT_MAX_TOKENS

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to tell for each token; None for no log probabilities."""
        return None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def prompt_fields(self) -> dict[str, Any]:
        """The prompt as the engine takes it."""
        raise NotImplementedError

    def field_of(self, param: str | None) -> str | None:
        """The field of this body behind one of the engine's; what has the same name in both, as it is."""
        if param == "grammar":
            return self.grammar_field
        return self.prompt_field if param in PROMPTS else RENAMED.get(param or "", param)

    def for_engine(self) -> dict[str, Any]:
        """The request as the engine takes it; `domain`, epoch and salt are added by the caller."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return {
            **self.prompt_fields(),
            "max_tokens": self.num_tokens_wanted,
            "temperature": 1.0 if self.temperature is None else float(self.temperature),
            "top_p": 1.0 if self.top_p is None else float(self.top_p),
            "top_k": self.top_k or 0,
            "seed": self.seed,
            "stop": stop or None,
            "logprobs": self.num_logprobs,
            "routed_experts": self.return_routed_experts,
            "n": self.num_choices,
            "priority": self.priority,
            **self._rarely_sent(),
        }

    def _rarely_sent(self) -> dict[str, Any]:
        """What most requests leave at the engine's defaults."""
        given = {name: getattr(self, name) for name in RARELY_SENT if getattr(self, name)}
        grammar = self.grammar()
        return given | ({} if grammar is None else {"grammar": grammar})


class ChatBody(Body):
    """POST /v1/chat/completions."""

    prompt_field: ClassVar[str] = "messages"
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: NoTools = None
    functions: NoTools = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    store: NoStore = None
    modalities: list[Literal["text"]] | None = None
    audio: NoAudio = None
    prediction: NoPrediction = None
    web_search_options: NoSearch = None
    reasoning_effort: NoReasoning = None
    verbosity: NoVerbosity = None

    @model_validator(mode="after")
    def _logprobs_before_top(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def num_tokens_wanted(self) -> int:
        """The newer name counts when both are sent."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS

    @property
    def num_logprobs(self) -> int | None:
        """None, or 0 and more."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def prompt_fields(self) -> dict[str, Any]:
        """The conversation."""
        return {"messages": [message.plain() for message in self.messages]}


class CompletionBody(Body):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Annotated[int, Field(ge=0, lt=1 << 20)]], Field(min_length=1, max_length=1 << 20)]
        | Annotated[list[Text], Field(min_length=1, max_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: NoEcho = None
    suffix: NoSuffix = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and len(prompt) > 1 and not all(isinstance(one, int) for one in prompt):
            raise ValueError(
                f"{len(prompt)} prompts in one request are not supported: send one request for each; several answers to "
                "one prompt are n"
            )
        return prompt

    @model_validator(mode="after")
    def _all_answers_are_told(self) -> Self:
        if self.best_of is not None and self.best_of != self.num_choices:
            raise ValueError(
                f"best_of ({self.best_of}) other than n ({self.num_choices}) is not supported: ask for n answers "
                "with logprobs and choose"
            )
        return self

    @property
    def num_tokens_wanted(self) -> int:
        """OpenAI's default for this endpoint."""
        return self.max_tokens or 16

    @property
    def num_logprobs(self) -> int | None:
        """As sent."""
        return self.logprobs

    def prompt_fields(self) -> dict[str, Any]:
        """Text, or tokens."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return {"prompt": prompt}
        if isinstance(prompt[0], str):
            return {"prompt": prompt[0]}
        return {"prompt_ids": prompt}


class TraceBody(Closed):
    """POST /v1/turnout/trace: which experts each token of a prompt visits."""

    model: ModelName
    domain: DomainCode | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        return self

    def for_engine(self) -> dict[str, Any]:
        """The prompt as the engine takes it."""
        if self.messages is not None:
            return {"messages": [message.plain() for message in self.messages]}
        return {"prompt": self.prompt}
