"""Who is paired with whom so that the sum is least: the Hungarian method by shortest augmenting paths.

Source: Kuhn 1955; the form with potentials of Jonker and Volgenant 1987. O(n³), each inner step one numpy row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_core.errors import SpecError


def assign(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each row the column that it is paired with, (n,) int64, such that the sum of the costs (n, n) is least.

    Raises SpecError unless the costs are square and finite.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise SpecError(f"an assignment needs as many rows as columns, not {cost.shape}")
    if not np.isfinite(cost).all():
        raise SpecError("an assignment needs finite costs; found NaN or infinity")
    size = cost.shape[0]
    # Column `size` stands for "the row that is being placed".
    row_of = np.full(size + 1, -1, dtype=np.int64)
    row_price, column_price = np.zeros(size), np.zeros(size + 1)
    for row in range(size):
        _place(row, cost, row_of, row_price, column_price)
    columns = np.empty(size, dtype=np.int64)
    columns[row_of[:size]] = np.arange(size)
    return columns


def _place(
    row: int,
    cost: NDArray[np.float64],
    row_of: NDArray[np.int64],
    row_price: NDArray[np.float64],
    column_price: NDArray[np.float64],
) -> None:
    """Give one more row a column along the cheapest chain of moves; reduced costs stay at or above zero."""
    size = cost.shape[0]
    slack = np.full(size, np.inf)
    came_from = np.full(size, size, dtype=np.int64)
    open_columns = np.ones(size, dtype=bool)
    row_of[size] = row
    column = size
    visited = [size]
    while row_of[column] != -1:
        at = row_of[column]
        reduced = cost[at] - row_price[at] - column_price[:size]
        better = open_columns & (reduced < slack)
        slack[better], came_from[better] = reduced[better], column
        following = int(np.where(open_columns, slack, np.inf).argmin())
        step = slack[following]
        row_price[row_of[visited]] += step
        column_price[visited] -= step
        slack[open_columns] -= step
        open_columns[following] = False
        column = following
        visited.append(column)
    while column != size:
        previous = came_from[column]
        row_of[column] = row_of[previous]
        column = previous
