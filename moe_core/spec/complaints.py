"""What is wrong with plain data, in sentences of ours, each with the way to its field; none in a library's own words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from moe_core.errors import SpecError
from moe_core.sentences import CORE

# The way to a field, and what is wrong with it.
Place = tuple[int | str, ...]
Fault = tuple[Place, str]
MAX_FAULTS = 20
# The field by which one of several specifications is chosen.
KIND = "kind"

# The sentence of each of pydantic's complaints, and where its values stand in the complaint.
SENTENCES: dict[str, tuple[str, dict[str, str]]] = {
    "missing": ("value_missing", {}),
    "extra_forbidden": ("field_unknown", {}),
    "none_required": ("not_null", {}),
    "greater_than": ("not_above", {"limit": "gt"}),
    "greater_than_equal": ("not_at_least", {"limit": "ge"}),
    "less_than": ("not_below", {"limit": "lt"}),
    "less_than_equal": ("not_at_most", {"limit": "le"}),
    "multiple_of": ("not_a_multiple", {"factor": "multiple_of"}),
    "finite_number": ("not_finite", {}),
    "int_type": ("not_a_whole_number", {}),
    "int_parsing": ("not_a_whole_number", {}),
    "int_parsing_size": ("not_a_whole_number", {}),
    "int_from_float": ("not_a_whole_number", {}),
    "float_type": ("not_a_number", {}),
    "float_parsing": ("not_a_number", {}),
    "bool_type": ("not_a_truth", {}),
    "bool_parsing": ("not_a_truth", {}),
    "string_type": ("not_a_text", {}),
    # Half of a surrogate pair, which JSON can spell and no text can hold.
    "string_unicode": ("not_a_text", {}),
    "string_too_short": ("text_too_short", {"least": "min_length"}),
    "string_too_long": ("text_too_long", {"most": "max_length"}),
    "string_pattern_mismatch": ("not_of_pattern", {"pattern": "pattern"}),
    "literal_error": ("not_one_of", {"known": "expected"}),
    "enum": ("not_one_of", {"known": "expected"}),
    "list_type": ("not_a_list", {}),
    "tuple_type": ("not_a_list", {}),
    "too_short": ("list_too_short", {"least": "min_length"}),
    "too_long": ("list_too_long", {"most": "max_length"}),
    "dict_type": ("not_an_object", {}),
    "mapping_type": ("not_an_object", {}),
    "model_type": ("not_an_object", {}),
    "model_attributes_type": ("not_an_object", {}),
    "union_tag_not_found": ("kind_missing", {"field": "discriminator"}),
    "union_tag_invalid": ("kind_unknown", {"field": "discriminator", "tag": "tag", "known": "expected_tags"}),
}
OF_TYPE = ("_type", "_parsing")
# Branches of a union are named after their types, which nobody outside knows.
BRANCH = re.compile(r"(constrained-)?(int|float|str|bool)|[\w-]+\[.*\]", re.DOTALL)


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


def refusal_of(error: ValidationError, data: Any, cls: type[BaseModel] | None = None) -> SpecError:
    """The error of a specification with everything that pydantic found in `data`, in one sentence and apart as `faults`."""
    found = list(_found(error, data))
    # What a rule of several fields says stands alone; all else needs the field that it speaks of.
    refusal = SpecError(
        "; ".join(
            sentence if item is None else _in_full(cls, place, sentence, item)
            for place, sentence, item in found[:8]
        )
    )
    refusal.faults = tuple((place, sentence) for place, sentence, _item in found)
    return refusal


def _found(error: ValidationError, data: Any) -> Iterator[tuple[Place, str, Any]]:
    """Place, sentence, and what pydantic says of it: nothing for a contradiction that a specification found by itself."""
    items = [item for item in error.errors(include_url=False) if not _counts_wrong_ones_as_missing(item)]
    for item in _meant(items[:MAX_FAULTS]):
        place = _written(item["loc"], data)
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Contradictions):
            for inner, sentence in cause.faults:
                yield (*place, *inner), sentence, None
        else:
            yield place, said(item), item


def _written(way: Place, data: Any) -> Place:
    """The way to a field as the data has it, without what pydantic puts between: branches of unions and names of kinds."""
    place: list[int | str] = []
    here = data
    for step in _without_branches(way):
        if _is_kind(step, here):
            continue
        place.append(step)
        if isinstance(here, Mapping):
            here = here.get(step)
        elif isinstance(here, list | tuple) and isinstance(step, int):
            here = here[step] if step < len(here) else None
        else:
            here = None
    return tuple(place)


def _without_branches(way: Place) -> Place:
    return tuple(step for step in way if not _is_branch(step) and step != "[key]")


def _is_kind(step: int | str, here: Any) -> bool:
    return isinstance(here, Mapping) and step not in here and step == here.get(KIND)


def _counts_wrong_ones_as_missing(item: Any) -> bool:
    """Whether a list has as many entries as it should, and is called too short because some, told of apart, are wrong."""
    given = item["input"]
    return (
        item["type"] == "too_short"
        and isinstance(given, list | tuple | dict)
        and len(given) >= item["ctx"]["min_length"]
    )


def _meant(items: list[Any]) -> list[Any]:
    """Of each union the faults of the one branch that was meant: the first that has the right type, or else the first."""
    unions: dict[Place, dict[int | str, list[Any]]] = {}
    for item in items:
        if (at := _branch_at(item["loc"])) is not None:
            unions.setdefault(item["loc"][:at], {}).setdefault(item["loc"][at], []).append(item)
    chosen = {place: _branch_meant(place, branches) for place, branches in unions.items()}
    return [
        item
        for item in items
        if (at := _branch_at(item["loc"])) is None or item["loc"][at] == chosen[item["loc"][:at]]
    ]


def _branch_meant(place: Place, branches: Mapping[int | str, list[Any]]) -> int | str:
    for branch, items in branches.items():
        if not any(len(one["loc"]) == len(place) + 1 and one["type"].endswith(OF_TYPE) for one in items):
            return branch
    return next(iter(branches))


def _branch_at(place: Place) -> int | None:
    return next((at for at, step in enumerate(place) if _is_branch(step)), None)


def _is_branch(step: int | str) -> bool:
    return isinstance(step, str) and bool(BRANCH.fullmatch(step))


def said(item: Any) -> str:
    """One complaint of pydantic as a sentence of ours."""
    values, kind = item.get("ctx", {}), item["type"]
    if kind == "union_tag_invalid" and isinstance(item["input"], Mapping) and item["input"].get(KIND) is None:
        # Null is no name.
        kind = "union_tag_not_found"
    if kind not in SENTENCES:
        return str(item["msg"].removeprefix("Value error, "))
    code, places = SENTENCES[kind]
    filled = {name: _plain(values[place]) for name, place in places.items()}
    if code == "not_one_of":
        filled["known"] = filled["known"].replace(" or ", ", ")
    return CORE.say(code, **filled)


def _plain(value: Any) -> Any:
    """0.0 as people write it."""
    return f"{value:g}" if isinstance(value, float) else value


def _in_full(cls: type[BaseModel] | None, place: Place, message: str, item: Any) -> str:
    """A fault with the field that it speaks of, its value and the way out; what a rule of ours says stands alone."""
    # Names of kinds stay in it: they say which of several specifications was read.
    way = ".".join(map(str, _without_branches(item["loc"])))
    if item["type"] == "value_error" and not way:
        return message
    where = ".".join(part for part in ("" if cls is None else cls.__name__, way) if part)
    where = where or "the specification"
    if item["type"] == "extra_forbidden":
        return f"{where}: {message}; {_nearest(cls, place)}"
    if item["type"] in ("value_error", "missing", "union_tag_not_found", "union_tag_invalid"):
        return f"{where}: {message}"
    return f"{where}: {message}, and is {_json(item['input'])}"


def _nearest(cls: type[BaseModel] | None, place: Place) -> str:
    """The way out of an unknown name: the one that may be meant, or none."""
    known = [] if cls is None or len(place) != 1 else list(cls.model_fields)
    close = get_close_matches(str(place[-1]), known, 1)
    return f"did you mean {close[0]}?" if close else "leave it out if it changes nothing"


def _json(value: Any) -> str:
    """A value as JSON has it, cut where it is long."""
    text = json.dumps(value, default=lambda part: type(part).__name__)
    return text if len(text) <= 60 else f"{text[:57]}..."
