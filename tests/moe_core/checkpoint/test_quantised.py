"""Weights in eight and four bits against number-by-number decoding, and whole directories that hold them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import moe_core
from moe_core.checkpoint.quantised import fp8_blocks, mxfp4
from moe_core.errors import FormatError
from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from tests.moe_core.tiny import STD, tiny_family

IDS = torch.arange(1, 13).view(1, 12)


def e4m3(byte: int) -> float:
    """One sign, four exponent and three mantissa bits with a bias of seven, by hand."""
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    value = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -value if sign else value


def e2m1(nibble: int) -> float:
    """One sign, two exponent bits with a bias of one, one mantissa bit, by hand."""
    sign, exponent, mantissa = nibble >> 3, nibble >> 1 & 3, nibble & 1
    value = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -value if sign else value


def test_fp8_blocks_equal_decoding_by_hand() -> None:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 256, (130, 257), dtype=torch.uint8, generator=generator)
    # 0x7f and 0xff are NaN.
    codes = torch.where(codes & 0x7F == 0x7F, 0, codes)
    scales = torch.rand(2, 3, generator=generator) + 0.5
    got = fp8_blocks(codes.view(torch.float8_e4m3fn), scales)
    for row in (0, 1, 127, 128, 129):
        for column in range(257):
            value = e4m3(int(codes[row, column])) * float(scales[row // 128, column // 128])
            assert float(got[row, column]) == pytest.approx(value, rel=1e-6)
    with pytest.raises(FormatError, match="do not fit scales"):
        fp8_blocks(codes.view(torch.float8_e4m3fn), scales.t())


def test_factors_that_are_powers_of_two_may_be_stored_as_exponents() -> None:
    codes = torch.arange(2 * 256, dtype=torch.uint8).view(2, 256)
    codes = torch.where(codes & 0x7F == 0x7F, 0, codes)
    exponents = torch.tensor([[0, 140]], dtype=torch.uint8)
    got = fp8_blocks(codes.view(torch.float8_e4m3fn), exponents.view(torch.float8_e8m0fnu))
    assert got.dtype == torch.float32
    by_hand = [
        [e4m3(int(codes[row, column])) * 2.0 ** ((0, 140)[column // 128] - 127) for column in range(256)]
        for row in range(2)
    ]
    assert torch.equal(got, torch.tensor(by_hand))


def test_stacked_fp8_blocks_are_each_experts_own() -> None:
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 120, (3, 130, 140), dtype=torch.uint8, generator=generator)
    scales = torch.rand(3, 2, 2, generator=generator) + 0.5
    got = fp8_blocks(codes.view(torch.float8_e4m3fn), scales)
    for expert in range(3):
        assert torch.equal(got[expert], fp8_blocks(codes[expert].view(torch.float8_e4m3fn), scales[expert]))
    with pytest.raises(FormatError, match="do not fit scales"):
        fp8_blocks(codes.view(torch.float8_e4m3fn), scales[:2])


def test_mxfp4_equals_decoding_by_hand() -> None:
    generator = torch.Generator().manual_seed(4)
    blocks = torch.randint(0, 256, (2, 3, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 140, (2, 3, 2), dtype=torch.uint8, generator=generator)
    got = mxfp4(blocks, scales)
    assert got.shape == (2, 3, 64)
    for expert, row, group in torch.cartesian_prod(
        torch.arange(2), torch.arange(3), torch.arange(2)
    ).tolist():
        factor = 2.0 ** (int(scales[expert, row, group]) - 127)
        for place in range(16):
            byte = int(blocks[expert, row, group, place])
            low, high = got[expert, row, 32 * group + 2 * place : 32 * group + 2 * place + 2].tolist()
            assert (low, high) == (e2m1(byte & 15) * factor, e2m1(byte >> 4) * factor)


def test_mxfp4_equals_transformers() -> None:
    integration = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(5)
    blocks = torch.randint(0, 256, (2, 6, 1, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(120, 130, (2, 6, 1), dtype=torch.uint8, generator=generator)
    theirs = integration.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(mxfp4(blocks, scales).transpose(-1, -2), theirs)


def rewritten(
    model: Decoder, directory: Path, change: dict[str, Tensor], gone: set[str], method: str
) -> Path:
    """The model's directory as one file, with some tensors exchanged for quantised ones."""
    moe_core.save(model, directory)
    tensors: dict[str, Tensor] = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (directory / "model.safetensors.index.json").unlink()
    kept = {name: tensor for name, tensor in tensors.items() if name not in gone}
    save_file({**kept, **change}, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": method}})
    )
    return directory


