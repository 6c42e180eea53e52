"""Experts in panels against float64: bfloat16, 8 and 4 bits, symmetric or not, at odd sizes and between NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.cpu.panels import ExpertPanels, Panels, bfloat16_panels, code_panels
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.kernels.packing import dequantise, quantise
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.kernels.cpu.conftest import assert_close, poisoned
from tests.moe_core.kernels.cpu.test_experts import choices, layer

# Tokens; experts, width and width of an expert.
SIZES = [
    (1, (1, 8, 8)),
    (3, (4, 33, 17)),
    (61, (8, 64, 96)),
    (5, (5, 7, 1)),
    (16, (3, 200, 144)),
    (1, (6, 160, 80)),
]
FORMATS = [
    ExpertQuantSpec.parse({"bits": bits, "group_size": group, "symmetric": symmetric})
    for bits in (8, 4)
    for group, symmetric in ((32, True), (64, False), (128, True), (256, False), (768, True))
] + [ExpertQuantSpec.parse({"bits": 4, "group_size": 32, "super_group_size": size}) for size in (256, 768)]


def named(spec: ExpertQuantSpec) -> str:
    return f"{spec.bits}-{spec.group_size}-{spec.symmetric}-{spec.super_group_size}"


def rounded_inputs(x_TW: Tensor, group: int) -> Tensor:
    """What the kernel makes of its inputs: 8 bits with a scale for each token and group; halves away from zero."""
    out = torch.empty(x_TW.shape, dtype=torch.float64)
    for first in range(0, x_TW.shape[1], group):
        part = x_TW[:, first : first + group].float()
        top = part.abs().amax(1, keepdim=True)
        scaled = part * torch.where(top > 1e-35, 127.0 / top, 0.0)
        codes = (scaled.abs() + 0.5).floor() * scaled.sign()
        out[:, first : first + group] = codes.double() * (top / 127.0).double()
    return out


def truth(
    x_TD: Tensor,
    gate_up: Tensor,
    down: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    group: int = 0,
    gating: Gating = PLAIN,
    gate_up_bias_E2F: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
) -> Tensor:
    """The formula in float64 with the roundings that the format has: inputs and activations."""
    out, num_ff = torch.zeros(x_TD.shape, dtype=torch.float64), down.shape[2]
    x = rounded_inputs(x_TD, group) if group else x_TD.double()
    for expert in range(down.shape[0]):
        tokens, places = torch.where(ids_TK == expert)
        both = x[tokens] @ gate_up[expert].double().T
        if gate_up_bias_E2F is not None:
            both += gate_up_bias_E2F[expert].double()
        act = gating(both[:, :num_ff], both[:, num_ff:])
        act = rounded_inputs(act, group) if group else act.bfloat16().double()
        own = act @ down[expert].double().T
        if down_bias_ED is not None:
            own += down_bias_ED[expert].double()
        out.index_add_(0, tokens, weights_TK[tokens, places, None].double() * own)
    return out


def close(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Finite, and within a share of the largest value; a code at a tie may round the other way in float32."""
    return bool(found.isfinite().all()) and bool(
        (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max() + 1e-6
    )


def quantised(
    weights: tuple[Tensor, Tensor], spec: ExpertQuantSpec
) -> tuple[ExpertPanels, tuple[Tensor, Tensor]]:
    down = weights[1]
    packed = [quantise(weight.float(), spec) for weight in weights]
    panels = code_panels(packed[0], packed[1], down.shape[1], down.shape[2], spec)
    widths = (down.shape[1], down.shape[2])
    exact = [dequantise(p, w, spec, torch.float32) for p, w in zip(packed, widths, strict=True)]
    return panels, (exact[0], exact[1])


@pytest.mark.parametrize(("num_tokens", "shape"), SIZES, ids=str)
def test_bfloat16_equals_float64_up_to_rounding(kernels, num_tokens: int, shape) -> None:
    x_TD, weights = poisoned(num_tokens, shape[1]), layer(*shape)
    ids_TK, weights_TK = choices(num_tokens, shape[0], min(2, shape[0]))
    found = bfloat16_panels(*weights).run(x_TD, ids_TK, weights_TK)
    assert close(found, truth(x_TD, *weights, ids_TK, weights_TK), 0.01)


@pytest.mark.parametrize(("num_tokens", "shape"), SIZES, ids=str)
@pytest.mark.parametrize("spec", FORMATS, ids=named)
def test_codes_equal_float64_up_to_rounding(kernels, num_tokens: int, spec: ExpertQuantSpec, shape) -> None:
    x_TD, (panels, exact) = poisoned(num_tokens, shape[1]), quantised(layer(*shape), spec)
    ids_TK, weights_TK = choices(num_tokens, shape[0], min(2, shape[0]))
    found = panels.run(x_TD, ids_TK, weights_TK)
    assert close(found, truth(x_TD, *exact, ids_TK, weights_TK, spec.input_group_size), 0.015)


@pytest.mark.parametrize(("num_tokens", "shape"), SIZES, ids=str)
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize(
    "gating",
    [Gating("gelu"), Gating("clamped", alpha=1.3, limit=0.7), Gating("clamped_silu", limit=0.4), PLAIN],
    ids=lambda g: g.kind,
)
def test_gatings_and_biases_are_those_of_float64(
    kernels, num_tokens: int, shape, bits: int, gating: Gating
) -> None:
    num_experts, width, num_ff = shape
    x_TD, exact = poisoned(num_tokens, width), layer(*shape)
    panels = bfloat16_panels(*exact)
    if bits == 8:
        panels, exact = quantised(exact, FORMATS[0])
    ids_TK, weights_TK = choices(num_tokens, num_experts, min(2, num_experts))
    biases = (poisoned(num_experts, 2 * num_ff, seed=8), poisoned(num_experts, width, seed=9))
    for own in ((None, None), biases):
        found = panels.run(x_TD, ids_TK, weights_TK, gating, *own)
        wanted = truth(x_TD, *exact, ids_TK, weights_TK, FORMATS[0].group_size * (bits == 8), gating, *own)
        assert close(found, wanted, 0.015)


@pytest.mark.parametrize("kind", ["silu", "gelu", "clamped", "clamped_silu"])
def test_nan_passes_every_gating(kernels, kind: str) -> None:
    x_TD, panels = poisoned(3, 33), bfloat16_panels(*layer(4, 33, 17))
    x_TD[1, 5] = float("nan")
    ids_TK, weights_TK = choices(3, 4, 2)
    found = panels.run(x_TD, ids_TK, weights_TK, Gating(kind))
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


def test_bounded_experts_of_any_width_bound_infinity_too(kernels) -> None:
    """What lies past the last row of a panel is infinity times zero, and must not reach a row that is finite."""
    x_TD, (gate_up, down) = poisoned(3, 33), layer(4, 33, 17)
    # Every gate and every up is infinite, and none of them below zero.
    gate_up[:, :, 5] = gate_up[:, :, 5].abs().clamp_min(0.01)
    x_TD[1, 5] = float("inf")
    ids_TK, weights_TK = choices(3, 4, 2)
    panels = bfloat16_panels(gate_up, down)
    assert panels.run(x_TD, ids_TK, weights_TK, Gating("clamped", alpha=1.3, limit=0.7)).isfinite().all()


@pytest.mark.parametrize("spec", FORMATS, ids=named)
def test_eight_bits_of_input_cost_little(kernels, spec: ExpertQuantSpec) -> None:
    x_TD, (panels, exact) = poisoned(20, 256), quantised(layer(4, 256, 384), spec)
    ids_TK, weights_TK = choices(20, 4, 2)
    found, wanted = panels.run(x_TD, ids_TK, weights_TK), truth(x_TD, *exact, ids_TK, weights_TK)
    assert float((found.double() - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("num_tokens", [0, 1, 12, 13, 40])
@pytest.mark.parametrize(("heads", "rows", "columns"), [(1, 1, 1), (5, 7, 33), (3, 130, 64)])
def test_a_matrix_for_each_head_equals_float64(kernels, num_tokens, heads, rows, columns) -> None:
    weight = poisoned(heads, rows, columns, seed=1)
    # A slice of wider heads, as queries come; what lies between is not read.
    x = poisoned(num_tokens, heads, columns + 3)
    x[..., columns:] = float("nan")
    found = Panels.of_bfloat16(weight).map_each(x[..., :columns])
    assert found.shape == (num_tokens, heads, rows)
    if num_tokens:
        wanted = torch.einsum("thk,hrk->thr", x[..., :columns].double(), weight.double())
        assert_close(found, wanted, columns)
    with pytest.raises(SpecError, match="it must be bfloat16"):
        Panels.of_bfloat16(weight).map_each(x)


@pytest.mark.parametrize("num_tokens", [1, 2, 11, 12, 13, 40])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (15, 7), (16, 32), (49, 33), (130, 576)])
def test_a_linear_map_equals_float64_up_to_rounding(kernels, num_tokens, rows, columns) -> None:
    x_TK, weight_OK = poisoned(num_tokens, columns), poisoned(rows, columns, seed=1)
    found = Panels.of_bfloat16(weight_OK[None]).map(x_TK)
    assert_close(found, x_TK.double() @ weight_OK.double().T, columns)


@pytest.mark.parametrize("num_tokens", [1, 13, 50])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (31, 7), (33, 32), (97, 200)])
@pytest.mark.parametrize("spec", FORMATS, ids=named)
def test_a_linear_map_of_codes_equals_float64_up_to_rounding(
    kernels, spec, num_tokens, rows, columns
) -> None:
    x_TK, weight_OK = poisoned(num_tokens, columns), poisoned(rows, columns, seed=1)
    packed = quantise(weight_OK.float(), spec)
    exact_OK = dequantise(packed, columns, spec, torch.float32).double()
    found = Panels.of_codes(packed, (1, rows, columns), spec).map(x_TK, torch.float32)
    assert found.dtype is torch.float32
    assert close(found, rounded_inputs(x_TK, spec.input_group_size) @ exact_OK.T, 0.002)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (33, 7), (97, 48)])
