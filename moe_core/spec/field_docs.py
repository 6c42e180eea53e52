"""What specifications say of their fields, read from the source when a JSON schema is asked for.

Pydantic reads it where a class is made (`use_attribute_docstrings`): it tokenizes and parses the source of each class at
every start, which was half of the time that an engine's specifications take to import, and no engine makes a schema.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaValue


def describe_fields(cls: type[BaseModel], schema: JsonSchemaValue) -> None:
    """Put the string below each field of `cls` into its property of `schema`, unless the field has a description."""
    properties: dict[str, Any] = schema.get("properties", {})
    for name, field in cls.model_fields.items():
        words = None if field.description else _words_of(cls, name)
        if words is None:
            continue
        aliases = (field.validation_alias, field.serialization_alias)
        for key in {name, *(alias for alias in aliases if isinstance(alias, str))} & properties.keys():
            properties[key]["description"] = words


def _words_of(cls: type[BaseModel], name: str) -> str | None:
    """What is said where the field is declared last."""
    declared = (one for one in cls.__mro__ if name in inspect.get_annotations(one))
    home = next(declared, None)
    return None if home is None else attribute_docs(home).get(name)


@cache
def attribute_docs(cls: type) -> dict[str, str]:
    """The string below each annotated name of a class's own body; nothing where its source is not at hand."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return {}
    # A class within a function is indented as a whole.
    (outer,) = ast.parse(f"if True:\n{source}" if source[:1].isspace() else source).body
    body = outer.body[0] if isinstance(outer, ast.If) else outer
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for declared, said in pairwise(body.body):
        if not isinstance(declared, ast.AnnAssign) or not isinstance(declared.target, ast.Name):
            continue
        words = (
            said.value.value if isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant) else None
        )
        if isinstance(words, str):
            found[declared.target.id] = inspect.cleandoc(words)
    return found
