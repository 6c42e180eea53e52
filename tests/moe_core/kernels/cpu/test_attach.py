"""A decoder with the kernels says what it says without them, up to bfloat16."""

from __future__ import annotations

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts
from moe_core.kernels import dispatch
from moe_core.kernels.cpu.attach import (
    DecodeDenseMlp,
    DecodeLinear,
    PanelDenseMlp,
    PanelEmbedding,
    PanelExperts,
    PanelLinear,
    PanelPackedExperts,
    PanelPackedLinear,
    attach,
    logits_of,
)
from moe_core.kernels.gating import PLAIN
from moe_core.model.init import random_decoder
from moe_core.model.layers import DenseMlp
from moe_core.operations.quantise import quantise
from moe_core.spec import ModelSpec
from moe_core.spec.operations import QuantiseSpec
from tests.moe_core.tiny import tiny_family, tiny_llama, tiny_turnout

# What a machine where torch alone multiplies in tiles keeps as rows lies in panels elsewhere.
AS_ROWS, IN_PANELS = (
    {DecodeLinear, DecodeDenseMlp, GroupedExperts},
    {PanelLinear, PanelDenseMlp, PanelExperts},
)


@pytest.mark.parametrize("rows", [False, True], ids=["panels", "rows"])
@pytest.mark.parametrize(
    "spec",
    [tiny_llama(), tiny_turnout(), *map(tiny_family, ("deepseek_v3", "step3p5", "gpt_oss"))],
    ids=lambda s: s.family,
)
def test_logits_agree_and_parameters_stay(kernels, monkeypatch, spec: ModelSpec, *, rows: bool) -> None:
    monkeypatch.setattr(dispatch, "_KERNELS", list(dispatch._KERNELS))
    monkeypatch.setattr("moe_core.kernels.cpu.attach.panels_pay", lambda native: not rows)
    model = random_decoder(spec, seed=1, std=0.2, dtype=torch.bfloat16).eval()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    ids = torch.arange(10)[None]
    before = model(ids).float()
    assert attach(model, 1) == kernels.isa
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes
    # Rows know silu alone: other gatings stay with torch.
    clamped = [m for m in model.modules() if rows and getattr(m, "gating", PLAIN).kind.startswith("clamped")]
    assert all(type(module) in (DenseMlp, GroupedExperts) for module in clamped)
    assert bool(clamped) == (rows and spec.family in ("step3p5", "gpt_oss"))
    classes = {type(module) for module in model.modules() if module not in clamped}
    assert classes & (AS_ROWS if rows else IN_PANELS)
    assert not classes & (IN_PANELS if rows else {DecodeDenseMlp, GroupedExperts})
    after = model(ids).float()
    # Routing may turn at a tie that rounding decides, so the share of agreement counts, not each logit.
    close = (after - before).abs() <= 0.05 * before.abs().max()
    assert close.float().mean() > 0.95
    # Of gpt-oss as rows only maps of a few tokens are computed anew, and may round alike.
    assert (rows and spec.family == "gpt_oss") or not torch.equal(after, before)


@pytest.mark.parametrize("packed", [False, True])
def test_the_head_is_held_once_and_looked_up_where_it_lies(kernels, monkeypatch, *, packed: bool) -> None:
    monkeypatch.setattr("moe_core.kernels.cpu.attach.panels_pay", lambda native: True)
    model = random_decoder(tiny_turnout(), seed=1, std=0.2, dtype=torch.bfloat16).eval()
    tied = model.spec.tie_word_embeddings
    if packed:
        packing = {"kind": "quantise", "head": {"bits": 8}, "attention": {"bits": 8}}
        model = quantise(model, QuantiseSpec.parse(packing))[0].eval()
    ids = torch.arange(12)[None]
    embedded, before = model.embed_tokens(ids[0]), model(ids).float()
    attach(model, 1)
    assert torch.equal(model.embed_tokens(ids[0]), embedded)
    head = model.lm_head if packed or not tied else model.embed_tokens
    assert isinstance(head, PanelPackedLinear if packed else PanelEmbedding if tied else PanelLinear)
    assert all(tensor.is_meta for tensor in [*head.parameters(), *head.buffers()])
    assert model.device.type == "cpu"
    hidden = torch.randn(3, model.spec.hidden_size).bfloat16()
    logits = logits_of(model, hidden)
    assert logits.dtype is torch.float32
    assert float((logits - model.logits(hidden).float()).norm() / logits.norm()) < 0.01
    assert float((model(ids).float() - before).norm() / before.norm()) < 0.1


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_experts_are_held_once_and_cannot_be_used_by_mistake(kernels, monkeypatch, bits: int | None) -> None:
    monkeypatch.setattr("moe_core.kernels.cpu.attach.panels_pay", lambda native: True)
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
