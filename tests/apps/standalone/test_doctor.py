"""What the doctor says of the kernels is what runs."""

from __future__ import annotations

import pytest

from moe_core.kernels.cpu import build
from moe_core.kernels.cpu.build import X86_SETS
from moe_core.kernels.cpu.native import library
from standalone import doctor


def test_it_names_the_instruction_set_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    native = library()
    said = doctor.FACTS["kernels"]()
    assert (native.isa in said) if native is not None else said.startswith("torch")
    assert native is None or f"compiled by {native.compiler}" in said
    monkeypatch.setenv("TURNOUT_KERNELS", "torch")
    assert doctor.FACTS["kernels"]() == "torch, because TURNOUT_KERNELS says so"


def test_each_faster_set_has_a_line_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    native = library()
    if native is None:
        pytest.skip("the CPU kernels are not compiled")
    sets = list(build.instruction_sets())
    first, *others = doctor.FACTS["kernels"]().splitlines()
    assert f", {native.isa}: " in first
    assert [line.split(":")[0] for line in others] == [
        f"no {isa}" for isa in sets[sets.index(native.isa) + 1 :]
    ]
    facts = {"isa": "avx2", "compiler": "GCC", "unused": {"avx512": "the processor lacks avx512f"}}
    monkeypatch.setattr(doctor, "FACTS", {"kernels": lambda: doctor._kernels_in_use(**facts)})
    assert doctor.run("doctor", []) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "            no avx512: the processor lacks avx512f"


def test_without_kernels_it_names_what_could_compile_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TURNOUT_KERNELS", raising=False)
    monkeypatch.setattr(doctor, "built_kernels", list)
    for compiler, wheel, told in (
        ("/usr/bin/g++", True, "/usr/bin/g++"),
        (None, True, "the ziglang wheel"),
        (None, None, "none"),
    ):
        monkeypatch.setattr(doctor, "system_compiler", lambda found=compiler: found)
        monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name, found=wheel: found)
        assert f"(compiler: {told}" in doctor.FACTS["kernels"]()


def test_it_has_words_for_every_instruction_set() -> None:
    assert set(X86_SETS) <= set(doctor.INSTRUCTION_SETS)