def test_rows_are_looked_up_bit_for_bit(kernels, rows: int, columns: int) -> None:
    weight_OK = poisoned(rows, columns)
    panels = Panels.of_bfloat16(weight_OK[None])
    ids_T = torch.tensor([rows - 1, 0, rows // 2, 0])
    assert torch.equal(panels.look_up(ids_T), weight_OK[ids_T])
    for bad in (-1, rows):
        with pytest.raises(SpecError, match=f"a matrix of {rows} rows has not"):
            panels.look_up(torch.tensor([0, bad]))


def any_panels(form: int) -> tuple[ExpertPanels, tuple[Tensor, Tensor]]:
    """The same small layer in bfloat16 (16), or in codes."""
    weights = layer(4, 72, 48)
    if form == 16:
        return bfloat16_panels(*weights), weights
    return quantised(weights, ExpertQuantSpec.parse({"bits": form, "group_size": 32, "symmetric": False}))


@pytest.mark.parametrize("bad", [-2, 4])
def test_an_expert_that_is_not_there_is_refused(kernels, bad: int) -> None:
    panels, _ = any_panels(8)
    with pytest.raises(SpecError, match="outside the layer's 4 experts"):
        panels.run(poisoned(2, 72), torch.tensor([[0, 1], [2, bad]]), torch.ones(2, 2))


def test_what_does_not_fit_is_refused(kernels) -> None:
    panels, _ = any_panels(16)
    ids_TK, weights_TK = choices(2, 4, 2)
    with pytest.raises(SpecError, match=r"must be bfloat16 \(T, 72\)"):
        panels.run(torch.zeros(2, 72), ids_TK, weights_TK)
    with pytest.raises(SpecError, match=r"must be bfloat16 \(T, 48\)"):
        Panels.of_bfloat16(poisoned(1, 5, 48)).map(poisoned(3, 47))
    with pytest.raises(SpecError, match="panels hold bfloat16"):
        Panels.of_bfloat16(torch.ones(1, 5, 48))
    with pytest.raises(SpecError, match="do not fit together"):
        panels.run(poisoned(3, 72), ids_TK, weights_TK)
    with pytest.raises(SpecError, match=r"ids are torch.int32; they must be torch.int64"):
        panels.run(poisoned(2, 72), ids_TK.int(), weights_TK)


def test_what_does_not_lie_in_rows_gives_the_same(kernels) -> None:
    panels, _ = any_panels(16)
    ids_TK, weights_TK = choices(3, 4, 2)
    hidden_TD = poisoned(3, 72)
    wanted = panels.run(hidden_TD, ids_TK, weights_TK)
    turned = [tensor.T.contiguous().T for tensor in (hidden_TD, ids_TK, weights_TK)]
    assert torch.equal(panels.run(*turned), wanted)
    assert torch.equal(panels.run(hidden_TD, ids_TK, weights_TK.double()), wanted)
