"""A decoder with the kernels says what it says without them, up to bfloat16."""

from __future__ import annotations

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.kernels import dispatch
from moe_core.kernels.cpu.attach import (
    DecodeDenseMlp,
    DecodeLinear,
    PanelExperts,
    PanelPackedExperts,
    attach,
)
from moe_core.model.init import random_decoder
from moe_core.operations.quantise import quantise
from moe_core.spec.operations import QuantiseSpec
from tests.moe_core.tiny import tiny_llama, tiny_turnout


def test_logits_agree_and_parameters_stay(kernels, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_KERNELS", list(dispatch._KERNELS))
    for spec in (tiny_llama(), tiny_turnout()):
        model = random_decoder(spec, seed=1, std=0.2, dtype=torch.bfloat16).eval()
        names = [name for name, _ in model.named_parameters()]
        ids = torch.arange(10)[None]
        before = model(ids).float()
        assert attach(model, 1) == kernels.isa
        assert [name for name, _ in model.named_parameters()] == names
        classes = {type(module) for module in model.modules()}
        assert DecodeLinear in classes
        assert DecodeDenseMlp in classes
        after = model(ids).float()
        # Routing may turn at a tie that rounding decides, so the share of agreement counts, not each logit.
        close = (after - before).abs() <= 0.05 * before.abs().max()
        assert close.float().mean() > 0.95
        assert not torch.equal(after, before)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_experts_are_held_once_and_cannot_be_used_by_mistake(kernels, bits: int | None) -> None:
    model = random_decoder(tiny_turnout(), seed=1, std=0.2, dtype=torch.bfloat16).eval()
    if bits is not None:
        packing = {"kind": "quantise", "quantisation": {"bits": bits, "group_size": 32}}
        model = quantise(model, QuantiseSpec.parse(packing))[0].eval()
    ids = torch.arange(12)[None]
    before = model(ids).float()
    attach(model, 1)
    experts = next(model.moe_layers()).experts
    weights = experts.num_experts * 3 * 48 * 32
    assert isinstance(experts, PanelPackedExperts if bits else PanelExperts)
    assert all(tensor.is_meta for tensor in [*experts.parameters(), *experts.buffers()])
    assert experts.panels.num_bytes <= weights * ((bits or 16) / 8 + (2 / 32 if bits else 0)) * 1.35
    after = model(ids).float()
    assert float((after - before).norm() / before.norm()) < 0.1
    with torch.enable_grad(), pytest.raises(SpecError, match="cannot learn"):
        model(ids)
    with pytest.raises(TypeError, match="meta"):
        experts.state_dict()["gate_up_E2FD" if bits is None else "gate_up_codes"].numpy()
