"""Dequantisation equals the reference package's, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from moe_core.checkpoint.gguf_quants import QUANT_BY_ID, UNREAD, Quant


@pytest.mark.parametrize("quant", QUANT_BY_ID.values(), ids=lambda quant: quant.name)
def test_any_bytes_unpack_as_the_reference_does(quant: Quant) -> None:
    kind = gguf.GGMLQuantizationType(quant.type_id)
    assert gguf.GGML_QUANT_SIZES[kind] == (quant.block_elements, quant.block_bytes)
    raw = np.random.default_rng(quant.type_id).integers(0, 256, (257, quant.block_bytes), dtype=np.uint8)
    plain = {"F32": np.float32, "F16": np.float16}.get(quant.name)
    with np.errstate(all="ignore"):
        ours = quant.unpack(raw)
        theirs = dequantize(raw if plain is None else raw.view(plain), kind)
    assert ours.dtype == np.float32
    assert ours.shape == (257, quant.block_elements)
    assert np.array_equal(ours.ravel(), np.asarray(theirs, np.float32).ravel(), equal_nan=True)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_weights_come_back_near_what_they_were(name: str) -> None:
    quant = next(quant for quant in QUANT_BY_ID.values() if quant.name == name)
    weights = np.random.default_rng(0).standard_normal((64, quant.block_elements)).astype(np.float32)
    packed = quantize(weights, gguf.GGMLQuantizationType(quant.type_id))
    error = np.abs(quant.unpack(packed) - weights).max()
    assert error < {"Q8_0": 0.02, "Q5_0": 0.15, "Q5_1": 0.15, "Q4_0": 0.4, "Q4_1": 0.3}[name]


def test_every_storage_type_is_read_or_known_by_name() -> None:
    names = {quant.type_id: quant.name for quant in QUANT_BY_ID.values()}
    assert not names.keys() & UNREAD.keys()
    assert names | UNREAD == {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
