"""Numbers as people read them."""

from __future__ import annotations

import pytest
from django.template import Context, Template
from django.utils.translation import override

from common import figures


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (538_070_000, "538 MB"),
        (99_960_000, "100 MB"),
        (2.5e12, "2.50 TB"),
    ],
)
def test_sizes_show_three_figures(size: float, text: str) -> None:
    assert figures.joined(figures.bytes_parts(size)).replace("\u202f", " ") == text


def test_large_counts_follow_the_habits_of_each_language() -> None:
    assert figures.compact_parts(134_515_008) == ("134.5", "M")
    with override("zh-hans"):
        assert figures.compact_parts(134_515_008) == ("1.35", "亿")
        assert figures.compact_parts(18_420) == ("1.84", "万")


def test_a_list_has_the_comma_of_its_language() -> None:
    assert figures.listed([1, 5]) == "1, 5"
    page = Template('{% load ui %}{{ numbers|listed:"E" }}')
    with override("zh-hans"):
        assert figures.listed([1, 5]) == "1、5"
        assert page.render(Context({"numbers": [0, 7]})) == "E0、E7"


def test_percent_has_a_thin_space_in_english_and_none_in_chinese() -> None:
    assert figures.percent(0.0184, 1) == "1.8\u202f%"
    with override("zh-hans"):
        assert figures.percent(0.0184, 1) == "1.8%"


def test_negative_numbers_have_a_true_minus_and_zero_has_none() -> None:
    assert figures.number(-3.25, 1) == "−3.3"
    assert figures.number(-0.001, 2) == "0.00"


def test_numbers_are_rounded_not_cut() -> None:
    assert figures.number(0.999, 2) == "1.00"
    assert figures.number(18_420.6) == "18,421"


def test_nothing_is_a_dash() -> None:
    assert figures.number(None) == figures.percent(None) == figures.duration(None) == "—"


def test_durations_name_their_units() -> None:
    assert figures.duration(0.412) == "412 ms"
    assert figures.duration(75) == "1 min 15 s"
    assert figures.duration(4000) == "1 h 6 min"


def test_a_spark_ends_where_its_last_value_stands() -> None:
    path, x, y = figures.spark_path([1.0, 2.0, 3.0], width=52)
    assert path.startswith("M0.0 18.0") and path.endswith("L50.0 2.0")
    assert (x, y) == (50.0, 2.0)
