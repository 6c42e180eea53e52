"""Experts with biases, another gating, or packed weights, against a loop over numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from moe_core.experts import PackedExperts
from moe_core.kernels.gating import Gating
from moe_core.kernels.reference import gated_experts_reference
from moe_core.kernels.torch_gated import gated_experts_torch
from moe_core.routers import Routing
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.experts.test_grouped_experts import CASES, INNER, WIDTH, tensors

LIMIT, ALPHA = 1.5, 1.702


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def clamped(gate: float, up: float) -> float:
    """gpt-oss."""
    gate, up = min(gate, LIMIT), max(-LIMIT, min(up, LIMIT))
    return (up + 1.0) * gate * sigmoid(ALPHA * gate)


GATINGS = {
    "silu": lambda gate, up: gate * sigmoid(gate) * up,
    "gelu": lambda gate, up: 0.5 * gate * (1.0 + math.erf(gate / math.sqrt(2.0))) * up,
    "clamped": clamped,
    # Step 3.5.
    "clamped_silu": lambda gate, up: min(gate * sigmoid(gate), LIMIT) * max(-LIMIT, min(up, LIMIT)),
}


def gating_of(kind: str) -> Gating:
    return Gating(kind, alpha=ALPHA, limit=LIMIT)  # type: ignore[arg-type]


def biases(num_experts: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randn(num_experts, 2 * INNER, generator=generator).double(),
        torch.randn(num_experts, WIDTH, generator=generator).double(),
    )


@pytest.mark.parametrize("with_biases", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("kind", GATINGS)
@pytest.mark.parametrize("case", [case for case in CASES if case != "many tokens"])
def test_gated_experts_equal_the_loop(case: str, kind: str, with_biases: bool) -> None:
    x, gate_up, down, ids_TK, weights = tensors(case)
    extra = biases(gate_up.shape[0]) if with_biases else ()
    fast = gated_experts_torch(x, gate_up, down, ids_TK, weights, gating_of(kind), *extra)
    slow = gated_experts_reference(x, gate_up, down, ids_TK, weights, GATINGS[kind], *extra)
    assert fast.shape == x.shape
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", GATINGS)
def test_gradients_of_gated_experts_are_those_of_finite_differences(kind: str) -> None:
    x, gate_up, down, ids_TK, weights = tensors("one empty")
    leaves = [*biases(gate_up.shape[0])]
    for leaf in leaves:
        leaf.requires_grad_()

    def run(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, *extra: Tensor) -> Tensor:
        return gated_experts_torch(x, gate_up, down, ids_TK, weights, gating_of(kind), *extra)

    assert torch.autograd.gradcheck(run, (x, gate_up, down, weights, *leaves))


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


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("with_biases", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("kind", ["silu", "clamped"])
def test_packed_experts_equal_the_loop_over_their_codes(
    bits: int, symmetric: bool, with_biases: bool, kind: str
) -> None:
    """Rows of 45 and 39: odd, and with a last group that is shorter."""
    width, inner, num_experts = 45, 39, 3
    generator = torch.Generator().manual_seed(bits)
    spec = ExpertQuantSpec.parse({"bits": bits, "group_size": 32, "symmetric": symmetric})
    layer = PackedExperts(
        num_experts,
        width,
        inner,
        spec,
        gating=gating_of(kind),
        bias_dtype=torch.float32 if with_biases else None,
    )
    sizes = {"gate_up": (2 * inner, width), "down": (width, inner)}
    plain: dict[str, Tensor] = {}
    for name, (rows, length) in sizes.items():
        weight = torch.randn(num_experts, rows, length, generator=generator)
        layer.pack(name, weight)
        packed = layer.packed(name)
        plain[name] = torch.stack(
            [
                unpacked(
                    packed.codes[e],
                    packed.scales[e],
                    None if packed.zeros is None else packed.zeros[e],
                    length,
                    spec,
                )
                for e in range(num_experts)
            ]
        )
        # What was packed is what is read, to what its bits cost: in 4, ends of the range are cut off for the rest's sake.
        assert float((plain[name] - weight).norm() / weight.norm()) <= 2.0 * 2.0**-bits
    extra: tuple[Tensor, ...] = ()
    if with_biases:
        assert layer.gate_up_bias_E2F is not None
        assert layer.down_bias_ED is not None
        extra = (
            layer.gate_up_bias_E2F.data.normal_(generator=generator),
            layer.down_bias_ED.data.normal_(generator=generator),
        )
    x_TD = torch.randn(11, width, generator=generator)
    ids_TK = torch.tensor(
        [[0, 1], [2, -1], [1, 2], [0, 2], [-1, -1], [2, 0], [1, 0], [0, -1], [2, 1], [1, 0], [0, 1]]
    )
    weights_TK = torch.rand(11, 2, generator=generator).masked_fill(ids_TK < 0, 0.0)
    nothing = torch.zeros(11, num_experts)
    with torch.inference_mode():
        fast = layer(x_TD, Routing(ids_TK, weights_TK, nothing, nothing))
    slow = gated_experts_reference(
        x_TD, plain["gate_up"], plain["down"], ids_TK, weights_TK, GATINGS[kind], *extra
    )
    torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("biased", [False, True])
def test_a_gpu_reads_codes_only_of_experts_without_biases(monkeypatch, biased: bool) -> None:
    pytest.importorskip("triton")
    from moe_core.kernels.triton import packed

    monkeypatch.setattr(packed, "supports", lambda *_: True)
    bias = torch.float32 if biased else None
    experts = PackedExperts(3, 64, 32, ExpertQuantSpec(group_size=32), bias_dtype=bias)
    on_a_gpu = SimpleNamespace(is_cuda=True)
    assert experts._on_codes(on_a_gpu, torch.zeros(1, 1)) is not biased  # type: ignore[arg-type]
