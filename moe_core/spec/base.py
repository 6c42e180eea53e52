"""What every specification shares: frozen, closed, and strict about numbers."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_core.errors import SpecError

S = TypeVar("S", bound="Spec")

ExpertIndex = Annotated[int, Field(ge=0, lt=1024)]
LayerIndex = Annotated[int, Field(ge=0, lt=512)]
Code = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Weight = Annotated[float, Field(ge=0.0, le=1e3, allow_inf_nan=False)]


class Spec(BaseModel):
    """A frozen specification that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls: type[S], data: Any) -> S:
        """Validate plain data; raise SpecError with every complaint in one sentence each."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(_sentences(cls.__name__, error)) from error


def _sentences(name: str, error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)[:8]
    return "; ".join(_sentence(name, item["loc"], item["msg"]) for item in found)


def _sentence(name: str, place: tuple[int | str, ...], message: str) -> str:
    # What a rule of ours says stands alone; pydantic's own words need the field that they speak of.
    message = message.removeprefix("Value error, ")
    return f"{name}.{'.'.join(map(str, place))}: {message}" if place else message
