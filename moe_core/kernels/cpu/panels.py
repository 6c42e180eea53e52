"""Weights in panels of 32 rows, as the compiled products read them: bfloat16, or codes of 8 or 4 bits.

Packed weights are multiplied as they are: 4 or 8 bits are read from memory, never 16. Inputs of codes are rounded to 8
bits with a scale for each token and group (W8A8, W4A8); a group's sum is exact, groups are added in float32.

Shapes: T tokens, D model width, E experts, K top_k, F expert width, S matrices of a stack.
Source: dynamic quantisation of activations as in Dettmers et al. 2022, "LLM.int8()", here in groups along a row.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.plan import GatingPlan
from moe_core.kernels.cpu.shelf import lies_next, place_for
from moe_core.kernels.factors import split
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.kernels.packing import Packed
from moe_core.spec.quantisation import ExpertQuantSpec

LANES, STEP_BYTES = 32, 128
# Before the codes of a group: its scales, and its zero points filled up to a line, or its factors.
SCALE_BYTES, ZERO_BYTES = 64, 64
# The factors of two groups of 32 columns lie beside each other.
COLS_OF_FACTORS, FACTOR_BYTES = 64, 64
BFLOAT16 = 16
# A pair of steps of bfloat16 in twelve bits; before them exponents, and strays: room for one of so many weights.
PAIR_BYTES, EXPONENT_BYTES, STRAY_BYTES, STRAYS_OF_LINE = 192, 64, 8, 8
WEIGHTS_OF_STRAY, WEIGHTS_OF_STEP = 512, 64


class PanelsStruct(ctypes.Structure):
    """`turnout::Panels` of panels.h."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("stack", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("has_zeros", ctypes.c_int32),
        ("paired", ctypes.c_int32),
        ("has_factors", ctypes.c_int32),
        ("strays", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True)
