"""What is wrong with a single field of a specification."""

from __future__ import annotations

from collections.abc import Mapping

FIELDS: Mapping[str, str] = {
    "kind_missing": "{field} is missing, which tells what this is; give it a value",
    "kind_unknown": "there is no {field} called '{tag}'; there are: {known}",
    "not_a_list": "this must be a list",
    "list_too_short": "this must have at least {least} entries",
    "list_too_long": "this must have at most {most} entries",
    "value_missing": "this is missing; give it a value",
    "field_unknown": "there is no such field",
    "not_null": "this must be null",
    "not_above": "this must be above {limit}",
    "not_at_least": "this must be at least {limit}",
    "not_below": "this must be below {limit}",
    "not_at_most": "this must be at most {limit}",
    "not_a_multiple": "this must be a multiple of {factor}",
    "not_finite": "this must be a finite number",
    "not_a_whole_number": "this must be a whole number",
    "not_a_number": "this must be a number",
    "not_a_truth": "this must be true or false",
    "not_a_text": "this must be text",
    "text_too_short": "this must have at least {least} characters",
    "text_too_long": "this must have at most {most} characters",
    "not_of_pattern": "this must match the pattern {pattern}",
    "not_one_of": "this must be one of these: {known}",
    "not_an_object": "this must be an object with named fields",
}
