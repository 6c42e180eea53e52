"""A faster instruction set that is not used is told with what it lacks."""

from __future__ import annotations

import platform

import pytest

from moe_core.kernels.cpu import build, unused_sets
from moe_core.kernels.cpu.native import Library

AMX = {"amx_tile", "amx_bf16", "amx_int8"}


class Machine:
    """A library on a processor that can use `usable`, and uses the last of them."""

    def __init__(self, *usable: str) -> None:
        self.usable, self.isa = usable, usable[-1]

    def use_isa(self, name: str) -> bool:
        if name in self.usable:
            self.isa = name
        return name in self.usable


@pytest.fixture(autouse=True)
def an_x86_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")


def flags_of(isa: str) -> set[str]:
    return set(unused_sets.needed_flags(isa))


def test_flags_are_named_as_linux_names_them() -> None:
    assert flags_of("avx2") == {"avx2", "fma", "f16c"}
    assert flags_of("avx512_bf16") - flags_of("avx512") == {"avx512_vnni", "avx512_bf16"}
    assert flags_of("amx") - flags_of("avx512_bf16") == AMX


def test_each_faster_set_names_the_instructions_that_are_lacking() -> None:
    machine = Machine("generic", "avx2", "avx512")
    told = unused_sets.unused_sets(machine, flags_of("avx512"))
    assert told == {
        "avx512_vnni": "the processor lacks avx512_vnni",
        "avx512_bf16": "the processor lacks avx512_vnni, avx512_bf16",
        "amx": "the processor lacks avx512_vnni, avx512_bf16, amx_tile, amx_bf16, amx_int8",
    }


@pytest.mark.parametrize(
    ("used", "listed", "faster", "why"),
    [
        ("avx512_bf16", "amx", "amx", "the system gives no program the tiles"),
        ("avx2", "avx512", "avx512", "the system does not save its registers"),
        ("avx2", "generic", "avx512", "the processor lacks it, or the system"),
    ],
)
def test_where_nothing_is_lacking_the_system_is_named(used, listed, faster, why) -> None:
    assert why in unused_sets.unused_sets(Machine("generic", used), flags_of(listed))[faster]


def test_with_the_fastest_in_use_nothing_is_told() -> None:
    assert unused_sets.unused_sets(Machine(*build.X86_SETS), flags_of("amx")) == {}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there is one set alone")
def test_it_leaves_the_set_that_was_in_use(compiled: Library) -> None:
    before = compiled.isa
    try:
        assert compiled.use_isa("generic")
        told = unused_sets.unused_sets(compiled, flags_of("amx"))
        assert list(told) == list(build.instruction_sets())[1:]
        assert compiled.isa == "generic"
        if before != "generic":
            assert told[before] == "it can be used, but another was asked for"
    finally:
        compiled.use_isa(before)
