"""Why this machine does not use the faster instruction sets that the kernels have code for."""

from __future__ import annotations

from collections.abc import Set

from moe_core.kernels.cpu.build import instruction_sets
from moe_core.kernels.cpu.native import Library

# Linux names these otherwise than compilers do.
LINUX_NAMES = {"avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16"}


def needed_flags(isa: str) -> list[str]:
    """The instructions that a set is compiled with, as `/proc/cpuinfo` names them.

    Source: arch/x86/include/asm/cpufeatures.h.
    """
    names = [flag.removeprefix("-m") for flag in instruction_sets()[isa] if "=" not in flag]
    return [LINUX_NAMES.get(name, name.replace("-", "_")) for name in names]


def unused_sets(native: Library, flags: Set[str]) -> dict[str, str]:
    """The sets that would be faster than the one in use, slowest first, each with why it is not used.

    `flags` are those of the processor as Linux lists them, none where the system lists none. The set in use stays.
    """
    sets, used = list(instruction_sets()), native.isa
    faster = sets[sets.index(used) + 1 :]
    try:
        return {isa: _reason(native, isa, flags) for isa in faster}
    finally:
        native.use_isa(used)


def _reason(native: Library, isa: str, flags: Set[str]) -> str:
    if native.use_isa(isa):
        return "it can be used, but another was asked for"
    if not flags:
        return "the processor lacks it, or the system does not save its registers"
    missing = [flag for flag in needed_flags(isa) if flag not in flags]
    if missing:
        return f"the processor lacks {', '.join(missing)}"
    if isa == "amx":
        return "the system gives no program the tiles, or a trial product in them came out wrong"
    return "the system does not save its registers"
