"""What every specification shares: frozen, closed, and strict about numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema

from moe_core.errors import SpecError
from moe_core.sentences import CORE

S = TypeVar("S", bound="Spec")
T = TypeVar("T")

ExpertIndex = Annotated[int, Field(ge=0, lt=1024)]
LayerIndex = Annotated[int, Field(ge=0, lt=512)]
Code = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Weight = Annotated[float, Field(ge=0.0, le=1e3, allow_inf_nan=False)]


# The way to a field, and what is wrong with it.
Place = tuple[int | str, ...]
Fault = tuple[Place, str]
MAX_FAULTS = 20


class Contradictions(ValueError):
    """Several faults of one specification, found together once each field by itself is sound."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(sentence for _place, sentence in self.faults))


def refuse(faults: Iterable[Fault]) -> None:
    """Raise Contradictions when there are any faults; for the validators of whole specifications."""
    found = tuple(faults)
    if found:
        raise Contradictions(found)


# What JSON tells apart; a path, a tuple or a date has no kind of its own there.
STRICT = frozenset({"int", "float", "bool", "str"})


def _strict(schema: Any) -> Any:
    """The same schema, strict about numbers, truths and words, unless a field says otherwise."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: part if key == "metadata" else _strict(part) for key, part in schema.items()}
    return {"strict": True, **parts} if schema.get("type") in STRICT else parts


class Spec(BaseModel):
    """A frozen specification that refuses fields it does not know, and numbers written as words, truths or fractions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _strict(handler(source))
        return schema

    @classmethod
    def parse(cls: type[S], data: Any) -> S:
        """Validate plain data; raise SpecError with every complaint in one sentence each, and apart as `faults`."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _refusal(cls, error) from error


def faults_of(error: ValidationError) -> Iterator[Fault]:
    """Everything that pydantic found, and each contradiction that a specification found by itself."""
    for place, sentence, _item in _found(error):
        yield place, sentence


class Door(Generic[T]):
    """Plain data in, the right one of several specifications out, and SpecError for what is none of them."""

    def __init__(self, kinds: Any) -> None:
        self._adapter: TypeAdapter[T] = TypeAdapter(kinds)

    def parse(self, data: Any) -> T:
        """Validate plain data; raise SpecError with every complaint in one sentence each, and apart as `faults`."""
        try:
            return self._adapter.validate_python(data)
        except ValidationError as error:
            raise _refusal(None, error) from error

    # What pydantic's own adapters call it.
    validate_python = parse

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of all kinds, told apart by `kind`."""
        return self._adapter.json_schema()


def _refusal(cls: type[BaseModel] | None, error: ValidationError) -> SpecError:
    found = list(_found(error))
    # What a rule of several fields says stands alone; all else needs the field that it speaks of.
    refusal = SpecError(
        "; ".join(sentence if item is None else _sentence(cls, item) for _place, sentence, item in found[:8])
    )
    refusal.faults = tuple((place, sentence) for place, sentence, _item in found)
    return refusal


def _found(error: ValidationError) -> Iterator[tuple[Place, str, Any]]:
    """Place, sentence, and what pydantic says of it: nothing for a contradiction that a specification found by itself."""
    for item in error.errors(include_url=False)[:MAX_FAULTS]:
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Contradictions):
            for place, sentence in cause.faults:
                yield (*item["loc"], *place), sentence, None
        else:
            yield item["loc"], _said(item), item


def _said(item: Any) -> str:
    """What pydantic says, without its own words for unions and lists."""
    values = item.get("ctx", {})
    match item["type"]:
        case "union_tag_not_found":
            return CORE.say("kind_missing", field=values["discriminator"])
        case "union_tag_invalid":
            field, known = values["discriminator"], values["expected_tags"]
            return CORE.say("kind_unknown", field=field, tag=values["tag"], known=known)
        case "tuple_type" | "list_type":
            return CORE.say("not_a_list")
    return str(item["msg"].removeprefix("Value error, "))


def _sentence(cls: type[BaseModel] | None, item: Any) -> str:
    # What a rule of ours says stands alone; pydantic's own words need the field that they speak of, and its value.
    message, place = _said(item), ".".join(map(str, item["loc"]))
    if item["type"] == "value_error" and not place:
        return str(message)
    where = (
        ".".join(part for part in ("" if cls is None else cls.__name__, place) if part) or "the specification"
    )
    if item["type"] == "missing":
        return f"{where}: {message}; give it a value"
    if item["type"] == "extra_forbidden":
        return f"{where}: {message}; {_nearest(cls, item['loc'])}"
    if item["type"] in ("value_error", "union_tag_not_found", "union_tag_invalid"):
        return f"{where}: {message}"
    return f"{where}: {message.replace('None', 'null')}, and is {_json(item['input'])}"


def _nearest(cls: type[BaseModel] | None, place: tuple[int | str, ...]) -> str:
    """The way out of an unknown name: the one that may be meant, or none."""
    known = [] if cls is None or len(place) != 1 else list(cls.model_fields)
    close = get_close_matches(str(place[-1]), known, 1)
    return f"did you mean {close[0]}?" if close else "leave it out if it changes nothing"


def _json(value: Any) -> str:
    """A value as JSON has it, cut where it is long."""
    text = json.dumps(value, default=lambda part: type(part).__name__)
    return text if len(text) <= 60 else f"{text[:57]}..."
