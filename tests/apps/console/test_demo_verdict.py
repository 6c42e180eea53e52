"""The demo's verdict fails for every promise that is not kept."""

from __future__ import annotations

from typing import Any

import pytest

from console.demo.verdict import shortfalls

GOOD = {
    "before": {"loss": 3.2, "mapped_share": 0.25, "max_vio": 1.1, "entropy": 0.95},
    "after": {"loss": 2.6, "mapped_share": 0.85, "max_vio": 0.4, "entropy": 0.9},
    "control": {"loss": 2.7, "mapped_share": 0.3, "max_vio": 0.5, "entropy": 0.9},
}


def changed(state: str, **values: float) -> dict[str, Any]:
    return {**GOOD, state: {**GOOD[state], **values}}


def test_it_is_content_with_what_was_promised() -> None:
    assert shortfalls(GOOD) == []


@pytest.mark.parametrize(
    ("tuning", "word"),
    [
        (changed("after", loss=2.9), "mean loss"),
        (changed("after", mapped_share=0.69), "under 0.7"),
        (changed("control", mapped_share=0.7), "control"),
        (changed("after", max_vio=1.2), "MaxVio"),
    ],
)
def test_it_names_what_is_missing(tuning: dict[str, Any], word: str) -> None:
    assert [word in sentence for sentence in shortfalls(tuning)] == [True]
