"""The names of `moe_core.spec` are there when they are asked for, and no others."""

from __future__ import annotations

import pytest

import moe_core.spec
from moe_core.spec.layout import LayoutSpec


def test_every_name_that_it_promises_is_there() -> None:
    assert set(moe_core.spec.__all__) == set(moe_core.spec._MODULE_OF)
    for name in moe_core.spec.__all__:
        assert getattr(moe_core.spec, name).__name__ in (name, "Annotated"), name
    assert moe_core.spec.LayoutSpec is LayoutSpec


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Layout'"):
        moe_core.spec.Layout  # noqa: B018
