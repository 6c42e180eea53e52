"""A decoder with the kernels says what it says without them, up to bfloat16."""

from __future__ import annotations

import torch

from moe_core.kernels import dispatch
from moe_core.kernels.cpu.attach import DecodeDenseMlp, DecodeLinear, attach
from moe_core.model.init import random_decoder
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
