"""Ahead-of-time compilation of every kernel for chips that are not here, and what the machine code tells of itself.

It shows registers, spills, shared memory, the matrix instruction and arithmetic intensity. It cannot show time, races or
rounding. `python -m moe_core.kernels.triton.ahead docs/reference/kernels.md` writes the table into that page.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moe_core.kernels.triton.ahead_cases import Case, cases
from moe_core.kernels.triton.chip import SHARED_BYTES
from moe_core.kernels.triton.intensity import intensity
from moe_core.kernels.triton.launch import settled
from moe_core.kernels.triton.tiles import Tile

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "sm120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# The matrix instruction of each architecture, as its disassembly names it.
MATRIX_INSTRUCTION = {
    "sm80": r"\bHMMA\b",
    "sm90": r"\bHGMMA\b",
    "sm100": r"\bUTCHMMA\b",
    "sm120": r"\bHMMA\b",
    "gfx942": r"\bv_mfma(?=_f32_\d+x\d+x\d+_?bf16)",
}


# Between these two lines of a page lies what `write_page` writes.
BEGIN, END = "<!-- machine code: begin -->\n", "<!-- machine code: end -->\n"


@dataclass(frozen=True, slots=True)
class Report:
    """What one compiled kernel needs."""

    case: str
    arch: str
    registers: int
    spills: int
    shared_bytes: int
    # Matrix instructions in the code and what they are called; none and "" where nothing is multiplied.
    matrix_instructions: int
    instruction: str
    # Operations of matrix products for each byte loaded in the main loop.
    intensity: float | None
    # The tile that was taken: rows, columns, step.
    tile: tuple[int, int, int] | None

    @property
    def fits(self) -> bool:
        """Whether a block gets the shared memory that it asks for, with nothing spilled."""
        return self.spills == 0 and self.shared_bytes <= SHARED_BYTES[self.arch]

    @property
    def words(self) -> str:
        """All of it in the words of the page."""
        words = f"{self.registers} regs, {self.spills} spilt, {self.shared_bytes / 1024:.0f} KiB"
        if self.matrix_instructions:
            words += f", {self.matrix_instructions} {self.instruction}"
        return words if self.intensity is None else f"{words}, {self.intensity:.0f} FLOP/B"

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def report(case: Case, arch: str) -> Report:
    """Compile a case as it would be launched: with a narrower tile where the rule's spills."""
    if case.tile is None:
        return compile_case(case, arch)
    reports: dict[Tile, Report] = {}

    def spills(tile: Tile) -> int:
        reports[tile] = compile_case(case.tiled(tile), arch)
        return reports[tile].spills

    return reports[settled(case.tile, spills)]


def compile_case(case: Case, arch: str) -> Report:
    """Compile one case for one architecture. Raises whatever Triton raises when that is impossible."""
    signature = {name: case.arguments.get(name, "constexpr") for name in case.kernel.arg_names}
    constants = {(case.kernel.arg_names.index(name),): value for name, value in case.constants.items()}
    varying = getattr(case.kernel, "do_not_specialize", ())
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind != "constexpr" and name not in varying
    }
    source = ASTSource(case.kernel, signature, constants, aligned)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=TARGETS[arch], options=options)
    code, registers, spills = _read_hsaco(compiled) if arch.startswith("gfx") else _read_cubin(compiled)
    wanted = case.instructions.get(arch, MATRIX_INSTRUCTION[arch])
    names = Counter(re.findall(wanted, code))
    name = names.most_common(1)[0][0] if names else ""
    tile = (case.tile.block_m, case.tile.block_n, case.tile.block_k) if case.tile else None
    needs = (registers, spills, int(compiled.metadata.shared), names.total(), name)
    return Report(case.name, arch, *needs, intensity(compiled.asm["ttir"]), tile)


def _read_cubin(compiled: Any) -> tuple[str, int, int]:
    """SASS, registers a thread, and bytes of stack or local accesses: any of them is a spill."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    used = {
        name: int(value)
        for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout + usage.stderr)
    }
    return sass, used["REG"], used["STACK"] + used["LOCAL"] + len(re.findall(r"\b(?:LDL|STL)\b", sass))


def _read_hsaco(compiled: Any) -> tuple[str, int, int]:
    code = compiled.asm["amdgcn"]
    count = {
        name: int(value)
        for name, value in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s*(\d+)", code)
    }
    return code, count["vgpr_count"], count["vgpr_spill_count"] + count["sgpr_spill_count"]


def table() -> str:
    """Every case on every architecture as Markdown."""
    found: dict[str, dict[str, Report]] = {}
    for arch in TARGETS:
        for case in cases(arch):
            found.setdefault(case.name, {})[arch] = report(case, arch)
    lines = [f"| kernel | {' | '.join(TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    for name, reports in found.items():
        cells = [reports[arch].words if arch in reports else "" for arch in TARGETS]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_page(page: Path) -> None:
    """Put the table of this version of Triton between the two marks of a page."""
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}Triton {triton.__version__}:\n\n{table()}{END}{after}")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
