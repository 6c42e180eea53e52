"""What the doctor says of the kernels is what runs."""

from __future__ import annotations

import pytest

from moe_core.kernels.cpu.build import X86_SETS
from moe_core.kernels.cpu.native import library
from standalone import doctor


def test_it_names_the_instruction_set_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    native = library()
    said = doctor.FACTS["kernels"]()
    assert (native.isa in said) if native is not None else said.startswith("torch")
    monkeypatch.setenv("TURNOUT_KERNELS", "torch")
    assert doctor.FACTS["kernels"]() == "torch, because TURNOUT_KERNELS says so"


def test_it_has_words_for_every_instruction_set() -> None:
    assert set(X86_SETS) <= set(doctor.INSTRUCTION_SETS)
