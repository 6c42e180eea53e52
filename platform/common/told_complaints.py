"""What is wrong with a single field of a specification, in the reader's language."""

from __future__ import annotations

from collections.abc import Mapping

from django.utils.translation import gettext_noop

COMPLAINTS: Mapping[str, str] = {
    "kind_missing": gettext_noop("%(field)s is missing, which tells what this is; give it a value."),
    "kind_unknown": gettext_noop("There is no %(field)s called “%(tag)s”; there are: %(known)s."),
    "not_a_list": gettext_noop("This must be a list."),
    "list_too_short": gettext_noop("This must have at least %(least)s entries."),
    "list_too_long": gettext_noop("This may have at most %(most)s entries."),
    "value_missing": gettext_noop("This is missing; give it a value."),
    "field_unknown": gettext_noop("There is no such field."),
    "not_null": gettext_noop("This must be null."),
    "not_above": gettext_noop("This must be above %(limit)s."),
    "not_at_least": gettext_noop("This must be at least %(limit)s."),
    "not_below": gettext_noop("This must be below %(limit)s."),
    "not_at_most": gettext_noop("This must be at most %(limit)s."),
    "not_a_multiple": gettext_noop("This must be a multiple of %(factor)s."),
    "not_finite": gettext_noop("This must be a finite number."),
    "not_a_whole_number": gettext_noop("This must be a whole number."),
    "not_a_number": gettext_noop("This must be a number."),
    "not_a_truth": gettext_noop("This must be true or false."),
    "not_a_text": gettext_noop("This must be text."),
    "text_too_short": gettext_noop("This must have at least %(least)s characters."),
    "text_too_long": gettext_noop("This may have at most %(most)s characters."),
    "not_of_pattern": gettext_noop("This must match the pattern %(pattern)s."),
    "not_one_of": gettext_noop("This must be one of these: %(known)s."),
    "not_an_object": gettext_noop("This must be an object with named fields."),
}