class Panels:
    """A stack of matrices (S, rows, cols); `memory` keeps alive what the description points to."""

    struct: PanelsStruct
    memory: Any = field(repr=False)

    @property
    def address(self) -> int:
        """Where the description lies, for C."""
        return ctypes.addressof(self.struct)

    @property
    def num_bytes(self) -> int:
        """What the panels take in memory."""
        return _num_bytes(self.struct)

    @classmethod
    def of_bfloat16(cls, weight_SRC: Tensor, *, paired: bool = False) -> Panels:
        """Pack weights (S, rows, cols) in bfloat16, in twelve bits each where that loses nothing; raises SpecError for
        another dtype.

        `paired` lays the two halves of each matrix side by side, as the mixture wants gate and up.
        """
        if weight_SRC.dtype is not torch.bfloat16:
            raise SpecError(f"panels hold bfloat16, not {weight_SRC.dtype}")
        source = weight_SRC.detach().contiguous()
        stack, rows, cols = source.shape
        struct = PanelsStruct(None, stack, rows, cols, BFLOAT16, 0, 0, int(paired), 0, 0)
        struct.strays = _room_for_strays(struct, source)
        return cls._filled(struct, lambda: (source, None, None))

    @classmethod
    def of_codes(
        cls, packed: Packed, shape: tuple[int, int, int], spec: ExpertQuantSpec, *, paired: bool = False
    ) -> Panels:
        """Pack codes that stand for weights of `shape` (S, rows, cols); `paired` as for bfloat16.

        Raises SpecError for scales that `spec` says have a common one and have none.
        """
        own = (int(packed.zeros is not None), int(paired), int(spec.super_group_size is not None))
        struct = PanelsStruct(None, *shape, spec.bits, spec.input_group_size, *own)

        def sources() -> tuple[Tensor | None, ...]:
            scales, more = _factored(packed.scales, spec) if spec.super_group_size else (packed.scales, packed.zeros)
            return packed.codes, scales, more

        return cls._filled(struct, sources)

    @classmethod
    def _filled(cls, struct: PanelsStruct, sources: Callable[[], tuple[Tensor | None, ...]]) -> Panels:
        """Codes or bfloat16, scales, and zero points or factors; asked for where the panels do not lie in a file already."""
        native = library()
        assert native is not None
        place = place_for(_described(struct), _num_bytes(struct))
        struct.memory = place.address
        if not place.is_filled:
            held = [None if source is None else source.contiguous() for source in sources()]
            native.pack(ctypes.addressof(struct), *(0 if source is None else source.data_ptr() for source in held))
        return cls(struct, place.memory)

    def map(self, x_TK: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """x · weightᵀ of a single matrix: (T, rows) in bfloat16 or float32, sums in float32.

        Raises SpecError unless `x_TK` is bfloat16 (T, cols).
        """
        native = library()
        assert native is not None
        if x_TK.dtype is not torch.bfloat16 or x_TK.ndim != 2 or x_TK.shape[1] != self.struct.cols:
            raise SpecError(
                f"the input is {x_TK.dtype} {tuple(x_TK.shape)}; it must be bfloat16 (T, {self.struct.cols})"
            )
        x_TK, out_TO = x_TK.contiguous(), torch.empty(x_TK.shape[0], self.struct.rows, dtype=dtype)
        is_float = int(dtype is torch.float32)
        native.map(self.address, x_TK.data_ptr(), out_TO.data_ptr(), is_float, x_TK.shape[0])
        return out_TO

    def map_each(self, x_TSK: Tensor) -> Tensor:
        """x · weightᵀ with a matrix of the stack for each head: (T, S, rows) bfloat16, sums in float32.

        Raises SpecError unless `x_TSK` is bfloat16 (T, S, cols).
        """
        native = library()
        assert native is not None
        shape = (self.struct.stack, self.struct.cols)
        if x_TSK.dtype is not torch.bfloat16 or tuple(x_TSK.shape[1:]) != shape:
            raise SpecError(
                f"the input is {x_TSK.dtype} {tuple(x_TSK.shape)}; it must be bfloat16 (T, {shape[0]}, {shape[1]})"
            )
        if x_TSK.stride(2) != 1:
            x_TSK = x_TSK.contiguous()
        out_TSR = torch.empty(x_TSK.shape[0], self.struct.stack, self.struct.rows, dtype=torch.bfloat16)
        places = [(tensor.data_ptr(), *tensor.stride()[:2]) for tensor in (x_TSK, out_TSR)]
        native.map_heads(self.address, *places[0], *places[1], x_TSK.shape[0])
        return out_TSR

    def look_up(self, ids_T: Tensor) -> Tensor:
        """Rows of a single matrix: (T, cols) bfloat16. Raises SpecError for a row that it has not."""
        native = library()
        assert native is not None
        ids_T = ids_T.contiguous().to(torch.int64)
        out_TK = torch.empty(*ids_T.shape, self.struct.cols, dtype=torch.bfloat16)
        if native.look_up(self.address, ids_T.data_ptr(), out_TK.data_ptr(), ids_T.numel()):
            raise SpecError(f"a row is asked for that a matrix of {self.struct.rows} rows has not")
        return out_TK


@dataclass(frozen=True, slots=True)
class ExpertPanels:
    """All experts of a layer."""

    # E matrices (2F, D), gate and up paired; E matrices (D, F).
    gate_up: Panels
    down: Panels

    @property
    def num_bytes(self) -> int:
        """What the layer's experts take in memory."""
        return self.gate_up.num_bytes + self.down.num_bytes

    def run(
        self,
        hidden_TD: Tensor,
        expert_ids_TK: Tensor,
        weights_TK: Tensor,
        gating: Gating = PLAIN,
        gate_up_bias_E2F: Tensor | None = None,
        down_bias_ED: Tensor | None = None,
    ) -> Tensor:
        """Sum over the chosen experts of weight · down(gating(gate(x), up(x))): (T, D) bfloat16, summed in float32.

        `hidden_TD` is bfloat16 on the CPU, biases too, ids are int64; -1 is no expert. Raises SpecError for an expert that
        the layer has not, for hidden states of another width or dtype and for ids of another dtype.
        """
        native = library()
        assert native is not None
        ids_TK, weights_TK = expert_ids_TK, weights_TK.float()
        self._check(hidden_TD, ids_TK, weights_TK)
        plain = gating is PLAIN and gate_up_bias_E2F is None
        plan = _PLAIN_PLAN if plain else GatingPlan.of(gating, gate_up_bias_E2F, down_bias_ED)
        # The calls before and after a product find their code out of the cache: each that is left out counts.
        if not hidden_TD.is_contiguous():
            hidden_TD = hidden_TD.contiguous()
        if not (ids_TK.is_contiguous() and weights_TK.is_contiguous()):
            ids_TK, weights_TK = ids_TK.contiguous(), weights_TK.contiguous()
        out_TD = torch.empty_like(hidden_TD)
        failed = native.mixture(
            self.gate_up.address,
            self.down.address,
            ctypes.addressof(plan),
            hidden_TD.data_ptr(),
            ids_TK.data_ptr(),
            weights_TK.data_ptr(),
            out_TD.data_ptr(),
            *ids_TK.shape,
        )
        if failed:
            raise SpecError(f"an expert id is outside the layer's {self.down.struct.stack} experts")
        return out_TD

    def _check(self, hidden_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> None:
        width, shape, chosen = self.down.struct.rows, hidden_TD.shape, ids_TK.shape
        if hidden_TD.dtype is not torch.bfloat16 or len(shape) != 2 or shape[1] != width:
            raise SpecError(f"hidden is {hidden_TD.dtype} {tuple(shape)}; it must be bfloat16 (T, {width})")
        if ids_TK.dtype is not torch.int64:
            raise SpecError(f"ids are {ids_TK.dtype}; they must be torch.int64")
        if len(chosen) != 2 or chosen != weights_TK.shape or chosen[0] != shape[0]:
            raise SpecError(
                f"ids {tuple(chosen)}, weights {tuple(weights_TK.shape)} and hidden {tuple(shape)} "
                "do not fit together: (T, K), (T, K), (T, D)"
            )


_PLAIN_PLAN = GatingPlan.of(PLAIN)


def bfloat16_panels(gate_up_E2FD: Tensor, down_EDF: Tensor) -> ExpertPanels:
    """Panels of a layer's bfloat16 experts."""
    return ExpertPanels(Panels.of_bfloat16(gate_up_E2FD, paired=True), Panels.of_bfloat16(down_EDF))


def code_panels(
    gate_up: Packed, down: Packed, width: int, num_ff: int, spec: ExpertQuantSpec
) -> ExpertPanels:
    """Panels of a layer's packed experts."""
    num_experts = down.codes.shape[0]
    return ExpertPanels(
        Panels.of_codes(gate_up, (num_experts, 2 * num_ff, width), spec, paired=True),
        Panels.of_codes(down, (num_experts, width, num_ff), spec),
    )


def _factored(scales: Tensor, spec: ExpertQuantSpec) -> tuple[Tensor, Tensor]:
    """Common scales, and of each group a byte: its factor, and above it what is taken off its codes.

    A negative scale is a positive one of codes that are counted down: 8 less a code is 15 less that code less 7.
    """
    common, factors = split(scales, spec)
    zeros = torch.where(factors < 0, 7, 8)
    return common, (factors.abs() + 16 * zeros).to(torch.uint8)


def _room_for_strays(plain: PanelsStruct, weights: Tensor) -> int:
    """For how many weights of other exponents a panel in twelve bits has room; 0 where these weights have more of them, or
    where unpacking would take longer than memory does."""
    native = library()
    assert native is not None
    if not native.unpacks_quickly or not weights.numel():
        return 0
    wanted = math.ceil(plain.cols / 2) * WEIGHTS_OF_STEP // WEIGHTS_OF_STRAY + 1
    room = math.ceil(wanted / STRAYS_OF_LINE) * STRAYS_OF_LINE
    packed = PanelsStruct(None, *(getattr(plain, name) for name, _ in plain._fields_[1:-1]), room)
    lies = lies_next(_described(packed), _num_bytes(packed))
    if lies is None:
        lies = native.most_strays(ctypes.addressof(plain), weights.data_ptr()) < room
    return room if lies else 0


def _described(struct: PanelsStruct) -> str:
    """What a shelf calls a stack."""
    return str([getattr(struct, name) for name, _ in struct._fields_ if name != "memory"])


def _num_bytes(struct: PanelsStruct) -> int:
    """What a stack takes in memory, by the layout of panels.h."""
    num_panels = (
        math.ceil(struct.rows // 2 / (LANES // 2)) if struct.paired else math.ceil(struct.rows / LANES)
    )
    num_steps = math.ceil(struct.cols * struct.bits / 32)
    num_groups = math.ceil(struct.cols / struct.group) if struct.group else 0
    head = SCALE_BYTES + (ZERO_BYTES if struct.has_zeros else 0)
    head += struct.group // COLS_OF_FACTORS * FACTOR_BYTES if struct.has_factors else 0
    panel_bytes = num_groups * head + num_steps * STEP_BYTES
    if struct.strays:
        panel_bytes = EXPONENT_BYTES + struct.strays * STRAY_BYTES + math.ceil(num_steps / 2) * PAIR_BYTES
    return int(struct.stack * num_panels * panel_bytes)
