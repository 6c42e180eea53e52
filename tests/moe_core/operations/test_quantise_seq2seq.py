"""Experts of encoder–decoders in few bits: they run, are saved, are counted, and come back as floats of their family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import moe_core
from moe_core import EncoderDecoder
from moe_core.checkpoint.hf import import_hf
from moe_core.checkpoint.inspect import inspect_dir
from moe_core.errors import FormatError, SpecError
from moe_core.experts import MixedExperts, PackedMlps
from moe_core.kernels.packing import dequantise as floats_of
from moe_core.model.seq2seq.init import random_encoder_decoder
from moe_core.operations import compose, dequantise, grow, quantise, upcycle
from moe_core.operations.prompts import Prompts
from moe_core.spec import LayoutSpec
from moe_core.spec.operations import ComposeSpec, DequantiseSpec, GrowSpec, QuantiseSpec, UpcycleSpec
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.tiny import SEQ2SEQ, STD, tiny_seq2seq

GENERATOR = torch.Generator().manual_seed(3)
IDS = torch.randint(3, 97, (3, 13), generator=GENERATOR)
TARGET = torch.randint(3, 97, (3, 9), generator=GENERATOR)
KINDS = [ExpertQuantSpec(bits=bits, group_size=32, symmetric=bits == 8) for bits in (8, 4)]


def tiny(family: str) -> EncoderDecoder:
    return random_encoder_decoder(tiny_seq2seq(family), 5, STD)


def packed(model: EncoderDecoder, kind: ExpertQuantSpec) -> EncoderDecoder:
    return quantise(model, QuantiseSpec(quantisation=kind))[0]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.bits} bits")
@pytest.mark.parametrize("family", SEQ2SEQ)
def test_packed_experts_compute_what_their_codes_stand_for(family: str, kind: ExpertQuantSpec) -> None:
    model = tiny(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = packed(model, kind)
    # By hand: every map of every expert replaced by what its codes stand for.
    by_hand = tiny(family)
    for layer, other in zip(small.moe_layers(), by_hand.moe_layers(), strict=True):
        assert isinstance(layer.experts, PackedMlps)
        assert isinstance(other.experts, MixedExperts)
        for expert in range(layer.experts.num_experts):
            own = other.experts.tensors(expert)
            for name, theirs in (("up", "w3.weight"), ("down", "w2.weight")):
                width = layer.experts.shapes[name][1]
                own[theirs].copy_(floats_of(layer.experts.packed(name), width, kind, torch.float32)[expert])
    assert torch.allclose(small(IDS, TARGET), by_hand(IDS, TARGET), rtol=1e-5, atol=1e-5)
    moved = float((small(IDS, TARGET) - model(IDS, TARGET)).norm() / model(IDS, TARGET).norm())
    assert 1e-5 < moved < (0.03 if kind.bits == 8 else 0.6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.bits} bits")
@pytest.mark.parametrize("family", SEQ2SEQ)
def test_they_go_through_the_disk_and_back_to_their_family(
    family: str, kind: ExpertQuantSpec, tmp_path: Path
) -> None:
    model = tiny(family)
    small = packed(model, kind)
    moe_core.save(small, tmp_path / "packed")
    back = moe_core.load(tmp_path / "packed")
    assert isinstance(back, EncoderDecoder)
    assert back.spec == small.spec
    assert torch.equal(back(IDS, TARGET), small(IDS, TARGET))
    assert back.generate(IDS[0].tolist(), 6) == small.generate(IDS[0].tolist(), 6)
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["model_type"] == "turnout_seq2seq"
    moe_core.save(dequantise(back, DequantiseSpec())[0], tmp_path / "wide")
    wide = moe_core.load(tmp_path / "wide")
    assert isinstance(wide, EncoderDecoder)
    assert wide.spec == model.spec
    assert torch.allclose(wide(IDS, TARGET), small(IDS, TARGET), rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["model_type"] == family


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_bytes_and_errors_are_told(family: str) -> None:
    model = tiny(family)
    small, report = quantise(model, QuantiseSpec(quantisation=ExpertQuantSpec(bits=4, group_size=64)))
    json.dumps(report)
    experts = {
        name: tensor
        for name, tensor in [*small.named_parameters(), *small.named_buffers()]
        if ".experts." in name
    }
    assert report["expert_bytes"] == sum(tensor.nbytes for tensor in experts.values())
    assert report["not_packed"] == []
    weights = sum(
        layer.experts.num_experts * 2 * 48 * stack.intermediate_size
        for stack in (model.spec.encoder, model.spec.decoder)
        for layer in list(model.moe_layers())[: len(stack.moe_layers)]
    )
    assert report["expert_bytes_16_bit"] == 2 * weights
    assert [entry["layer"] for entry in report["error"]] == [1, 3, 5, 7]
    assert all(0.05 < entry[name] < 0.2 for entry in report["error"] for name in ("up", "down"))


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_an_import_is_refused_with_the_way_to_run_it(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    for number, one in enumerate((model, packed(model, KINDS[0]))):
        source = moe_core.save(one, tmp_path / str(number))
        for act in (lambda at=source: import_hf(at, tmp_path / "out"), lambda at=source: inspect_dir(at)):
            with pytest.raises(FormatError, match="is an encoder–decoder; .* run in Python: moe_core.load"):
                act()
    assert not (tmp_path / "out").exists()


def test_what_is_not_for_them_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = tiny("switch_transformers")
    small = packed(model, KINDS[0])
    with pytest.raises(SpecError, match="packed in 8 bits"):
        packed(small, KINDS[0])
    with pytest.raises(SpecError, match="not packed"):
        dequantise(model, DequantiseSpec())
    prompts = Prompts.of({"law": [[1, 2]] * 8, "code": [[3, 4]] * 8})
    with pytest.raises(SpecError, match="quantise an encoder–decoder without them"):
        quantise(model, QuantiseSpec(), prompts)  # type: ignore[call-overload]
    layout = LayoutSpec(moe_layers=(1,), num_experts=4, top_k=2)
    both = ComposeSpec(domains=("law", "code"))
    for act in (
        lambda: grow(model, GrowSpec(num_experts=8)),  # type: ignore[arg-type]
        lambda: upcycle(model, UpcycleSpec(layout=layout)),  # type: ignore[arg-type]
        lambda: compose([model, model], both, prompts),  # type: ignore[list-item]
    ):
        with pytest.raises(SpecError, match="only quantise and dequantise are for encoder–decoders"):
            act()
    moe_core.save(small, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    path.chmod(0o644)
    path.write_text(json.dumps({**config, "warp": 1}))
    with pytest.raises(FormatError, match="warp"):
        moe_core.load(tmp_path / "m")
