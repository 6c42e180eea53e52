"""Every way in which this library runs experts in torch, each with the loop that is its truth.

Shapes: T tokens, D model width, E experts, K top_k, F expert width, r rows of one expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from moe_core.experts import GroupedExperts, MixedExperts, PackedExperts, PackedMlps
from moe_core.experts.mxfp4 import Mxfp4Experts
from moe_core.kernels.formulas import FORMULAS
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.kernels.mixed_reference import mixed_experts_reference
from moe_core.kernels.mxfp4 import E2M1
from moe_core.kernels.reference import gated_experts_reference
from moe_core.routers import Routing
from moe_core.spec.expert_kinds import (
    ConstantExpert,
    ExpertKind,
    IdentityExpert,
    MlpExpert,
    SwigluExpert,
    ZeroExpert,
)
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.experts.nine_cases import OneExpert

# Odd: a row of 4-bit codes ends with half a byte, and its last group is shorter.
WIDTH, INNER = 37, 35
LIMIT, ALPHA = 1.5, 1.702

Run = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """Experts of one layer, run in some way, and their truth."""

    experts: nn.Module
    width: int
    dtype: torch.dtype
    # (x (T, D), ids (T, K), weights (T, K)) → (T, D).
    run: Run
    # The same in float64, token by token.
    reference: Run
    # The formula of one expert in float64, differentiable by the leaves.
    one: OneExpert
    # Parameters that learn, with experts along the first axis or in one flat buffer.
    leaves: tuple[Tensor, ...] = ()
    # How far a token's output may be from the truth, as a share of its size.
    tolerance: float = 1e-9


def bounded(value: float, low: float, high: float) -> float:
    """Python's min and max drop NaN; this does not."""
    return value if math.isnan(value) else max(low, min(value, high))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def clamped(gate: float, up: float) -> float:
    """gpt-oss."""
    gate, up = bounded(gate, -math.inf, LIMIT), bounded(up, -LIMIT, LIMIT)
    return (up + 1.0) * gate * sigmoid(ALPHA * gate)


GATINGS: dict[str, Callable[[float, float], float]] = {
    "silu": lambda gate, up: gate * sigmoid(gate) * up,
    "gelu": lambda gate, up: 0.5 * gate * (1.0 + math.erf(gate / math.sqrt(2.0))) * up,
    "clamped": clamped,
    # Step 3.5.
    "clamped_silu": lambda gate, up: (
        bounded(gate * sigmoid(gate), -math.inf, LIMIT) * bounded(up, -LIMIT, LIMIT)
    ),
}


def gating_of(kind: str) -> Gating:
    return Gating(kind, alpha=ALPHA, limit=LIMIT)  # type: ignore[arg-type]


def gated(kind: str, gate: Tensor, up: Tensor) -> Tensor:
    """The same on tensors, by formulas that the kernels do not share."""
    if kind in ("silu", "gelu"):
        return FORMULAS[kind](gate) * up
    if kind == "clamped_silu":
        return FORMULAS["silu"](gate).clamp(max=LIMIT) * up.clamp(-LIMIT, LIMIT)
    gate = gate.clamp(max=LIMIT)
    return (up.clamp(-LIMIT, LIMIT) + 1.0) * gate / (1.0 + torch.exp(-ALPHA * gate))


def routed(experts: nn.Module) -> Run:
    """A layer of experts as a function of what its router says."""

    def run(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        nothing_TE = torch.zeros(x_TD.shape[0], 1)
        out: Tensor = experts(x_TD, Routing(ids_TK, weights_TK, nothing_TE, nothing_TE))
        return out

    return run


def truths_of_gated(
    kind: str, gate_up: Tensor, down: Tensor, biases: Sequence[Tensor] = ()
) -> tuple[Run, OneExpert]:
    """The loop over numbers, and the formula of one expert, both in float64."""

    def reference(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        return gated_experts_reference(x_TD, gate_up, down, ids_TK, weights_TK, GATINGS[kind], *biases)

    def one(expert: int, x_rD: Tensor) -> Tensor:
        both = x_rD @ gate_up[expert].double().T
        if biases:
            both = both + biases[0][expert].double()
        out = gated(kind, *both.chunk(2, -1)) @ down[expert].double().T
        return out + biases[1][expert].double() if biases else out

    return reference, one


@torch.no_grad()
def grouped(
    num_experts: int,
    kind: str = "silu",
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float64,
    kernel: str | None = None,
    tolerance: float = 1e-9,
) -> Layer:
    """Weights in floats: plain torch, or the kernel that is named."""
    gating = PLAIN if kind == "silu" else gating_of(kind)
    experts = GroupedExperts(num_experts, WIDTH, INNER, dtype, gating=gating, bias=bias)
    experts.kernel = kernel
    chance = torch.Generator().manual_seed(3)
    for parameter in experts.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=chance) / 4)
    leaves = tuple(experts.parameters())
    truths = truths_of_gated(kind, leaves[0], leaves[1], leaves[2:])
    return Layer(experts, WIDTH, dtype, routed(experts), *truths, leaves, tolerance)


