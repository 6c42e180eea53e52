"""What every specification shares: frozen, closed, and strict about numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_core.errors import SpecError

S = TypeVar("S", bound="Spec")

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


class Spec(BaseModel):
    """A frozen specification that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls: type[S], data: Any) -> S:
        """Validate plain data; raise SpecError with every complaint in one sentence each, and apart as `faults`."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            found = list(_found(error))
            refusal = SpecError("; ".join(_sentence(cls.__name__, *one) for one in found[:8]))
            refusal.faults = tuple((place, sentence) for place, sentence, _is_ours in found)
            raise refusal from error


def faults_of(error: ValidationError) -> Iterator[Fault]:
    """Everything that pydantic found, and each contradiction that a specification found by itself."""
    for place, sentence, _is_ours in _found(error):
        yield place, sentence


def _found(error: ValidationError) -> Iterator[tuple[Place, str, bool]]:
    for item in error.errors(include_url=False, include_input=False)[:MAX_FAULTS]:
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Contradictions):
            for place, sentence in cause.faults:
                yield (*item["loc"], *place), sentence, True
        else:
            yield item["loc"], item["msg"].removeprefix("Value error, "), item["type"] == "value_error"


def _sentence(name: str, place: Place, message: str, is_ours: bool) -> str:
    # What a rule of ours says stands alone; pydantic's own words need the field that they speak of.
    return message if is_ours or not place else f"{name}.{'.'.join(map(str, place))}: {message}"