@pytest.mark.parametrize(
    "scale", [torch.tensor([[0.03]]), torch.tensor([[2.0**-5]]).to(torch.float8_e8m0fnu)], ids=["F32", "E8M0"]
)
@torch.no_grad()
def test_a_directory_in_fp8_loads_as_what_it_stands_for(scale: Tensor, tmp_path: Path) -> None:
    model = random_decoder(tiny_family("deepseek_v3"), 1, STD)
    name, expert = "model.layers.1.mlp.experts.2.up_proj.weight", 2
    inner = model.spec.moe.moe_intermediate_size
    codes = (model.layers[1].mlp.experts.gate_up_E2FD[expert, inner:] / scale.float()).to(torch.float8_e4m3fn)
    quantised = rewritten(model, tmp_path / "m", {name: codes, name + "_scale_inv": scale}, set(), "fp8")
    loaded = moe_core.load(quantised)
    assert not torch.equal(loaded(IDS), model(IDS))
    model.layers[1].mlp.experts.gate_up_E2FD[expert, inner:] = codes.float() * scale.float()
    assert torch.equal(loaded(IDS), model(IDS))


def test_a_scale_that_is_missing_or_superfluous_is_named(tmp_path: Path) -> None:
    model = random_decoder(tiny_family("deepseek_v3"), 1, STD)
    name = "model.layers.1.self_attn.o_proj.weight"
    codes = {name: model.layers[1].attention.o_proj.weight.detach().to(torch.float8_e4m3fn)}
    other = {name.replace("o_proj", "x_proj") + "_scale_inv": torch.ones(1, 1)}
    own = {name + "_scale_inv": torch.ones(1, 1)}
    bad = rewritten(model, tmp_path / "a", {**codes, **other}, set(), "fp8")
    with pytest.raises(FormatError, match="hold unknown 1 tensors, first .*x_proj.weight_scale_inv"):
        moe_core.load(bad)
    bad = rewritten(
        model,
        tmp_path / "b",
        {**codes, **own, "model.layers.2" + name[14:]: codes[name].clone()},
        set(),
        "fp8",
    )
    with pytest.raises(FormatError, match="o_proj.weight: is quantised, but the files lack"):
        moe_core.load(bad)
    halves = {name + "_scale_inv": torch.ones(1, 1, dtype=torch.float16)}
    bad = rewritten(model, tmp_path / "c", {**codes, **halves}, set(), "fp8")
    with pytest.raises(FormatError, match="scale_inv: has dtype F16; it must be F32 or F8_E8M0"):
        moe_core.load(bad)


@torch.no_grad()
def test_a_directory_in_mxfp4_loads_as_what_it_stands_for(tmp_path: Path) -> None:
    spec = tiny_family("gpt_oss")
    model = random_decoder(spec, 1, STD)
    generator = torch.Generator().manual_seed(6)
    experts, width, inner = spec.moe.num_experts, spec.hidden_size, spec.moe.moe_intermediate_size
    change: dict[str, Tensor] = {}
    for part, rows, columns in (("gate_up_proj", 2 * inner, width), ("down_proj", width, inner)):
        there = f"model.layers.1.mlp.experts.{part}"
        shape = (experts, rows, columns // 32)
        change[there + "_blocks"] = torch.randint(
            0, 256, (*shape, 16), dtype=torch.uint8, generator=generator
        )
        change[there + "_scales"] = torch.randint(122, 126, shape, dtype=torch.uint8, generator=generator)
    gone = {name.removesuffix("_blocks") for name in change if name.endswith("_blocks")}
    loaded = moe_core.load(rewritten(model, tmp_path / "m", change, gone, "mxfp4"))
    there, packed = "model.layers.1.mlp.experts.", model.layers[1].mlp.experts
    both = mxfp4(change[there + "gate_up_proj_blocks"], change[there + "gate_up_proj_scales"])
    # Rows of gate and up come in turn.
    packed.gate_up_E2FD.copy_(torch.cat([both[:, 0::2], both[:, 1::2]], dim=1))
    packed.down_EDF.copy_(mxfp4(change[there + "down_proj_blocks"], change[there + "down_proj_scales"]))
    assert torch.equal(loaded(IDS), model(IDS))
    packed.down_EDF[[0, 1]] = packed.down_EDF[[1, 0]]
    assert not torch.equal(loaded(IDS), model(IDS))


@torch.no_grad()
def test_layers_that_predict_further_tokens_are_not_read(tmp_path: Path) -> None:
    model = random_decoder(tiny_family("deepseek_v3"), 1, STD)
    beyond = f"model.layers.{model.spec.num_hidden_layers}."
    further = {beyond + "eh_proj.weight": torch.ones(2, 2), beyond + "mlp.gate.weight": torch.ones(2, 2)}
    plain = rewritten(model, tmp_path / "m", further, set(), "fp8")
    assert torch.equal(moe_core.load(plain)(IDS), model(IDS))
    del further[beyond + "eh_proj.weight"]
    with pytest.raises(FormatError, match="hold unknown 1 tensors"):
        moe_core.load(rewritten(model, tmp_path / "n", further, set(), "fp8"))
