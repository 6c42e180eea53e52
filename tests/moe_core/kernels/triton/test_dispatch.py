"""Tensors on a GPU take the Triton kernels; tensors on the CPU never do."""

from __future__ import annotations

import pytest
import torch

from moe_core.kernels import dispatch
from moe_core.kernels.triton.experts import supports
from tests.moe_core.kernels.triton.layer import Layer


def test_the_cpu_never_takes_triton() -> None:
    layer = Layer.random(torch.device("cpu"), 3, 16, 4, 2, 16)
    assert "triton" in dispatch.kernel_names()
    assert not supports(layer.hidden, layer.gate_up, layer.down, layer.ids)
    chosen = dispatch._best(layer.hidden, layer.gate_up, layer.down, layer.ids)
    assert chosen.name != "triton"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_triton_where_it_can() -> None:
    layer = Layer.random(torch.device("cuda"), 3, 16, 4, 2, 16, torch.bfloat16)
    packed = (layer.gate_up, layer.down, layer.ids)
    assert dispatch._best(layer.hidden, *packed).name == "triton"
    assert dispatch._best(layer.hidden.double(), *(x.double() for x in packed[:2]), layer.ids).name == "torch"
    assert not supports(layer.hidden, layer.gate_up.transpose(1, 2), layer.down, layer.ids)
    assert not supports(layer.hidden, layer.gate_up.half(), layer.down, layer.ids)
    assert not supports(layer.hidden.cpu(), *packed)
