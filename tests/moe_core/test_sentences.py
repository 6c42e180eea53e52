"""Errors that people meet often carry a code and values, and their sentence can be read back."""

from __future__ import annotations

import re

import pytest

from moe_core.errors import HashMismatch, MoeCoreError, SpecError
from moe_core.sentences import CORE, Sentences, fields, files, layouts, operations, serving, training
from moe_core.spec import LayoutSpec
from tests.moe_core.tiny import tiny_llama


@pytest.mark.parametrize("code", CORE.templates)
def test_understanding_is_the_inverse_of_saying(code: str) -> None:
    values = {place: f"<{place}>" for place in re.findall(r"\{(\w+)\}", CORE.templates[code])}
    assert CORE.understand(CORE.say(code, **values)) == (code, values)


def test_no_code_stands_twice() -> None:
    parts = (
        layouts.LAYOUTS, training.TRAINING, operations.OPERATIONS, serving.SERVING, fields.FIELDS, files.FILES,
    )  # fmt: skip
    codes = [code for part in parts for code in part]
    assert sorted(codes) == sorted(CORE.templates)


def test_other_texts_are_not_understood() -> None:
    assert CORE.understand("the moon is full") is None
    assert CORE.understand("top_k (9) must not exceed num_experts (8); and more") is None


def test_an_error_carries_its_code_and_its_values() -> None:
    error = SpecError.of("layer_outside", layer=4, num_layers=3, last=2)
    assert (error.reason, error.values["layer"]) == ("layer_outside", 4)
    assert str(error) == "layer 4 is outside the model's 3 layers; choose layers from 0 to 2"
    assert isinstance(error, MoeCoreError)
    assert HashMismatch("a", "b", "c").reason == "wrong_hash"
    assert SpecError("anything").reason == ""
    with pytest.raises(KeyError):
        SpecError.of("no_such_code")


def test_a_rule_of_ours_stands_without_the_names_of_the_library_that_checks_it() -> None:
    with pytest.raises(SpecError) as found:
        LayoutSpec.parse({"moe_layers": [0], "num_experts": 8, "top_k": 9})
    assert str(found.value) == "top_k (9) must not exceed num_experts (8)"
    with pytest.raises(SpecError, match=r"^LayoutSpec\.num_experts: "):
        LayoutSpec.parse({"moe_layers": [0], "num_experts": 0})


def test_a_layout_outside_the_model_is_told_by_code() -> None:
    with pytest.raises(SpecError) as found:
        LayoutSpec(moe_layers=(7,)).applied_to(tiny_llama())
    assert found.value.reason == "layer_outside"


def test_values_of_some_places_are_said_in_other_words() -> None:
    book = Sentences({"moved": "from {here} to {there}: {why}"})
    names = {"there": {"b": "the bay"}, "here": {"a": "the anchorage"}, "elsewhere": {"x": "y"}}
    assert book.renamed("from a to b: a and b", names) == "from the anchorage to the bay: a and b"
    assert book.renamed("from c to b: wind", names) == "from c to the bay: wind"
    assert book.renamed("to b from a", names) == "to b from a"
