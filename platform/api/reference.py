"""The schema as a page reads it: operations by part, the fields of bodies and answers, the shapes that they share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from accounts.access import Role

PREFIX = "/api/v1"
METHODS = ("get", "post", "put", "patch", "delete")
COMPONENT = "#/components/schemas/"
# Told in the schema's own words: they are what a reader of any OpenAPI page knows.
BOUNDS = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern", "default")
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One line of a table: a parameter, or a field of a body."""

    name: str
    type: str
    shape: str
    required: bool
    notes: tuple[str, ...]
    words: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back with one status."""

    status: int
    phrase: str
    type: str
    shape: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address."""

    key: str
    method: str
    path: str
    words: str
    role: str
    scope: str
    parameters: tuple[Field, ...]
    media: str
    body: tuple[Field, ...]
    body_shape: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The operations of one part of the API."""

    name: str
    operations: list[Operation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Shape:
    """A named object that bodies and answers hold."""

    name: str
    words: str
    fields: tuple[Field, ...]


class Reference:
    """Reads one OpenAPI document."""

    def __init__(self, document: Schema) -> None:
        self.document = document
        self.components: dict[str, Schema] = document["components"]["schemas"]

    def parts(self) -> list[Part]:
        """Return the operations in the order of the addresses."""
        found: dict[str, Part] = {}
        for path, methods in self.document["paths"].items():
            for method in METHODS:
                if method in methods:
                    operation = self._operation(path, method, methods[method])
                    name = path.removeprefix(PREFIX).strip("/").split("/")[0]
                    found.setdefault(name, Part(name)).operations.append(operation)
        return list(found.values())

    def shapes(self) -> list[Shape]:
        """Return the named objects; choices are told where they are used."""
        return [
            Shape(name, component.get("description", ""), tuple(self._fields(component)))
            for name, component in self.components.items()
            if "properties" in component
        ]

    def _operation(self, path: str, method: str, found: Schema) -> Operation:
        media, body = _content(found.get("requestBody", {}))
        body_type, body_shape = self._type(body) if body else ("", "")
        shape = self.components.get(body_shape, {}) if body_type == body_shape else {}
        role = found.get("x-role", "")
        return Operation(
            key=found["operationId"],
            method=method.upper(),
            path=path,
            words=found.get("description", ""),
            role=str(Role(role).label) if role else "",
            scope=found.get("x-scope", ""),
            parameters=tuple(self._parameter(one) for one in found.get("parameters", [])),
            media=media,
            body=tuple(self._fields(shape)),
            body_shape=body_type,
            answers=tuple(self._answer(status, one) for status, one in found["responses"].items()),
        )

    def _answer(self, status: str, found: Schema) -> Answer:
        _media, schema = _content(found)
        type_, shape = self._type(schema) if schema else ("", "")
        return Answer(int(status), HTTPStatus(int(status)).phrase, type_, shape)

    def _parameter(self, found: Schema) -> Field:
        type_, shape = self._type(found["schema"])
        notes = (found["in"], *self._notes(found["schema"]))
        return Field(
            found["name"], type_, shape, found.get("required", False), notes, found.get("description", "")
        )

    def _fields(self, shape: Schema) -> Iterator[Field]:
        required = shape.get("required", ())
        for name, schema in shape.get("properties", {}).items():
            type_, link = self._type(schema)
            words = "" if "enum" in self._resolved(schema) else schema.get("description", "")
            yield Field(name, type_, link, name in required, self._notes(schema), words)

    def _type(self, schema: Schema) -> tuple[str, str]:
        """Return the type in words and the shape that it links to, "" for none."""
        inner = self._inner(schema)
        if "$ref" in inner:
            name = inner["$ref"].removeprefix(COMPONENT)
            component = self.components[name]
            return (name, name) if "properties" in component else self._type(component)
        if inner.get("type") == "array":
            type_, shape = self._type(inner.get("items", {}))
            return f"{type_}[]", shape
        return str(inner.get("format") or inner.get("type") or "any"), ""

    def _notes(self, schema: Schema) -> tuple[str, ...]:
        resolved = self._resolved(schema)
        every = {**resolved, **schema}
        notes = [" | ".join(map(_plain, resolved["enum"]))] if "enum" in resolved else []
        notes += [f"{name} {_plain(every[name])}" for name in BOUNDS if name in every]
        if every.get("nullable"):
            notes.append("nullable")
        return tuple(notes)

    def _resolved(self, schema: Schema) -> Schema:
        """Return what a reference, or a list of references, points at, for its choices and bounds."""
        inner = self._inner(schema)
        if inner.get("type") == "array":
            inner = self._inner(inner.get("items", {}))
            return {"enum": found["enum"]} if "enum" in (found := self._followed(inner)) else {}
        return self._followed(inner)

    def _followed(self, schema: Schema) -> Schema:
        return self.components[schema["$ref"].removeprefix(COMPONENT)] if "$ref" in schema else schema

    def _inner(self, schema: Schema) -> Schema:
        """Return the one schema that matters in `allOf` and `oneOf`: the others there say blank or null."""
        several = schema.get("allOf") or schema.get("oneOf") or schema.get("anyOf")
        return self._inner(several[0]) if several else schema


def _content(found: Schema) -> tuple[str, Schema]:
    """Return the media type and schema of a body; JSON comes first."""
    for media, content in found.get("content", {}).items():
        return media, content.get("schema", {})
    return "", {}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
