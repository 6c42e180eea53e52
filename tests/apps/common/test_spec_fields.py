"""Fields come from specifications, and what was not sent is not an answer."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from django import forms
from django.http import QueryDict
from django.template import Context, Template
from pydantic import Field

from common.spec_fields import Ask, Part, is_changed, usual_words
from moe_core.spec.base import Spec


class Sample(Spec):
    """Every shape that a field may have."""

    whole: Annotated[int, Field(ge=0, lt=10)] = 3
    above: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    below: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    empty: Annotated[float, Field(gt=0.0)] | None = None
    full: Annotated[float, Field(gt=0.0)] | None = 1.25
    word: Literal["one", "two"] = "one"
    number: Literal[4, 8] = 4
    switch: bool = True
    needed: Annotated[int, Field(ge=1)]


PART = Part(Sample, {name: Ask(name) for name in Sample.model_fields}, prefix="p-")
LED = Part(Sample, {name: Ask(name) for name in ("word", "whole")}, prefix="p-", lead="word", none="nothing")


class SampleForm(forms.Form):
    """The sample as a form."""

    part = PART

    def __init__(self, *args, **more) -> None:
        super().__init__(*args, **more)
        self.fields |= self.part.fields()


class LedForm(SampleForm):
    """A part that may be missing."""

    part = LED


def answered(**sent: str) -> dict | None:
    form = SampleForm(QueryDict("&".join(f"p-{name}={value}" for name, value in sent.items())))
    assert form.is_valid(), form.errors
    return PART.data(form)


def test_what_was_not_sent_is_left_to_the_specification() -> None:
    assert answered(needed="1") == {"needed": 1}


def test_what_was_sent_empty_is_null_where_it_can_be() -> None:
    sent = dict.fromkeys(("whole", "above", "empty", "full", "word"), "")
    assert answered(needed="1", **sent) == {"needed": 1, "empty": None, "full": None}


def test_a_box_that_was_shown_and_is_off_is_an_answer() -> None:
    assert answered(needed="1", switch="off") == {"needed": 1, "switch": False}
    form = SampleForm(QueryDict("p-needed=1&p-switch=off&p-switch=on"))
    assert form.is_valid() and PART.data(form) == {"needed": 1, "switch": True}
    assert '<input type="hidden" name="p-switch" value="off">' in str(form["p-switch"])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("whole", "10", "at most 9."),
        ("whole", "-1", "at least 0."),
        ("whole", "x", "a whole number is needed."),
        ("above", "0", "above 0."),
        ("above", "1.1", "at most 1.0."),
        ("below", "1", "below 1."),
        ("empty", "nan", "a number is needed."),
        ("word", "three", "Select a valid choice."),
        ("needed", "", "This field is required."),
    ],
)
def test_the_bounds_are_those_of_the_specification(name: str, value: str, words: str) -> None:
    form = SampleForm({"p-needed": "1", f"p-{name}": value})
    assert not form.is_valid()
    assert list(form.errors) == [f"p-{name}"] and words in " ".join(form.errors[f"p-{name}"])


def test_a_lead_without_a_value_means_that_there_is_no_such_part() -> None:
    for value, wanted in (("", None), ("two", {"word": "two", "whole": 7})):
        form = LedForm({"p-word": value, "p-whole": "7"})
        assert form.is_valid() and LED.data(form) == wanted
        assert LED.is_chosen(form) is bool(value)
    assert LED.initial(None) == {"p-word": ""}
    assert LED.initial({"word": "one", "whole": 2}) == {"p-word": "one", "p-whole": 2}


def test_a_default_is_told_where_another_value_stands() -> None:
    usual, other = SampleForm(), SampleForm(initial={"p-above": 0.25, "p-switch": False, "p-number": 8})
    assert not any(is_changed(usual[name]) for name in usual.fields if name != "p-needed")
    assert [name for name in other.fields if is_changed(other[name]) and name != "p-needed"] == [
        "p-above", "p-number", "p-switch",
    ]  # fmt: skip
    assert (usual_words(other["p-above"]), usual_words(other["p-number"]), usual_words(usual["p-above"])) == (
        "0.5",
        "4",
        "",
    )
    page = Template("{% load ui %}{% field form.one %}").render(Context({"form": {"one": other["p-above"]}}))
    assert "usually 0.5" in page


def test_a_disclosure_is_open_where_something_is_changed_or_wrong() -> None:
    page = Template("{% load ui %}{% more fields %}inside{% endmore %}")

    def shown(form: forms.Form) -> str:
        return page.render(Context({"fields": [form["p-above"], form["p-whole"]]}))

    assert '<details class="more">' in shown(SampleForm())
    assert '<details class="more" open>' in shown(SampleForm(initial={"p-above": 0.25}))
    wrong = SampleForm({"p-above": "9", "p-whole": "3"})
    assert not wrong.is_valid() and "open" in shown(wrong)
