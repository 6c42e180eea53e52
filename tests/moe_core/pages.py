"""Tables of the reference pages, as tests read them."""

from __future__ import annotations


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of each row of the one table whose first line begins with `head`."""
    assert page.count(head) == 1, head
    lines = page[page.index(head) :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
