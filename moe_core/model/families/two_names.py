"""Keys that two names exist for."""

from __future__ import annotations

from typing import Any


def one_name(data: Any, kept: str, other: str) -> Any:
    """`data` with a key that two names exist for under the first of them.

    Raises ValueError when both are there and differ.
    """
    if not isinstance(data, dict) or other not in data:
        return data
    rest = {key: value for key, value in data.items() if key != other}
    if kept in data and data[kept] != data[other]:
        raise ValueError(f"{kept} ({data[kept]}) and {other} ({data[other]}) are one thing and differ")
    return {**rest, kept: data[other]}
