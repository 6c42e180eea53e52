"""What an answer must match: OpenAI's response_format, and vLLM's structured_outputs and guided_… beside it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# The engine's bounds too.
MAX_SCHEMA_CHARS, MAX_REGEX_CHARS = 64 << 10, 8 << 10
Regex = Annotated[str, Field(min_length=1, max_length=MAX_REGEX_CHARS)]
Grammar = Annotated[str, Field(min_length=1, max_length=MAX_SCHEMA_CHARS)]
Choice = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(min_length=1, max_length=256)
]
Schema = dict[str, Any]


class Closed(BaseModel):
    """Unknown fields are refused; numbers are numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PlainFormat(Closed):
    """Anything."""

    type: Literal["text"]


class JsonObjectFormat(Closed):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Closed):
    """A schema with its name; it is always enforced, `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=4096)] | None = None
    wanted: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class JsonSchemaFormat(Closed):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class StructuredOutputs(Closed):
    """vLLM's one field for all kinds."""

    wanted: Annotated[Schema | None, Field(alias="json")] = None
    json_object: Literal[True] | None = None
    regex: Regex | None = None
    choice: Choice | None = None
    grammar: Grammar | None = None


class StructuredFields(BaseModel):
    """The fields of a body that say what its answer must match; one of them at most."""

    response_format: (
        Annotated[PlainFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None
    ) = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Regex | None = None
    guided_choice: Choice | None = None
    guided_grammar: Grammar | None = None

    @model_validator(mode="after")
    def _one_grammar_of_bounded_size(self) -> Self:
        found = self._grammars()
        if len(found) > 1:
            raise ValueError(f"an answer can match one thing only; these were sent: {', '.join(found)}")
        for name, grammar in found.items():
            size = len(json.dumps(grammar.get("json_schema")))
            if size > MAX_SCHEMA_CHARS:
                raise ValueError(f"{name}: the schema has {size} characters; {MAX_SCHEMA_CHARS} are the most")
        return self

    @property
    def grammar_field(self) -> str | None:
        """The field that says what the answer must match."""
        return next(iter(self._grammars()), None)

    def grammar(self) -> dict[str, Any] | None:
        """It as the engine takes it."""
        return next(iter(self._grammars().values()), None)

    def _grammars(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        if isinstance(self.response_format, JsonObjectFormat):
            found["response_format"] = {"json_object": True}
        elif isinstance(self.response_format, JsonSchemaFormat):
            found["response_format"] = {"json_schema": self.response_format.json_schema.wanted}
        for kind in ("json", "json_object", "regex", "choice", "grammar"):
            engine_name = "json_schema" if kind == "json" else kind
            outputs = self.structured_outputs
            one = outputs and getattr(outputs, "wanted" if kind == "json" else kind)
            if one is not None:
                found[f"structured_outputs.{kind}"] = {engine_name: one}
            guided = getattr(self, f"guided_{kind}", None)
            if guided is not None:
                found[f"guided_{kind}"] = {engine_name: guided}
        return found
