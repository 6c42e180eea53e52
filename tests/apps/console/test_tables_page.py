"""Tables of figures in a real browser, without a server: what they show and what they hide at the width of a laptop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.template.loader import render_to_string
from django.utils import translation
from playwright.sync_api import Page, sync_playwright

from console.translations import platform_dir
from jobs.foreseen import Foreseen, Line
from registry.routed import COLUMNS, routed_table
from tests.in_browser import ARGUMENTS, CHROMIUM

pytestmark = pytest.mark.browser

LAPTOP = {"width": 1280, "height": 800}
# In the column beside, where nothing stands.
BARE_X = 1200
STYLES = platform_dir() / "console/static/console/css"
# Beside the column of a job's recipe and log, as on its page.
PAGE = """<!doctype html><html lang="{language}"><style>{style}</style><body><div class="shell"><nav class="rail"></nav>
<div class="shelf"></div><main class="main"><div class="grid split"><div class="stack">{content}</div><div class="stack">
</div></div></main></div></body></html>"""


@pytest.fixture
def laptop() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser.new_page(viewport=LAPTOP)  # type: ignore[arg-type]
        browser.close()


def show(page: Page, language: str, template: str, **context: object) -> None:
    style = "".join((STYLES / name).read_text() for name in ("tokens.css", "console.css"))
    with translation.override(language):
        content = render_to_string(template, context)
    page.set_content(PAGE.format(language=language, style=style, content=content))
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")


def has_shade(page: Page) -> bool:
    """Whether the right edge of the table looks other than bare ground, below the words of its last row."""
    box = page.locator(".routed .table-wrap").bounding_box()
    assert box is not None
    place = {"x": box["x"] + box["width"] - 2, "y": box["y"] + box["height"] - 4, "width": 1, "height": 1}
    # One dot is one picture: equal dots are equal bytes.
    return page.screenshot(clip=place) != page.screenshot(clip={**place, "x": BARE_X})  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("language", "value", "fits"),
    [("zh-hans", 0.88, True), ("zh-hans", 123456.78, False), ("en", 0.88, False)],
)
def test_every_figure_of_routing_is_seen_or_scrolled_to(
    laptop: Page, language: str, value: float, fits: bool
) -> None:
    figures = dict.fromkeys(COLUMNS, value)
    routing = {"mean": figures, "layers": [{"layer": 12, **figures}]}
    with translation.override(language):
        routed = routed_table({"before": {"routing": routing}, "after": {"routing": routing}})
    show(laptop, language, "registry/routed.html", routed=routed)
    box = laptop.locator(".routed .table-wrap")
    over = box.evaluate("(each) => each.scrollWidth - each.clientWidth")
    assert over <= 0 or not fits
    if over > 0:
        assert has_shade(laptop)
    assert laptop.evaluate("document.documentElement.scrollWidth") == LAPTOP["width"]
    box.evaluate("(each) => each.scrollTo(each.scrollWidth, 0)")
    last, edge = laptop.locator("thead th").last.bounding_box(), box.bounding_box()
    assert last is not None and edge is not None
    assert last["x"] + last["width"] <= edge["x"] + edge["width"] + 0.5
    # At the end of the way nothing is hidden there.
    assert not has_shade(laptop)


def test_figures_with_and_without_a_unit_end_at_one_edge(laptop: Page) -> None:
    lines = [
        Line("experts", "Experts", ("8", ""), ("16", "")),
        Line("bytes", "Size", ("1.2", "GB"), ("2.4", "GB")),
    ]
    show(laptop, "en", "jobs/foreseen.html", foreseen=Foreseen(lines))
    edges = laptop.eval_on_selector_all(
        "td:last-child",
        """(cells) => cells.map((cell) => { const range = document.createRange(); range.selectNodeContents(cell);
            return Math.max(...[...range.getClientRects()].filter((one) => one.width).map((one) => one.right)); })""",
    )
    assert len(edges) == 2
    assert edges[0] == pytest.approx(edges[1], abs=0.1)
