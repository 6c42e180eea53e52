"""Codes at their largest, what they take in memory, and scales that do not fit."""

from __future__ import annotations

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.kernels.cpu.panels import Panels, code_panels
from moe_core.kernels.packing import Packed, quantise
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.kernels.cpu.conftest import poisoned
from tests.moe_core.kernels.cpu.test_experts import layer
from tests.moe_core.kernels.cpu.test_panels import quantised


def test_packed_memory_is_that_of_the_codes(kernels) -> None:
    spec = ExpertQuantSpec.parse({"bits": 4, "group_size": 64})
    panels, _ = quantised(layer(2, 128, 64), spec)
    weights = 2 * 3 * 128 * 64
    # Codes of half a byte and a float16 scale for each 64 of them.
    assert panels.num_bytes == weights // 2 + weights // 64 * 2


def test_factors_take_less_memory_than_scales(kernels) -> None:
    spec = ExpertQuantSpec.parse({"bits": 4, "group_size": 32, "super_group_size": 256})
    panels, _ = quantised(layer(2, 512, 256), spec)
    weights = 2 * 3 * 512 * 256
    # Codes of half a byte, a byte for 32 of them and a float16 for 256.
    assert panels.num_bytes == weights // 2 + weights // 32 + weights // 256 * 2


def test_codes_and_factors_at_their_largest_do_not_overflow(kernels) -> None:
    """15 times 15 fills a byte, 8 times 15 a signed one, and a sum of 1,024 of them the whole numbers of a float32."""
    spec = ExpertQuantSpec.parse({"bits": 4, "group_size": 32, "super_group_size": 1024})
    signs = torch.tensor([1.0, -1.0]).repeat(16)
    for byte, code in ((0, -8), (255, 7)):
        codes = torch.full((1, 40, 512), byte, dtype=torch.uint8)
        # One scale in each row is the common one.
        scales = (15 * signs).repeat(40, 1)
        scales[:, 0] = 1.0
        panels = Panels.of_codes(Packed(codes, scales[None].half(), None), (1, 40, 1024), spec)
        weight_K = code * scales[0].repeat_interleave(32).double()
        x_K = weight_K.sign() * 127
        for num in (1, 12, 13, 40):
            x_TK = x_K.bfloat16().repeat(num, 1)
            assert panels.map(x_TK, torch.float32).double().eq((x_K * weight_K).sum()).all()


def test_scales_without_a_common_one_are_refused(kernels) -> None:
    spec = ExpertQuantSpec.parse({"bits": 4, "group_size": 32, "super_group_size": 256})
    packed = quantise(poisoned(33, 300).float(), spec)
    packed.scales[7, 2] *= 1.0 + 2**-9
    with pytest.raises(SpecError, match="1 super-groups of 256 weights have scales that are not one to 15 times"):
        Panels.of_codes(packed, (1, 33, 300), spec)


def test_codes_of_eight_bits_at_their_largest_do_not_saturate(kernels) -> None:
    """Pairs of products near 255 · 127 · 2 overflow 16 bits; a kernel that adds them there is wrong."""
    spec = ExpertQuantSpec.parse({"bits": 8, "group_size": 32, "symmetric": True})
    ones = torch.ones(1, 16, 64)
    codes = Packed(torch.full((1, 16, 64), 255, dtype=torch.uint8), torch.ones(1, 16, 2).half(), None)
    down = quantise(torch.eye(64)[None, :, :8], spec)
    panels = code_panels(codes, down, 64, 8, spec)
    found = panels.run(torch.ones(1, 64).bfloat16(), torch.zeros(1, 1, dtype=torch.int64), ones[0, :1, :1])
    # Each sum is 64 · 127 = 8128, the activation its square.
    assert found[0, :8].float().tolist() == pytest.approx([8128.0**2] * 8, rel=0.01)
