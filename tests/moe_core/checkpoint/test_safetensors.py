"""safetensors: equal to the reference library both ways; hostile headers are refused in a sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.checkpoint.safetensors import SafetensorsFile, write_safetensors
from moe_core.checkpoint.safetensors_header import MAX_HEADER_BYTES, parse_header
from moe_core.errors import CheckpointError, FormatError
from tests.moe_core.checkpoint.hostile import verdicts_of

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def file_bytes(header: dict[str, Any] | bytes, data: bytes = b"\0" * 24) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def parse(header: dict[str, Any] | bytes, data_bytes: int = 24) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    parse_header(raw, data_start=8 + len(raw), file_bytes=8 + len(raw) + data_bytes, name="x")


TENSORS = {
    "b.half": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "a.full": torch.randn(3, 1, 2),
    "c.int": torch.arange(5),
    "d.empty": torch.empty(0, 4),
    "e.scalar": torch.tensor(2.5, dtype=torch.float16),
}


def test_the_reference_library_reads_what_we_write(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", TENSORS)
    theirs = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert theirs.keys() == TENSORS.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in TENSORS.items())


def test_we_read_what_the_reference_library_writes(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.header.metadata == {"format": "pt"}
        assert file.header.tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert torch.equal(file.tensor(name), tensor)
            assert file.tensor(name).dtype == tensor.dtype


def test_reading_into_a_slice_converts_and_touches_nothing_else(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", TENSORS)
    target = torch.full((4, 3), -1.0)
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        file.read_into("b.half", target[1:3])
        with pytest.raises(FormatError, match=r"has shape \[2, 3\], expected \[3, 3\]"):
            file.read_into("b.half", target[:3])
    assert target.tolist() == [[-1.0] * 3, [0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [-1.0] * 3]


def test_equal_tensors_are_equal_bytes_whatever_their_order(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", TENSORS)
    write_safetensors(tmp_path / "y", dict(reversed(TENSORS.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


HOSTILE: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "not json": (b"{nope", "not JSON"),
    "no object": (b"[1, 2]", "does not start with"),
    "repeated key": (b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2), "twice"),
    "path as name": ({"../../etc/passwd": F32}, "must match"),
    "long name": ({"a" * 201: F32}, "must match"),
    "newline in name": ({"a\n": F32}, "must match"),
    "extra field": ({"a": {**F32, "code": "x"}}, "exactly dtype, shape"),
    "unknown dtype": ({"a": {**F32, "dtype": "PY"}}, "dtype 'PY'"),
    "dtype is a list": ({"a": {**F32, "dtype": ["F32"]}}, "dtype"),
    "nine axes": ({"a": {**F32, "shape": [1] * 7 + [2, 3]}}, "at most 8"),
    "negative axis": ({"a": {**F32, "shape": [-2, -3]}}, "natural"),
    "bool axis": ({"a": {**F32, "shape": [True, 6]}}, "natural"),
    "float axis": ({"a": {**F32, "shape": [2.0, 3]}}, "natural"),
    "shape too large": ({"a": {**F32, "shape": [1 << 47, 1 << 47]}}, "needs"),
    "huge number": (b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,24]}}' % (b"9" * 5000), "not JSON"),
    "too short": ({"a": {**F32, "data_offsets": [0, 20]}}, "needs 24"),
    "backwards": ({"a": {**F32, "data_offsets": [24, 0]}}, "needs 24"),
    "three offsets": ({"a": {**F32, "data_offsets": [0, 24, 24]}}, "two natural"),
    "beyond the end": ({"a": F32, "b": {**F32, "data_offsets": [24, 48]}}, "but the file has"),
    "overlap": ({"a": F32, "b": {**F32, "data_offsets": [12, 36]}}, "overlaps"),
    "hole": ({"a": {**F32, "shape": [3], "data_offsets": [12, 24]}}, "hole"),
    "data left over": ({"a": {**F32, "shape": [3], "data_offsets": [0, 12]}}, "but the file has"),
    "metadata not text": ({"__metadata__": {"a": 1}, "b": F32}, "__metadata__"),
    "nan": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,24]}}', "NaN"),
    "deep": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "deep"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_in_a_sentence(case: str) -> None:
    header, sentence = HOSTILE[case]
    with pytest.raises(FormatError, match=sentence) as raised:
        parse(header)
    assert len(str(raised.value)) < 600


def test_an_honest_header_is_accepted() -> None:
    parse({"__metadata__": {"format": "pt"}, "a": F32})
    parse({}, data_bytes=0)


def test_hostile_files_take_little_memory(tmp_path: Path) -> None:
    many = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(70_000)}
    contents = {
        "length-bomb": (1 << 62).to_bytes(8, "little") + b"{}",
        "length-just-over": (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * 64,
        "empty": b"",
        "seven-bytes": b"\0" * 7,
        "many-tensors": file_bytes(many, b""),
        "nested": file_bytes(b'{"a":' * 1_000_000, b""),
        "long-string": file_bytes(b'{"' + b"a" * 8_000_000 + b'":1}', b""),
        "many-small-values": file_bytes(b'{"a":[' + b"1," * 4_000_000 + b"1]}", b""),
        "many-lists": file_bytes(b'{"a":[' + b"[]," * 2_600_000 + b"[]]}", b""),
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    }
    files = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        files.append(tmp_path / name)
    verdicts, grown_mb = verdicts_of("safetensors_header", "read_header", files)
    assert "accepted" not in verdicts
    assert grown_mb < 200, f"peak memory grew by {grown_mb} MB"


def honest() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a": F32,
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    return file_bytes(header, bytes(range(32)))


def read_all(path: Path) -> None:
    with SafetensorsFile(path) as file:
        for name in file.header.tensors:
            file.tensor(name)


@settings(max_examples=400, deadline=None)
@given(place=st.integers(0, len(honest()) - 1), value=st.integers(0, 255))
def test_a_flipped_byte_is_accepted_or_refused_cleanly(tmp_path_factory: Any, place: int, value: int) -> None:
    content = bytearray(honest())
    content[place] = value
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)
    try:
        read_all(path)
    except CheckpointError as error:
        assert len(str(error)) < 600


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    for length in range(len(honest())):
        path.write_bytes(honest()[:length])
        with pytest.raises(FormatError):
            read_all(path)


def test_a_link_is_refused_when_asked_and_a_pipe_always(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(honest())
    (tmp_path / "link").symlink_to(tmp_path / "real")
    read_all(tmp_path / "link")
    with pytest.raises(CheckpointError, match="instead of linking"):
        SafetensorsFile(tmp_path / "link", follow_links=False)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFile(tmp_path / "pipe")
