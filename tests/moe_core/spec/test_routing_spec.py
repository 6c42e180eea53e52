"""Domain maps: labels, and the deranged control."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import SpecError
from moe_core.spec import DomainSpec, RoutingSpec


def domain(code: str, *experts: int) -> DomainSpec:
    return DomainSpec(code=code, name_en=code, name_zh=code, experts=experts)


MAP = RoutingSpec(
    domains=(domain("support", 0), domain("copy", 1, 2), domain("data", 3)), general_experts=(4, 5)
)


def test_the_label_matrix_marks_mapped_experts() -> None:
    assert MAP.label_matrix(6) == (
        (1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, 1.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    )


@pytest.mark.parametrize("num_experts", [3, 5])
def test_a_map_onto_experts_that_do_not_exist_is_refused(num_experts: int) -> None:
    with pytest.raises(SpecError, match="expert"):
        MAP.label_matrix(num_experts)


def test_repeated_codes_are_refused() -> None:
    with pytest.raises(SpecError, match="repeated: copy"):
        RoutingSpec.parse({"domains": [domain("copy", 0).model_dump(), domain("copy", 1).model_dump()]})


def test_unknown_and_absent_domains_have_no_row() -> None:
    assert [MAP.index_of(code) for code in ("data", "nobody", None)] == [2, -1, -1]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**31 - 1))
def test_no_domain_keeps_an_expert_in_the_deranged_map(count: int, seed: int) -> None:
    routing = RoutingSpec(domains=tuple(domain(f"d{i}", 2 * i, 2 * i + 1) for i in range(count)))
    control = routing.deranged(seed)
    assert control == routing.deranged(seed)
    assert control.codes == routing.codes
    assert sorted(d.experts for d in control.domains) == sorted(d.experts for d in routing.domains)
    for mine, given_away in zip(routing.domains, control.domains, strict=True):
        assert not set(mine.experts) & set(given_away.experts)


@pytest.mark.parametrize(
    "domains",
    [(domain("only", 0),), (domain("a", 0), domain("b", 0)), (domain("a", 0, 1), domain("b", 1, 2))],
)
def test_a_map_that_cannot_be_deranged_is_refused(domains: tuple[DomainSpec, ...]) -> None:
    with pytest.raises(SpecError, match="overlap"):
        RoutingSpec(domains=domains).deranged(0)
