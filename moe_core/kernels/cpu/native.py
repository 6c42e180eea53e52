"""The compiled decode kernels, loaded once for a process; None where they were not compiled.

`TURNOUT_KERNELS=torch` in the environment leaves them out.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

from moe_core.kernels.cpu.build import library_path

logger = logging.getLogger(__name__)
ABI = 10
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float

_TYPES = {"P": _POINTER, "i": _INT, "L": _LONG, "f": _FLOAT}


def _procedure(function: Any, arguments: str) -> Any:
    """A function that returns nothing, with a letter for each argument."""
    function.argtypes, function.restype = [_TYPES[letter] for letter in arguments], None
    return function


class Library:
    """Typed access to the C functions; pointers are plain addresses."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        abi = library.turnout_abi()
        if abi != ABI:
            raise OSError(
                f"{path.name} has ABI {abi}, wanted is {ABI}: run python -m moe_core.kernels.cpu.build"
            )
        library.turnout_isa.restype = library.turnout_compiler.restype = ctypes.c_char_p
        self._library = library
        # It holds a hash of the sources and flags.
        self.name = path.stem
        # The pool's present number, as far as this process set it.
        self.num_threads = 1
        self.waited_ns = library.turnout_waited_ns
        self.waited_ns.restype = _LONG
        self.linear = library.turnout_linear
        self.linear.argtypes = [_POINTER, _POINTER, _POINTER, _INT, _LONG, _LONG, _LONG]
        self.linear.restype = None
        self.experts = library.turnout_experts
        self.experts.argtypes = [_POINTER] * 6 + [_LONG] * 5
        self.mixture = library.turnout_mixture
        self.mixture.argtypes = [_POINTER] * 7 + [_LONG] * 2
        self.map = library.turnout_map
        self.map.argtypes = [_POINTER] * 3 + [_INT, _LONG]
        self.map.restype = None
        self.map_heads = library.turnout_map_heads
        self.map_heads.argtypes = [_POINTER, _POINTER, _LONG, _LONG, _POINTER, *[_LONG] * 3]
        self.map_heads.restype = None
        self.look_up = library.turnout_look_up
        self.look_up.argtypes = [_POINTER] * 3 + [_LONG]
        self.pack = library.turnout_pack
        self.pack.argtypes = [_POINTER] * 4
        self.pack.restype = None
        self.most_strays = library.turnout_most_strays
        self.most_strays.argtypes, self.most_strays.restype = [_POINTER] * 2, _LONG
        self.quantise = library.turnout_quantise
        self.quantise.argtypes = [_POINTER, _INT, _LONG, _LONG, *[_INT] * 4, *[_POINTER] * 3]
        self.quantise.restype = None
        self.read_memory = library.turnout_read_memory
        self.read_memory.argtypes = [_POINTER, _LONG]
        self.read_memory.restype = _LONG
        self.multiply_registers = library.turnout_multiply_registers
        self.multiply_registers.argtypes = [_INT, _LONG, _LONG]
        self.multiply_registers.restype = _FLOAT
        self.checksum = library.turnout_checksum
        self.checksum.argtypes = [_POINTER, _LONG]
        self.checksum.restype = ctypes.c_uint64
        self.largest = library.turnout_largest
        self.largest.argtypes = [_POINTER, _LONG, _LONG, _POINTER]
        self.largest.restype = None
        self.choose = library.turnout_choose
        self.choose.argtypes = [_POINTER] * 3 + [_LONG] + [_POINTER] * 2
        self.choose.restype = None
        self.step = library.turnout_step
        self.step.argtypes = [_POINTER] * 2
        self.attend = library.turnout_attend
        self.attend.argtypes = [_POINTER, _POINTER, _LONG, *[_POINTER] * 3, *[_LONG] * 2]
        self.attend.restype = None
        self.attend_prompt = library.turnout_attend_prompt
        self.attend_prompt.argtypes = [_POINTER, _POINTER, _LONG, *[_POINTER] * 2, *[_LONG] * 2]
        self.attend_prompt.restype = None
        self.head_errors = _procedure(library.turnout_head_errors, "PiPPfiLL")
        self.swiglu = _procedure(library.turnout_swiglu, "PiPLL")
        self.swiglu_back = _procedure(library.turnout_swiglu_back, "PPiPPPPLL")
        self.combine = _procedure(library.turnout_combine, "PiPPPLLL")
        self.norm = _procedure(library.turnout_norm, "PPifPPLL")
        self.norm_back = _procedure(library.turnout_norm_back, "PPPiPPPLL")
        self.turn_heads = _procedure(library.turnout_turn_heads, "PiLLPPfPLLLL")
        self.adamw = _procedure(library.turnout_adamw, "PiPiPPPPL")
        self.squares = _procedure(library.turnout_squares, "PiPL")
        self.attention_back = library.turnout_attention_back
        self.attention_back.argtypes = [_POINTER] * 7 + [_FLOAT] + [_LONG] * 5

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        name: bytes = self._library.turnout_isa()
        return name.decode()

    @property
    def unpacks_quickly(self) -> bool:
        """Whether bfloat16 in twelve bits is unpacked in less time than memory gives it."""
        return self.isa.startswith(("avx512", "amx"))

    @property
    def compiler(self) -> str:
        """What compiled the library, with its version."""
        name: bytes = self._library.turnout_compiler()
        return name.decode()

    def use_isa(self, name: str) -> bool:
        """Use another instruction set; False where the processor lacks it. For tests."""
        return bool(self._library.turnout_use_isa(name.encode()))

    def tiles_work(self) -> bool:
        """Whether the set in use multiplies in tiles, rightly on this machine. For tests."""
        return bool(self._library.turnout_tiles_work())

    def set_threads(self, num_threads: int) -> None:
        """Share the work of each call among `num_threads`, the caller's own included."""
        self._library.turnout_set_threads(num_threads)
        self.num_threads = num_threads


@cache
def library() -> Library | None:
    """The kernels, or None when they are not compiled, cannot be loaded, or are not wanted."""
    if os.environ.get("TURNOUT_KERNELS") == "torch":
        return None
    path = library_path()
    if not path.exists():
        return None
    try:
        return Library(path)
    except OSError as error:
        logger.warning("the CPU kernels cannot be loaded, torch does their work: %s", error)
        return None
