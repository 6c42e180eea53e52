"""What is said below a field stands in JSON schemas, and is not read from the source before one is asked for."""

from __future__ import annotations

import subprocess
import sys

from pydantic import Field, TypeAdapter

from moe_core.spec.base import Spec
from moe_core.spec.field_docs import attribute_docs

STARTS = """
import inspect
def refused(*_):
    raise AssertionError("a start reads the source of a specification")
inspect.getsource = inspect.getsourcelines = inspect.findsource = inspect.getblock = refused
from moe_core.spec import ModelSpec, RoutingSpec, ServeSpec
assert ServeSpec.model_fields["num_threads"].default
"""


class Inner(Spec):
    """A part."""

    size: int = 1
    """How much of it.

    In whole numbers.
    """


class Outer(Spec):
    """A whole."""

    first: Inner = Inner()
    """What comes first."""
    named: int = Field(default=2, alias="_named")
    """Under another name."""
    told: int = Field(default=3, description="Told by the field.")
    """Told below it."""
    silent: int = 4
    by_words: int = 5
    "In one line."


class Heir(Outer):
    """Another whole."""

    by_words: int = 6
    silent: int = 7
    """No longer."""


def described(kind: type[Spec]) -> dict[str, str | None]:
    properties = TypeAdapter(kind).json_schema()["properties"]
    return {name: said.get("description") for name, said in properties.items()}


def test_words_below_a_field_describe_it() -> None:
    assert described(Inner) == {"size": "How much of it.\n\nIn whole numbers."}
    assert described(Outer) == {
        "first": "What comes first.",
        "_named": "Under another name.",
        "told": "Told by the field.",
        "silent": None,
        "by_words": "In one line.",
    }
    assert TypeAdapter(Outer).json_schema()["$defs"]["Inner"]["description"] == "A part."


def test_an_heir_says_what_its_parent_said_but_of_what_it_declares_anew() -> None:
    said = described(Heir)
    assert said["first"] == "What comes first."
    assert said["by_words"] is None
    assert said["silent"] == "No longer."


def test_a_class_within_a_function_and_one_without_a_source() -> None:
    class Local(Spec):
        """Words at
        a smaller depth than their class."""

        size: int = 1
        """Of the inner one."""

    assert described(Local) == {"size": "Of the inner one."}
    assert attribute_docs(type("Made", (), {"__annotations__": {"size": int}})) == {}


def test_a_start_reads_no_source() -> None:
    done = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
