"""One rule says what is a gain: noise is none, and each figure knows which way it is better."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import gains


@pytest.mark.parametrize(
    ("name", "before", "after", "change"),
    [
        ("loss", 3.0, 2.96, "better"), ("loss", 3.0, 2.98, "same"), ("loss", 3.0, 3.02, "same"),
        ("loss", 3.0, 3.04, "worse"), ("mapped_share", 0.3, 0.33, "better"), ("mapped_share", 0.3, 0.31, "same"),
        ("mapped_share", 0.3, 0.27, "worse"), ("max_vio", 1.0, 1.04, "same"), ("max_vio", 1.0, 1.1, "worse"),
        ("max_vio", 1.0, 0.9, "better"), ("max_vio", 4.0, 4.15, "same"), ("entropy", 0.9, 0.92, "better"),
        ("entropy", 0.9, 0.895, "same"), ("entropy", 0.9, 0.88, "worse"), ("dead_experts", 0, 1, "worse"),
        ("dead_experts", 3, 3, "same"), ("loss", None, 3.0, ""), ("loss", 3.0, None, ""),
    ],
)  # fmt: skip
def test_each_figure_is_judged_beyond_its_noise(name, before, after, change) -> None:
    assert gains.judge(name, before, after) == change


@given(name=st.sampled_from(sorted(gains.FIGURES)), one=st.floats(0, 100), other=st.floats(0, 100))
def test_a_figure_against_itself_is_unchanged_and_never_both_ways_better(name, one, other) -> None:
    assert gains.judge(name, one, one) == "same"
    assert not gains.judge(name, one, other) == gains.judge(name, other, one) == "better"


def test_rows_of_no_domain_are_no_domain() -> None:
    table = {"loss_by_domain": {"support": 3.0, "": 2.0}}
    assert gains.judged_domains(table, {"loss_by_domain": {"support": 2.0, "": 3.0}}) == {"support": "better"}


def test_every_judgement_has_a_word_and_a_lamp() -> None:
    assert gains.WORDS.keys() == gains.LAMPS.keys() == {"better", "worse", "same", ""}
