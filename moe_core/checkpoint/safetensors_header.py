"""The header of a safetensors file, checked before a byte of weights is read.

Rules: at most 8 MiB of header and 65,536 tensors; plain names, none twice; at most 8 axes; every length exactly
what dtype and shape say; the tensors fill the data part from end to end without overlap or hole.
Source: https://github.com/huggingface/safetensors (format); the limits are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from moe_core.checkpoint.files import file_size, parse_json_object, read_exactly
from moe_core.errors import FormatError

MAX_HEADER_BYTES = 8 * 1024 * 1024
MAX_TENSORS = 65_536
# Three for each tensor, and some for free text.
MAX_BRACKETS = 4 * MAX_TENSORS
MAX_AXES = 8
MAX_METADATA_ITEMS = 1024
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}\Z")

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: absolute byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Length of the tensor's data."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """Every tensor of a file by name, and the free text beside them."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(file: BinaryIO, name: str) -> SafetensorsHeader:
    """Read and check the header of an open file; FormatError, naming `name`, for any broken rule."""
    size = file_size(file)
    if size < 8:
        raise FormatError(f"{name}: has {size} bytes; a safetensors file has at least 8")
    prefix = bytearray(8)
    read_exactly(file, 0, memoryview(prefix))
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"{name}: declares a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    if 8 + length > size:
        raise FormatError(f"{name}: declares a header of {length} bytes but has {size - 8} after the prefix")
    raw = bytearray(length)
    read_exactly(file, 8, memoryview(raw))
    return parse_header(bytes(raw), data_start=8 + length, file_bytes=size, name=name)


def parse_header(raw: bytes, *, data_start: int, file_bytes: int, name: str) -> SafetensorsHeader:
    """Check header bytes against the length of the file that they describe."""
    if not raw.startswith(b"{"):
        raise FormatError(f"{name}: the header does not start with '{{'")
    # Counting first keeps the parsed tree small: an empty list is 2 bytes in the file and 72 in memory.
    if raw.count(b"data_offsets") > MAX_TENSORS or raw.count(b"[") + raw.count(b"{") > MAX_BRACKETS:
        raise FormatError(f"{name}: declares more than {MAX_TENSORS} tensors")
    entries = parse_json_object(raw, name, MAX_HEADER_BYTES)
    metadata = _metadata(entries.pop("__metadata__", {}), name)
    if len(entries) > MAX_TENSORS:
        raise FormatError(f"{name}: declares {len(entries)} tensors; at most {MAX_TENSORS} are read")
    tensors = {key: _tensor(key, entry, data_start, name) for key, entry in entries.items()}
    _check_tiling(tensors, data_start, file_bytes, name)
    return SafetensorsHeader(tensors, metadata)


def _metadata(value: Any, name: str) -> dict[str, str]:
    fits = isinstance(value, dict) and len(value) <= MAX_METADATA_ITEMS
    if not fits or not all(isinstance(item, str) for item in value.values()):
        raise FormatError(f"{name}: __metadata__ must map at most {MAX_METADATA_ITEMS} names to text")
    return dict(value)


def _tensor(key: str, entry: Any, data_start: int, name: str) -> TensorInfo:
    if not TENSOR_NAME.match(key):
        raise FormatError(f"{name}: tensor name {key[:80]!r} must match {TENSOR_NAME.pattern}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{name}: {key} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise FormatError(f"{name}: {key} has dtype {str(dtype)[:40]!r}; known are {', '.join(DTYPE_BYTES)}")
    if not _naturals(shape) or len(shape) > MAX_AXES:
        raise FormatError(f"{name}: {key} must have a shape of at most {MAX_AXES} natural numbers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise FormatError(f"{name}: {key} must have two natural numbers as data_offsets")
    begin, end = offsets
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise FormatError(f"{name}: {key} spans {end - begin} bytes, but {dtype} {shape} needs {expected}")
    return TensorInfo(dtype, tuple(shape), data_start + begin, data_start + end)


def _naturals(value: Any) -> bool:
    # bool is an int to Python, not to us; 2^48 bounds every product far below trouble.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _check_tiling(tensors: Mapping[str, TensorInfo], data_start: int, file_bytes: int, name: str) -> None:
    cursor = data_start
    for key, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != cursor:
            kind = "overlaps the tensor before it" if info.begin < cursor else "leaves a hole before it"
            raise FormatError(f"{name}: {key} {kind} (starts at {info.begin}, expected {cursor})")
        cursor = info.end
    if cursor != file_bytes:
        raise FormatError(f"{name}: the tensors end at byte {cursor}, but the file has {file_bytes}")
