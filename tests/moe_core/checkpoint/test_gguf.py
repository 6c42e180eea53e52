"""GGUF files: imported rightly, and refused in a sentence when they are broken or hostile."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_core
from moe_core.checkpoint.gguf import describe_gguf, import_gguf, read_gguf
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.errors import CheckpointError, FormatError
from moe_core.model.families import slots_of
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec
from tests.moe_core.checkpoint.gguf_files import write_llama
from tests.moe_core.checkpoint.hostile import verdicts_of
from tests.moe_core.tiny import STD, tiny_llama, tiny_mixtral


def checkpoint_of(spec: ModelSpec, seed: int = 5) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    model = random_decoder(spec, seed, STD)
    parameters = dict(model.named_parameters())
    return model, {
        slot.tensor: slot.of(parameters[slot.parameter]).detach().numpy() for slot in slots_of(spec)
    }


@pytest.mark.parametrize("spec", [tiny_llama(), tiny_mixtral()], ids=lambda spec: spec.family)
def test_an_imported_model_computes_what_the_original_did(spec: ModelSpec, tmp_path: Path) -> None:
    model, tensors = checkpoint_of(spec)
    path = write_llama(tmp_path / "m.gguf", spec, tensors)
    imported = import_gguf(path, tmp_path / "out", dtype="float32")
    spec = spec.model_copy(update={"eos_token_ids": (2, 0)})
    assert imported == spec
    ids = torch.arange(1, 21).view(2, 10)
    difference = (moe_core.load(tmp_path / "out")(ids) - model(ids)).abs().max()
    assert difference < 1e-5 * model(ids).abs().max()


@torch.no_grad()
def test_a_file_is_loaded_as_its_import_is(tmp_path: Path) -> None:
    spec = tiny_mixtral()
    path = write_llama(tmp_path / "m.gguf", spec, checkpoint_of(spec)[1])
    import_gguf(path, tmp_path / "out", dtype="float32")
    ids = torch.arange(1, 21).view(2, 10)
    loaded, imported = moe_core.load(path), moe_core.load(tmp_path / "out")
    assert torch.equal(loaded(ids), imported(ids))
    assert moe_core.load(str(path), "bfloat16").dtype == torch.bfloat16


def test_a_file_that_cannot_be_loaded_names_the_way_out(tmp_path: Path) -> None:
    spec = tiny_llama()
    path = write_llama(tmp_path / "m.gguf", spec, checkpoint_of(spec)[1])
    with pytest.raises(CheckpointError, match=r"the GGUF file m\.gguf; .*moe_core\.load.*import_gguf"):
        moe_core.load(tmp_path)
    with pytest.raises(CheckpointError, match="import_gguf"):
        moe_core.load(path, expected_hashes={"m.gguf": "0" * 64})
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match="is a file; name the directory that holds config.json"):
        moe_core.load(other)


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    spec = tiny_llama()
    import_gguf(write_llama(tmp_path / "m.gguf", spec, checkpoint_of(spec)[1]), tmp_path / "out")
    tokenizer = Tokenizer(tmp_path / "out")
    ids = tokenizer.encode("cab!")
    assert len(ids) == 3
    assert tokenizer.decode(ids) == "cab!"
    assert tokenizer.eos_ids == (2, 0)
    assert tokenizer.format_chat([{"role": "user", "content": "!"}])[0] == 1


def test_it_says_what_a_file_says_of_itself(tmp_path: Path) -> None:
    spec = tiny_llama()
    said = describe_gguf(write_llama(tmp_path / "m.gguf", spec, checkpoint_of(spec)[1]))
    assert said["architecture"] == "llama"
    assert said["stored_as"] == {"F32": said["tensors"]}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    spec = tiny_llama(
        num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, head_dim=4
    )
    _, tensors = checkpoint_of(spec.model_copy(update={"num_key_value_heads": 2}))
    path = write_llama(tmp_path_factory.mktemp("gguf") / "m.gguf", spec, tensors)
    return path.read_bytes()


def read_all(path: Path) -> None:
    with read_gguf(path) as file:
        for name in file.tensors:
            file.dequantised(name)


def head_end(content: bytes, tmp_path: Path) -> int:
    path = tmp_path / "probe.gguf"
    path.write_bytes(content)
    with read_gguf(path) as file:
        return min(tensor.begin for tensor in file.tensors.values())


def test_every_byte_of_the_head_may_be_flipped_without_a_crash(honest: bytes, tmp_path: Path) -> None:
    end, path = head_end(honest, tmp_path), tmp_path / "flipped.gguf"
    verdicts = {"accepted": 0, "refused": 0}
    for place in range(end):
        content = bytearray(honest)
        content[place] ^= 0x80 if place % 2 else 0x01
        path.write_bytes(content)
        try:
            read_all(path)
            verdicts["accepted"] += 1
        except CheckpointError as error:
            assert len(str(error)) < 600
            verdicts["refused"] += 1
    assert verdicts["refused"] > end // 10


def test_imports_of_flipped_files_are_accepted_or_refused_cleanly(honest: bytes, tmp_path: Path) -> None:
    end, path = head_end(honest, tmp_path), tmp_path / "flipped.gguf"
    for place in range(0, end, 7):
        content = bytearray(honest)
        content[place] ^= 0x04
        path.write_bytes(content)
        out = tmp_path / f"out-{place}"
        try:
            import_gguf(path, out)
        except CheckpointError:
            assert not out.exists()


def test_every_truncation_is_refused(honest: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    # The last tensor may be followed by padding, which nothing needs.
    for length in range(0, len(honest) - 64, 11):
        path.write_bytes(honest[:length])
        with pytest.raises(FormatError):
            read_all(path)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_after_the_magic_are_refused(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.gguf"
    path.write_bytes(b"GGUF" + data)
    try:
        read_all(path)
    except CheckpointError as error:
        assert len(str(error)) < 600


def head(num_tensors: int, num_keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + rest


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: list[int], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + dims + struct.pack("<IQ", kind, offset)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "other magic": (b"GGML" + b"\0" * 40, "does not start with GGUF"),
    "version 2": (head(0, 0, version=2), "version 2"),
    "big endian": (head(0, 0, version=0x03000000), r"is big-endian \(GGUF version 3\).* gguf-convert-endian"),
    "many tensors": (head(1 << 60, 0), "number of tensors"),
    "many keys": (head(0, 1 << 60), "number of keys"),
    "long key": (head(0, 1, struct.pack("<Q", 1 << 62)), "length of a key"),
    "long text": (head(0, 1, key(b"a", 8, struct.pack("<Q", 1 << 40))), "length of the text"),
    "long array": (head(0, 1, key(b"a", 9, struct.pack("<IQ", 4, 1 << 40))), "length of 'a'"),
    "array past the end": (head(0, 1, key(b"a", 9, struct.pack("<IQ", 4, 1 << 20))), "are declared"),
    "texts past the end": (head(0, 1, key(b"a", 9, struct.pack("<IQ", 8, 1 << 20))), "more than the head"),
    "nested array": (head(0, 1, key(b"a", 9, struct.pack("<IQ", 9, 1))), "array of the type 9"),
    "unknown type": (head(0, 1, key(b"a", 77, b"")), "unknown type 77"),
    "bad bool": (head(0, 1, key(b"a", 7, b"\2")), "a bool holds the byte 2"),
    "bad utf-8": (head(0, 1, key(b"\xff", 4, b"\0" * 4)), "not UTF-8"),
    "repeated key": (head(0, 2, key(b"a", 0, b"\0") * 2), "appears twice"),
    "alignment 0": (head(0, 1, key(b"general.alignment", 4, b"\0" * 4)), "general.alignment"),
    "alignment 3": (head(0, 1, key(b"general.alignment", 4, b"\3\0\0\0")), "general.alignment"),
    "alignment text": (
        head(0, 1, key(b"general.alignment", 8, struct.pack("<Q", 1) + b"8")),
        "general.alignment",
    ),
    "path as name": (head(1, 0, tensor(b"../x", [8], 0, 0)), "must match"),
    "nine axes": (head(1, 0, tensor(b"t", [1] * 9, 0, 0)), "9 axes"),
    "no axes": (head(1, 0, tensor(b"t", [], 0, 0)), "0 axes"),
    "empty axis": (head(1, 0, tensor(b"t", [0], 0, 0)), "0 elements"),
    "too many elements": (head(1, 0, tensor(b"t", [1 << 30, 1 << 30], 0, 0)), "elements"),
    "unknown quant": (head(1, 0, tensor(b"t", [32], 99, 0)), "stored as type 99; .* Hugging Face directory"),
    "unread quant": (head(1, 0, tensor(b"t", [256], 23, 0)), "stored as IQ4_XS; read are F32, .*Q4_K_M"),
    "half a block": (head(1, 0, tensor(b"t", [33], 2, 0)), "no multiple of Q4_0's 32"),
    "far offset": (head(1, 0, tensor(b"t", [8], 0, 1 << 62)), "follows what is before"),
    "no data": (head(1, 0, tensor(b"t", [8], 0, 0)), "but the file has"),
    "overlap": (
        head(2, 0, tensor(b"t", [8], 0, 0) + tensor(b"u", [8], 0, 0)) + b"\0" * 200,
        "follows what is before",
    ),
    "left over": (head(1, 0, tensor(b"t", [8], 0, 0)) + b"\0" * 200, "follow the last tensor"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_head_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    content, sentence = HOSTILE[case]
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(FormatError, match=sentence) as raised:
        read_all(tmp_path / "x.gguf")
    assert len(str(raised.value)) < 600


def test_hostile_files_take_little_memory(tmp_path: Path) -> None:
    texts = struct.pack("<Q", 2) + b"ab"
    contents = {
        "long-array": head(0, 1, key(b"a", 9, struct.pack("<IQ", 0, 4 << 20))) + b"\0" * (4 << 20),
        "many-arrays": head(
            0,
            9,
            b"".join(key(b"%d" % i, 9, struct.pack("<IQ", 0, 4 << 20)) + b"\0" * (4 << 20) for i in range(9)),
        ),
        "many-texts": head(0, 1, key(b"a", 9, struct.pack("<IQ", 8, 3 << 19))) + texts * (3 << 19),
        "empty-texts": head(
            0,
            2,
            b"".join(key(b"%d" % i, 9, struct.pack("<IQ", 8, 1 << 19)) + b"\0" * (4 << 20) for i in range(2)),
        ),
    }
    files = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        files.append(tmp_path / name)
    verdicts, grown_mb = verdicts_of("gguf_header", "read_head", files)
    assert verdicts[2] != "accepted"
    assert grown_mb < 300, f"peak memory grew by {grown_mb} MB"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("general.architecture", "qwen2"), "architecture 'qwen2' is not served"),
        (("llama.block_count", 1 << 40), "block_count"),
        (("llama.attention.head_count", "six"), "must be a number"),
        (("llama.rope.scaling.type", "longrope"), "scaled"),
        (("llama.rope.dimension_count", 2), "only a part of each head"),
        (("tokenizer.ggml.model", "rwkv"), "tokenizer 'rwkv' is not served"),
        (("tokenizer.ggml.model", "llama"), "tokenizer.ggml.scores must be 97 numbers"),
        (("tokenizer.ggml.pre", "martian"), "splitter 'martian'"),
        (("tokenizer.ggml.merges", ["x y"]), "merge 'x y'"),
        (("tokenizer.ggml.tokens", ["a", "a"]), "twice"),
        (("tokenizer.ggml.eos_token_id", 4000), "outside the vocabulary"),
    ],
)
def test_metadata_that_is_not_served_is_named(
    change: tuple[str, Any], sentence: str, honest: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_core.checkpoint import gguf_parts as module
    from moe_core.checkpoint.gguf_header import GgufHead, read_head

    def changed(file: Any, name: str) -> GgufHead:
        told = read_head(file, name)
        return GgufHead({**told.metadata, change[0]: change[1]}, told.tensors)

    monkeypatch.setattr(module, "read_head", changed)
    (tmp_path / "m.gguf").write_bytes(honest)
    with pytest.raises(FormatError, match=sentence):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
