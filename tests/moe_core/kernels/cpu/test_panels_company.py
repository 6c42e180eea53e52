"""A row's bits hang on nobody beside it: threads, other rows, and what is infinite, tiny or silent among them."""

from __future__ import annotations

import pytest
import torch

from moe_core.kernels.cpu.panels import Panels
from moe_core.kernels.packing import quantise
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.kernels.cpu.conftest import poisoned
from tests.moe_core.kernels.cpu.test_experts import choices
from tests.moe_core.kernels.cpu.test_panels import any_panels


@pytest.mark.parametrize("form", [16, 8, 4])
def test_neither_threads_nor_company_change_a_bit(kernels, form: int) -> None:
    panels, _ = any_panels(form)
    x_TD, (ids_TK, weights_TK) = poisoned(130, 72), choices(130, 4, 2)
    together = panels.run(x_TD, ids_TK, weights_TK)
    alone = [panels.run(x_TD[t : t + 1], ids_TK[t : t + 1], weights_TK[t : t + 1]) for t in range(130)]
    assert torch.equal(together, torch.cat(alone))
    kernels.set_threads(1)
    assert torch.equal(together, panels.run(x_TD, ids_TK, weights_TK))


@pytest.mark.parametrize(
    ("form", "group"), [(16, 0), (8, 32), (8, 64), (8, 128), (8, 256), (8, 768), (4, 32), (4, 64), (4, 128), (4, 256), (4.5, 256), (4.5, 768)],
    ids=str,
)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(33, 33), (130, 576), (40, 1590)])
def test_a_row_of_a_map_has_the_same_bits_beside_any_number_of_others(
    kernels, form, group, symmetric, rows, columns
) -> None:
    """In float32: few sums that are added up in another order round to another bfloat16, and it would hardly show."""
    x_TK, weight_OK = poisoned(70, columns), poisoned(rows, columns, seed=1)
    if form == 16:
        panels = Panels.of_bfloat16(weight_OK[None])
    else:
        # Four and a half: with factors, in super-groups.
        if form == 4.5 and not symmetric:
            pytest.skip("factors are those of symmetric codes")
        own = {"group_size": 32, "super_group_size": group} if form == 4.5 else {"group_size": group}
        spec = ExpertQuantSpec.parse({"bits": int(form), "symmetric": symmetric, **own})
        panels = Panels.of_codes(quantise(weight_OK.float(), spec), (1, rows, columns), spec)
    alone = torch.cat([panels.map(x_TK[t : t + 1], torch.float32) for t in range(70)])
    for num in (2, 3, 11, 12, 13, 14, 16, 17, 27, 28, 31, 32, 33, 45, 47, 48, 49, 64, 70):
        assert torch.equal(panels.map(x_TK[:num], torch.float32), alone[:num]), num


@pytest.mark.parametrize("size", [1e-19, 1e18])
def test_subnormal_and_infinite_sums_do_not_hang_on_company_either(kernels, size: float) -> None:
    """Tiles flush what is below the smallest normal number; a row that is multiplied in vectors has to do as they do."""
    x_TK, weight_OK = poisoned(20, 200) * size, poisoned(130, 200, seed=1) * size
    panels = Panels.of_bfloat16(weight_OK[None])
    together = panels.map(x_TK, torch.float32)
    assert together.abs().max() > 0
    for num in (1, 2, 3, 13):
        assert torch.equal(panels.map(x_TK[:num], torch.float32), together[:num]), num


@pytest.mark.parametrize("form", [16, 8, 4])
def test_infinity_stays_in_its_own_token(kernels, form: int) -> None:
    panels, _ = any_panels(form)
    x_TD, (ids_TK, weights_TK) = poisoned(7, 72), choices(7, 4, 2)
    clean = panels.run(x_TD, ids_TK, weights_TK)
    x_TD[3, 70] = float("inf")
    found = panels.run(x_TD, ids_TK, weights_TK)
    assert not found[3].isfinite().any()
    keep = [0, 1, 2, 4, 5, 6]
    assert torch.equal(found[keep], clean[keep])


@pytest.mark.parametrize("form", [16, 8, 4])
def test_silent_tokens_and_layers_without_a_filled_place_give_nothing(kernels, form: int) -> None:
    panels, _ = any_panels(form)
    x_TD, (ids_TK, weights_TK) = poisoned(5, 72), choices(5, 4, 3)
    x_TD[4] = 0.0
    assert panels.run(x_TD, ids_TK, weights_TK)[4].eq(0.0).all()
    nobody = panels.run(x_TD, torch.full_like(ids_TK, -1), torch.full_like(weights_TK, float("nan")))
    assert nobody.eq(0.0).all()
