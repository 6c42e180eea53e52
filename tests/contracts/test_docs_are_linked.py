"""Every page of the documentation can be reached from its index, and no link between pages is broken."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


def links(page: Path) -> set[Path]:
    """The files that a page links to."""
    return {(page.parent / target).resolve() for target in LINK.findall(page.read_text())}


def test_no_link_is_broken() -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    broken = {(page.name, target.name) for page in pages for target in links(page) if not target.exists()}
    assert not broken


def test_every_page_is_in_the_index() -> None:
    reached = links(DOCS / "README.md") | links(DOCS / "adr" / "README.md") | {DOCS / "README.md"}
    missing = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {
        str(page.relative_to(DOCS)) for page in reached if page.is_relative_to(DOCS)
    }
    assert not missing
