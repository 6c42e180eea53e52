"""The table of the gates' fields in docs/reference/routers.md, made from their specifications.

`python -m tests.moe_core.gates_table` writes it anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from moe_core.spec.gate import Gate, GateSpec

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "routers.md"
BEGIN, END = "<!-- table: python -m tests.moe_core.gates_table -->\n", "<!-- end of table -->\n"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def gates() -> list[type[Gate]]:
    """Every gate that a specification may name."""
    union, *_ = get_args(GateSpec)
    return list(get_args(union))


def rows() -> list[list[str]]:
    """Kind, field, values, default and meaning, gate by gate."""
    found = []
    for gate in gates():
        schema = gate.model_json_schema()
        for name, field in schema["properties"].items():
            if name != "kind":
                kind = schema["properties"]["kind"]["const"]
                found.append([f"`{kind}`", f"`{name}`", values(field), default(field), meaning(field)])
    return found


def values(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    bounds = " ".join(f"{sign} {field[word]}" for word, sign in BOUNDS.items() if word in field)
    return f"{field['type']} {bounds}".strip()


def default(field: dict[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`"


def meaning(field: dict[str, Any]) -> str:
    return " ".join(field.get("description", "").split())


def table() -> str:
    """Markdown, one row a field."""
    head = ["gate", "field", "values", "default", "meaning"]
    lines = [head, ["---"] * len(head), *rows()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def written(page: str) -> str:
    """The table that stands in a page."""
    return page.partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text.replace(BEGIN + written(text) + END, BEGIN + table() + END), "utf-8")
