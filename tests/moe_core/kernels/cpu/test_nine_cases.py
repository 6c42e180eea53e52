"""The compiled expert kernels in the nine cases of `tests.moe_core.experts.nine_cases`: rows as they lie, and panels in bfloat16,
8 and 4 bits, under every instruction set that this processor has, against a loop in float64 with the roundings of each format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from moe_core.kernels.cpu.experts import swiglu_experts_cpu
from moe_core.kernels.cpu.panels import bfloat16_panels, code_panels
from moe_core.kernels.gating import PLAIN
from moe_core.kernels.packing import dequantise, quantise_torch
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.experts.nine_cases import CASES, OneExpert, assert_same, dense, loop
from tests.moe_core.experts.ways import gated, gating_of
from tests.moe_core.kernels.cpu.conftest import poisoned
from tests.moe_core.kernels.cpu.test_experts import layer
from tests.moe_core.kernels.cpu.test_panels import rounded_inputs

# Odd, of more than one group, and no whole number of lanes or rows of a block.
WIDTH, INNER = 71, 45

Run = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Way:
    """A form of weights, a gating, and biases or none."""

    bits: int | None = None
    symmetric: bool = True
    kind: str = "silu"
    bias: bool = False

    @property
    def group(self) -> int:
        """How many inputs are rounded to eight bits together; 0 where they are not."""
        return 32 if self.bits in (8, 4) else 0


WAYS = {
    "rows": Way(),
    "panels": Way(16),
    "panels, gated by clamped, biased": Way(16, kind="clamped", bias=True),
    "8 bits": Way(8),
    "8 bits, gated by gelu, biased": Way(8, kind="gelu", bias=True),
    "4 bits": Way(4),
    "4 bits with zero points, gated by clamped_silu": Way(4, symmetric=False, kind="clamped_silu"),
}


def made(way: Way, num_experts: int, idle: tuple[int, ...] = ()) -> tuple[Run, OneExpert]:
    """The kernel with its weights, those of idle experts NaN; and the formula of one expert."""
    weights = layer(num_experts, WIDTH, INNER)
    biases: tuple[Tensor, ...] = ()
    if way.bias:
        shapes = ((num_experts, 2 * INNER), (num_experts, WIDTH))
        biases = tuple(poisoned(*shape, seed=8 + i, scale=0.2) for i, shape in enumerate(shapes))
    for tensor in (*weights, *biases):
        tensor[list(idle)] = float("nan")
    exact = weights
    if way.bits is None:
        run: Run = lambda x, ids, shares: swiglu_experts_cpu(x, *weights, ids, shares)  # noqa: E731
    else:
        gating = PLAIN if way.kind == "silu" else gating_of(way.kind)
        panels = bfloat16_panels(*weights)
        if way.group:
            spec = ExpertQuantSpec.parse(
                {"bits": way.bits, "group_size": way.group, "symmetric": way.symmetric}
            )
            # Not the kernel's own codes: those of one instruction set are not to the bit those of another.
            codes = [quantise_torch(weight.float(), spec) for weight in weights]
            panels = code_panels(codes[0], codes[1], WIDTH, INNER, spec)
            widths = (WIDTH, INNER)
            exact = tuple(dequantise(c, n, spec, torch.float64) for c, n in zip(codes, widths, strict=True))
        run = lambda x, ids, shares: panels.run(x, ids, shares, gating, *biases)  # noqa: E731

    def narrowed(values: Tensor) -> Tensor:
        return rounded_inputs(values, way.group) if way.group else values.bfloat16().double()

    def one(expert: int, x_rD: Tensor) -> Tensor:
        both = narrowed(x_rD) @ exact[0][expert].double().T
        if biases:
            both = both + biases[0][expert].double()
        out = narrowed(gated(way.kind, *both.chunk(2, -1))) @ exact[1][expert].double().T
        return out + biases[1][expert].double() if biases else out

    return run, one


@cache
def wanted(name: str, case: str) -> Tensor:
    """The truth in float64, once for all instruction sets."""
    x_TD, ids_TK, weights_TK = CASES[case].inputs(WIDTH, torch.bfloat16)
    truth = dense if case == "huge" else loop
    one = made(WAYS[name], CASES[case].num_experts)[1]
    return truth(x_TD.double(), ids_TK, weights_TK.double(), one)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_it_equals_the_loop(kernels, case: str, name: str) -> None:
    run, _ = made(WAYS[name], CASES[case].num_experts)
    found_TD = run(*CASES[case].inputs(WIDTH, torch.bfloat16))
    assert found_TD.dtype is torch.bfloat16
    assert_same(found_TD, wanted(name, case), 0.02)


@pytest.mark.parametrize("name", WAYS)
def test_nan_stays_in_its_token(kernels, name: str) -> None:
    case = CASES["NaN"]
    run, _ = made(WAYS[name], case.num_experts)
    x_TD, ids_TK, weights_TK = case.inputs(WIDTH, torch.bfloat16)
    found_TD = run(x_TD, ids_TK, weights_TK)
    healed_TD = run(x_TD.nan_to_num(), ids_TK, weights_TK.nan_to_num())
    sick = [*case.sick, *case.sick_weights]
    sound = [token for token in range(len(x_TD)) if token not in sick]
    assert healed_TD.isfinite().all()
    assert torch.equal(found_TD[sound], healed_TD[sound])
    assert found_TD[sick].isnan().all()


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("case", ["all to one", "one empty"])
def test_an_expert_without_tokens_is_never_read(kernels, case: str, name: str) -> None:
    call = CASES[case].inputs(WIDTH, torch.bfloat16)
    idle = set(range(CASES[case].num_experts)) - set(call[1].flatten().tolist())
    spoilt, sound = (made(WAYS[name], CASES[case].num_experts, bad)[0] for bad in (tuple(idle), ()))
    assert idle
    assert torch.equal(spoilt(*call), sound(*call))
