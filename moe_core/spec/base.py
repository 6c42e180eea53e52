"""What every specification shares: frozen, closed, and strict about numbers."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from moe_core.spec.complaints import KIND, Fault, Place, refusal_of, refuse
from moe_core.spec.field_docs import describe_fields

__all__ = ["Code", "Door", "ExpertIndex", "Fault", "LayerIndex", "Place", "Spec", "Weight", "refuse"]

S = TypeVar("S", bound="Spec")
T = TypeVar("T")

ExpertIndex = Annotated[int, Field(ge=0, lt=1024)]
LayerIndex = Annotated[int, Field(ge=0, lt=512)]
Code = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Weight = Annotated[float, Field(ge=0.0, le=1e3, allow_inf_nan=False)]

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

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _strict(handler(source))
        return schema

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The name of a kind is required: among several kinds, where it always stands, none is taken without it.

        What is said below a field describes it.
        """
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        describe_fields(cls, own)
        if "const" in own.get("properties", {}).get(KIND, {}) and KIND not in own.get("required", []):
            own["required"] = [KIND, *own.get("required", [])]
        return schema

    @classmethod
    def parse(cls: type[S], data: Any) -> S:
        """Validate plain data; raise SpecError with every complaint in one sentence each, and apart as `faults`."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise refusal_of(error, data, cls) from error


class Door(Generic[T]):
    """Plain data in, the right one of several specifications out, and SpecError for what is none of them."""

    def __init__(self, kinds: Any) -> None:
        self._adapter: TypeAdapter[T] = TypeAdapter(kinds)

    def parse(self, data: Any) -> T:
        """Validate plain data; raise SpecError with every complaint in one sentence each, and apart as `faults`."""
        try:
            return self._adapter.validate_python(data)
        except ValidationError as error:
            raise refusal_of(error, data) from error

    # What pydantic's own adapters call it.
    validate_python = parse

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of all kinds, told apart by `kind`."""
        return self._adapter.json_schema()
