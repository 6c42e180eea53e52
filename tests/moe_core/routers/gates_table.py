"""The table of docs/reference/routers.md that says which gates a job tunes and an engine serves, made from the code.

`python -m tests.moe_core.routers.gates_table` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from tests.moe_core.routers.every_gate import GATES

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "routers.md"
BEGIN, END = "<!-- gates: begin -->\n", "<!-- gates: end -->\n"


def table() -> str:
    """Markdown, one row a gate."""
    lines = ["| kind | tuned by jobs | served |", "|---|---|---|"]
    for gate in GATES:
        tuned = (
            f"no: {gate.not_tuned}"
            if gate.not_tuned
            else f"yes{': ' + gate.tuned_so if gate.tuned_so else ''}"
        )
        served = f"no: {gate.not_served}" if gate.not_served else "yes"
        lines.append(f"| `{gate.model_fields['kind'].default}` | {tuned} | {served} |")
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """The table that stands in a page."""
    return page.partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text.replace(BEGIN + written(text) + END, BEGIN + table() + END), "utf-8")
