"""Operations and bytes are read from the code of the main loop, and of no other."""

from __future__ import annotations

import pytest

from moe_core.kernels.triton.intensity import intensity

LOAD_X = "%x = tt.load %p, %m, %o : tensor<16x64x!tt.ptr<bf16>> loc(#loc1)"
LOAD_W = "%w = tt.load %q : tensor<64x128x!tt.ptr<bf16>>"
DOT = "%d = tt.dot %x, %w, %a, inputPrecision = ieee : tensor<16x64xbf16> * tensor<64x128xbf16> -> tensor<16x128xf32>"
FOUR = "%c = tt.load %q : tensor<128x32x!tt.ptr<i8>>"
SCALED = (
    "%d = tt.dot_scaled %c scale %s, %x, %a lhs = e2m1 rhs = bf16 {fastMath = false} : "
    "tensor<128x32xi8>, tensor<128x2xi8> * tensor<64x16xbf16> -> tensor<128x16xf32>"
)


def loop(
    *lines: str, kind: str = "scf.for %i = %a to %b step %c iter_args(%t = %z) -> (f32)  : i32"
) -> list[str]:
    return [f"{kind} {{", *lines, "scf.yield %t : f32", "}"]


def test_a_loop_of_one_product() -> None:
    code = [LOAD_W, *loop(LOAD_X, LOAD_W, DOT), LOAD_X]
    assert intensity("\n".join(code)) == pytest.approx(2 * 16 * 64 * 128 / (2 * 64 * (16 + 128)))


def test_four_bit_floats_come_two_a_byte_and_count_as_two() -> None:
    code = loop(LOAD_X, FOUR, SCALED)
    assert intensity("\n".join(code)) == pytest.approx(2 * 128 * 64 * 16 / (128 * 32 + 2 * 16 * 64))


def test_what_stands_in_another_loop_is_left_out() -> None:
    inner = loop(LOAD_X, LOAD_W, DOT)
    code = [*loop(LOAD_W, LOAD_W, *inner, LOAD_X), *loop(LOAD_W)]
    assert intensity("\n".join(code)) == intensity("\n".join(inner))


def test_no_product_has_no_intensity() -> None:
    assert intensity("\n".join(loop(LOAD_X))) is None
    assert intensity("") is None
