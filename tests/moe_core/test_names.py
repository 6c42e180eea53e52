"""What the library offers at its top can be found from a prompt."""

from __future__ import annotations

import moe_core


def test_every_public_name_is_listed_and_there() -> None:
    assert set(moe_core.__all__) <= set(dir(moe_core))
    assert all(getattr(moe_core, name) for name in moe_core.__all__)
