"""Codes of the kernel under each instruction set against torch's, at odd sizes and between NaN."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from moe_core.kernels.packing import Packed, dequantise, quantise, quantise_torch
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.kernels.cpu.conftest import poisoned

FORMATS = [
    ExpertQuantSpec.parse({"bits": bits, "group_size": group, "symmetric": symmetric})
    for bits in (8, 4)
    for group, symmetric in ((32, True), (64, False), (128, True), (256, False), (1024, True))
] + [ExpertQuantSpec.parse({"bits": 4, "group_size": 32, "super_group_size": size}) for size in (256, 1024)]


def named(spec: ExpertQuantSpec) -> str:
    return f"{spec.bits}-{spec.group_size}-{spec.symmetric}-{spec.super_group_size}"


def lost(weight: torch.Tensor, packed: Packed, spec: ExpertQuantSpec) -> float:
    return float((dequantise(packed, weight.shape[-1], spec, torch.float64) - weight.double()).norm())


@pytest.mark.parametrize("spec", FORMATS, ids=named)
def test_every_set_rounds_as_torch_does(kernels, spec) -> None:
    for shape, scale in product([(1, 1), (17, 31), (33, 200), (5, 1100)], [1e-6, 0.05, 1e5]):
        compare(poisoned(*shape, scale=scale), spec)


def compare(weight: torch.Tensor, spec: ExpertQuantSpec) -> None:
    ours, theirs = quantise(weight, spec), quantise_torch(weight, spec)
    # Two scales may leave the same error up to the order of a sum.
    assert lost(weight, ours, spec) == pytest.approx(lost(weight, theirs, spec), rel=1e-3, abs=1e-12)
    assert float((ours.codes == theirs.codes).float().mean()) > 0.9
    assert torch.equal(quantise(weight, spec).codes, ours.codes)
