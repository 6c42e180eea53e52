"""bfloat16 in twelve bits has the bits of plain panels, whatever the weights are, and takes three quarters of their memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_core.kernels.cpu.native import Library
from moe_core.kernels.cpu.panels import Panels, bfloat16_panels
from tests.moe_core.kernels.cpu.conftest import poisoned
from tests.moe_core.kernels.cpu.test_experts import choices, layer

# Rows, columns: whole panels and parts of them, whole and half pairs of steps, several pieces of K.
SIZES = [(64, 64), (33, 2), (77, 34), (5, 7), (40, 578), (96, 1536)]
TOKENS = [1, 2, 3, 12, 13, 32, 33, 70]
# What a weight may be beside a number like the others: subnormal, endless, none, negative zero, tiny, huge.
ODD = [1e-40, -float("inf"), float("inf"), float("nan"), -0.0, 3e-30, -2e30]


def weights(rows: int, cols: int, *, odd: bool) -> Tensor:
    """Like those of a matrix, with strays among them."""
    out_RC = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows + cols)) * 0.05
    for i, value in enumerate(ODD if odd else ODD[-2:]):
        # One to a panel, so that there is room for them in the smallest.
        out_RC[(7 + 32 * i) % rows, 3 * i % cols] = value
    return out_RC.bfloat16()


def of_both_forms(monkeypatch: pytest.MonkeyPatch, weight_RC: Tensor, **more: bool) -> tuple[Panels, Panels]:
    panels = []
    for unpacks in (True, False):
        monkeypatch.setattr(Library, "unpacks_quickly", unpacks)
        panels.append(Panels.of_bfloat16(weight_RC[None], **more))
    assert panels[0].struct.strays and not panels[1].struct.strays
    return panels[0], panels[1]


def same_bits(a: Tensor, b: Tensor) -> bool:
    kind = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return torch.equal(a.view(kind), b.view(kind))


@pytest.mark.parametrize(("rows", "cols"), SIZES)
@pytest.mark.parametrize("odd", [False, True], ids=["finite", "odd"])
def test_products_have_the_bits_of_plain_panels(
    kernels, monkeypatch, rows: int, cols: int, odd: bool
) -> None:
    twelve, plain = of_both_forms(monkeypatch, weights(rows, cols, odd=odd))
    for num in TOKENS:
        x_TK = poisoned(num, cols, seed=num)
        assert same_bits(twelve.map(x_TK, torch.float32), plain.map(x_TK, torch.float32)), num
        assert same_bits(twelve.map(x_TK), plain.map(x_TK)), num


@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_rows_are_the_weights_to_the_bit(kernels, monkeypatch, rows: int, cols: int) -> None:
    weight_RC = weights(rows, cols, odd=True)
    twelve, _ = of_both_forms(monkeypatch, weight_RC)
    ids_T = torch.cat([torch.arange(rows), torch.tensor([rows - 1, 0])])
    assert same_bits(twelve.look_up(ids_T), weight_RC[ids_T])


@pytest.mark.parametrize("num_tokens", [1, 5, 48, 130])
@pytest.mark.parametrize("shape", [(4, 64, 48), (3, 34, 17), (2, 640, 96)], ids=str)
def test_a_layer_has_the_bits_of_plain_panels(kernels, monkeypatch, num_tokens: int, shape) -> None:
    both, own = layer(*shape), poisoned(num_tokens, shape[1])
    ids_TK, weights_TK = choices(num_tokens, shape[0], 2)
    outs = []
    for unpacks in (True, False):
        monkeypatch.setattr(Library, "unpacks_quickly", unpacks)
        panels = bfloat16_panels(*both)
        assert bool(panels.gate_up.struct.strays) is bool(panels.down.struct.strays) is unpacks
        outs.append(panels.run(own, ids_TK, weights_TK))
    assert same_bits(*outs)


def test_heads_have_the_bits_of_plain_panels(kernels, monkeypatch) -> None:
    stack = torch.stack([weights(40, 66, odd=bool(head)) for head in range(3)])
    outs = []
    for unpacks in (True, False):
        monkeypatch.setattr(Library, "unpacks_quickly", unpacks)
        outs += [Panels.of_bfloat16(stack).map_each(poisoned(num, 3, 66, seed=num)) for num in (1, 33)]
    assert same_bits(outs[0], outs[2]) and same_bits(outs[1], outs[3])


def test_they_take_three_quarters_of_the_memory(kernels, monkeypatch) -> None:
    twelve, plain = of_both_forms(monkeypatch, weights(96, 1536, odd=True))
    assert 0.75 < twelve.num_bytes / plain.num_bytes < 0.77


@pytest.mark.parametrize("cols", [64, 1536])
def test_weights_of_any_exponent_stay_plain(kernels, monkeypatch, cols: int) -> None:
    monkeypatch.setattr(Library, "unpacks_quickly", True)
    words = torch.randint(-(1 << 15), 1 << 15, (1, 64, cols), generator=torch.Generator().manual_seed(3))
    assert not Panels.of_bfloat16(words.to(torch.int16).view(torch.bfloat16)).struct.strays


def test_one_panel_with_too_many_strays_keeps_the_whole_stack_plain(kernels, monkeypatch) -> None:
    monkeypatch.setattr(Library, "unpacks_quickly", True)
    stack = torch.stack([weights(64, 64, odd=False) for _ in range(3)])
    assert Panels.of_bfloat16(stack).struct.strays
    # Forty exponents of one weight each, in the last panel of the last matrix.
    stack[2, 40, :40] = torch.pow(2.0, torch.arange(-100, -60))
    assert not Panels.of_bfloat16(stack).struct.strays


def test_zeros_and_nothing_at_all(kernels, monkeypatch) -> None:
    monkeypatch.setattr(Library, "unpacks_quickly", True)
    zeros = Panels.of_bfloat16(torch.zeros(1, 33, 66, dtype=torch.bfloat16))
    assert zeros.struct.strays and not zeros.map(torch.ones(3, 66, dtype=torch.bfloat16)).any()
    assert Panels.of_bfloat16(torch.zeros(0, 33, 66, dtype=torch.bfloat16)).num_bytes == 0


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "amx"])
def test_it_is_for_sets_that_unpack_quickly(compiled: Library, monkeypatch, isa: str) -> None:
    monkeypatch.setattr(Library, "isa", isa)
    assert compiled.unpacks_quickly is (isa not in ("generic", "avx2"))
