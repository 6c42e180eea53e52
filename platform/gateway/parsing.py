"""Reads a body of /v1, and names its first fault as OpenAI does."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.errors import ApiError, bad_request
from gateway.structured import Closed
from gateway.unsupported import CODE
from moe_core.strict_json import StrictJsonError, loads

# How pydantic names a value of the wrong type, and how its sentences begin.
OF_TYPE = ("_type", "_parsing")
SHOULD_BE = "Input should be "
P = TypeVar("P", bound=Closed)


def parsed(raw: bytes, kind: type[P]) -> P:
    """Read a body.

    Raises:
        ApiError: 400 that names the first fault.
    """
    try:
        value = loads(raw)
    except StrictJsonError as error:
        raise bad_request(f"The body is not JSON that is accepted here: {error}.", code=error.code) from None
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object.", code="not_json")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _fault(error) from None


def _fault(error: ValidationError) -> ApiError:
    first, said = _told(error.errors(include_url=False, include_input=False, include_context=False))
    # Branches of a union are named after types or tags; the client knows its own field only.
    steps = [str(step) for step in first["loc"] if not _is_branch(step)]
    if steps[:1] == ["response_format"]:
        del steps[1:2]
    param = ".".join(steps) or None
    if first["type"] == "extra_forbidden":
        return bad_request(
            f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter"
        )
    if first["type"] == CODE:
        return bad_request(f"{param} is not supported: {first['msg']}", param=param, code=CODE)
    words = said.removeprefix("Value error, ")
    return bad_request(f"{param}: {words}" if param else words, param=param, code="invalid_value")


def _told(every: list[ErrorDetails]) -> tuple[ErrorDetails, str]:
    """The fault to name with its words: of a union, that of the branch which was meant, or all that is accepted."""
    first = every[0]
    at = next((place for place, step in enumerate(first["loc"]) if _is_branch(step)), None)
    if at is None:
        return first, _plain(first)
    branches: dict[str | int, list[ErrorDetails]] = {}
    for one in every:
        if one["loc"][:at] == first["loc"][:at] and len(one["loc"]) > at:
            branches.setdefault(one["loc"][at], []).append(one)
    # The right type with a wrong value was meant; failing that, the list whose items are wrong.
    meant = [
        faults for faults in branches.values() if not any(one["type"].endswith(OF_TYPE) for one in faults)
    ]
    meant += [faults for faults in branches.values() if len(faults[0]["loc"]) > at + 1]
    if meant:
        return meant[0][0], _plain(meant[0][0])
    accepted = dict.fromkeys(_plain(faults[0]).removeprefix(SHOULD_BE) for faults in branches.values())
    return first, SHOULD_BE + " or ".join(accepted)


def _plain(fault: ErrorDetails) -> str:
    """The words of a fault without names of our classes."""
    return re.sub(r" or instance of \w+", "", fault["msg"])


def _is_branch(step: str | int) -> bool:
    return isinstance(step, str) and ("[" in step or step in {"str", "constrained-str"})