def unpacked(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, width: int, spec: ExpertQuantSpec
) -> Tensor:
    """(rows, width) of one expert, code by code: two 4-bit codes a byte, the even column in the low half."""
    rows = []
    for row in range(codes.shape[0]):
        values = []
        for column in range(width):
            byte = int(codes[row, column * spec.bits // 8])
            code = byte if spec.bits == 8 else (byte // 16 if column % 2 else byte % 16)
            group = column // spec.group_size
            zero = 2 ** (spec.bits - 1) if zeros is None else int(zeros[row, group])
            values.append((code - zero) * float(scales[row, group]))
        rows.append(values)
    return torch.tensor(rows, dtype=torch.float64)


def filled(layer: PackedExperts | PackedMlps, chance: Generator) -> list[Tensor]:
    """Pack maps into a layer; the floats that its codes stand for, each (E, rows, width)."""
    plain = []
    for name, (rows, width) in layer.shapes.items():
        weight = torch.randn(layer.num_experts, rows, width, generator=chance) / 4
        layer.pack(name, weight)
        codes, scales, zeros = (getattr(layer.packed(name), part) for part in ("codes", "scales", "zeros"))
        ranges = [None] * layer.num_experts if zeros is None else zeros
        parts = zip(codes, scales, ranges, strict=True)
        own = torch.stack([unpacked(*part, width, layer.quantisation) for part in parts])
        # What was packed is what is read, to what its bits cost: in 4, ends of the range are cut off for the rest's sake.
        assert float((own - weight).norm() / weight.norm()) <= 2.0 * 2.0**-layer.quantisation.bits
        plain.append(own)
    return plain


def packed(
    num_experts: int, bits: int, *, symmetric: bool = True, kind: str = "silu", bias: bool = False
) -> Layer:
    """Codes in 8 or 4 bits, widened where used."""
    spec = ExpertQuantSpec.parse({"bits": bits, "group_size": 32, "symmetric": symmetric})
    bias_dtype = torch.float32 if bias else None
    gating = PLAIN if kind == "silu" else gating_of(kind)
    layer = PackedExperts(num_experts, WIDTH, INNER, spec, gating=gating, bias_dtype=bias_dtype)
    chance = torch.Generator().manual_seed(bits)
    gate_up, down = filled(layer, chance)
    biases = [parameter.data.normal_(generator=chance) for parameter in layer.parameters()]
    truths = truths_of_gated(kind, gate_up, down, biases)
    return Layer(layer, WIDTH, torch.float32, routed(layer), *truths, tolerance=1e-5)


def run_one(kind: ExpertKind, tensors: dict[str, Tensor], x_rD: Tensor) -> Tensor | None:
    """The formula of one expert of any kind, on its rows."""
    if isinstance(kind, ZeroExpert):
        return None
    if isinstance(kind, IdentityExpert):
        return x_rD
    if isinstance(kind, ConstantExpert):
        scores = torch.exp(x_rD @ tensors["mix.weight"].T)
        share = scores / scores.sum(-1, keepdim=True)
        return share[:, :1] * x_rD + share[:, 1:] * tensors["constant"]
    act = FORMULAS[kind.activation]
    up = x_rD @ tensors["w3.weight"].T + tensors.get("w3.bias", 0.0)
    inner = act(up) if isinstance(kind, MlpExpert) else act(x_rD @ tensors["w1.weight"].T) * up
    return inner @ tensors["w2.weight"].T + tensors.get("w2.bias", 0.0)


def truths_of_kinds(
    kinds: Sequence[ExpertKind], tensors: Callable[[int], dict[str, Tensor]]
) -> tuple[Run, OneExpert]:
    """The loop over tokens and choices, and the formula of one expert, in float64."""

    def reference(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        experts = [tensors(expert) for expert in range(len(kinds))]
        return mixed_experts_reference(x_TD.double(), experts, kinds, ids_TK, weights_TK.double())

    return reference, lambda expert, x_rD: run_one(kinds[expert], tensors(expert), x_rD)


@torch.no_grad()
def spoil(layer: Layer, idle: Iterable[int]) -> None:
    """Make all weights of some experts NaN, or what stands for it in their format."""
    for expert in idle:
        if isinstance(layer.experts, MixedExperts):
            layer.experts.part(expert).fill_(float("nan"))
            continue
        for name, values in (*layer.experts.named_parameters(), *layer.experts.named_buffers()):
            if values.is_floating_point() or "exponents" in name:
                values[expert] = float("nan") if values.is_floating_point() else 255


def packed_mlps(num_experts: int, bits: int, *, bias: bool, activation: str = "gelu") -> Layer:
    """Plain feed-forwards in 8 or 4 bits."""
    kind = MlpExpert.parse({"width": INNER, "bias": bias, "activation": activation})
    spec = ExpertQuantSpec.parse({"bits": bits, "group_size": 32})
    layer = PackedMlps(num_experts, WIDTH, kind, spec, torch.float32)
    chance = torch.Generator().manual_seed(bits)
    ups, downs = filled(layer, chance)
    biases = [parameter.data.normal_(generator=chance).double() for parameter in layer.parameters()]

    def tensors(expert: int) -> dict[str, Tensor]:
        own = {"w3.weight": ups[expert], "w2.weight": downs[expert]}
        return own | {name: b[expert] for name, b in zip(("w3.bias", "w2.bias"), biases, strict=False)}

    truths = truths_of_kinds((kind,) * num_experts, tensors)
    return Layer(layer, WIDTH, torch.float32, routed(layer), *truths, tolerance=1e-5)


@torch.no_grad()
def mxfp4(num_experts: int, kind: str, *, bias: bool) -> Layer:
    """Weights that mxfp4 holds exactly, as gpt-oss': its eight magnitudes times a power of two for each 32."""
    chance = torch.Generator().manual_seed(5)
    experts = GroupedExperts(num_experts, 64, 32, torch.float32, gating=gating_of(kind), bias=bias)
    for name, parameter in experts.named_parameters():
        values = torch.randn(parameter.shape, generator=chance) / 4
        if "bias" not in name:
            codes = torch.randint(8, parameter.shape, generator=chance)
            signs = torch.randint(2, parameter.shape, generator=chance) * 2 - 1
            groups = (*parameter.shape[:-1], parameter.shape[-1] // 32)
            powers = 2.0 ** torch.randint(-6, -3, groups, generator=chance)
            values = torch.tensor(E2M1)[codes] * signs * powers.repeat_interleave(32, -1)
        parameter.copy_(values)
    held = Mxfp4Experts.of(experts)
    assert held is not None
    gate_up, down, *biases = experts.parameters()
    truths = truths_of_gated(kind, gate_up, down, biases)
    return Layer(held, 64, torch.float32, routed(held), *truths, tolerance=1e-5)


KINDS: tuple[ExpertKind, ...] = (
    SwigluExpert(width=7),
    IdentityExpert(),
    MlpExpert(width=5),
    ZeroExpert(),
    SwigluExpert(width=16, activation="gelu"),
    ConstantExpert(),
    MlpExpert(width=9, activation="relu2", bias=True),
    IdentityExpert(),
)


def mixed(num_experts: int, first: int) -> Layer:
    """Experts of several kinds and widths, from the one at `first` on."""
    kinds = (KINDS[first:] + KINDS[:first])[:num_experts]
    layer = MixedExperts(kinds, WIDTH, torch.float64)
    chance = torch.Generator().manual_seed(first)
    with torch.no_grad():
        layer.weights_N.copy_(torch.randn(layer.weights_N.shape, generator=chance) / 4)
    return Layer(
        layer,
        WIDTH,
        torch.float64,
        routed(layer),
        *truths_of_kinds(kinds, layer.tensors),
        (layer.weights_N,) if layer.weights_N.numel() else (),
    )


# Name → the layer with that many experts.
LEARNING: dict[str, Callable[[int], Layer]] = {
    "grouped": lambda e: grouped(e, kernel="torch"),
    **{
        f"gated by {kind}{', biased' if bias else ''}": lambda e, kind=kind, bias=bias: grouped(
            e, kind, bias=bias
        )
        for kind in GATINGS
        for bias in (False, True)
        if kind != "silu" or bias
    },
    **{f"mixed from {KINDS[i].kind} {i}": lambda e, i=i: mixed(e, i) for i in range(len(KINDS))},
}
WAYS: dict[str, Callable[[int], Layer]] = {
    **LEARNING,
    # Sums in float32.
    "the readable reference": lambda e: grouped(e, kernel="reference", tolerance=1e-5),
    "grouped in bfloat16": lambda e: grouped(e, dtype=torch.bfloat16, tolerance=0.02),
    "gated by clamped in bfloat16": lambda e: grouped(
        e, "clamped", bias=True, dtype=torch.bfloat16, tolerance=0.02
    ),
    **{
        f"{bits} bits{'' if symmetric else ' with zero points'}": lambda e, bits=bits, symmetric=symmetric: (
            packed(e, bits, symmetric=symmetric)
        )
        for bits in (8, 4)
        for symmetric in (True, False)
    },
    "8 bits, gated by gelu": lambda e: packed(e, 8, kind="gelu"),
    "4 bits, gated by clamped, biased": lambda e: packed(e, 4, kind="clamped", bias=True, symmetric=False),
    "feed-forwards in 8 bits": lambda e: packed_mlps(e, 8, bias=False),
    "feed-forwards in 4 bits, biased": lambda e: packed_mlps(e, 4, bias=True, activation="relu"),
    "mxfp4": lambda e: mxfp4(e, "silu", bias=False),
    "mxfp4, gated by clamped, biased": lambda e: mxfp4(e, "clamped", bias=True),
}
