"""The head of a GGUF v3 file, read with bounds before anything is believed.

Rules: little-endian version 3; at most 65,536 tensors and 4,096 keys, none twice; at most 48 MiB of head; every
length checked against the bytes that remain; tensors lie in the data part without overlap, and only alignment
padding lies between them.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (format); the limits are ours.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from moe_core.checkpoint.files import file_size, read_exactly
from moe_core.checkpoint.gguf_quants import QUANT_BY_ID, UNREAD, Quant
from moe_core.errors import FormatError

MAGIC = b"GGUF"
VERSION = 3
MAX_HEAD_BYTES = 48 * 1024 * 1024
READ_AHEAD_BYTES = 1024 * 1024
MAX_TENSORS = 65_536
MAX_KEYS = 4096
MAX_KEY_BYTES = 256
MAX_STRING_BYTES = 1024 * 1024
MAX_TEXTS = 1024 * 1024
MAX_ARRAY_ITEMS = 4 * 1024 * 1024
MAX_AXES = 4
MAX_ELEMENTS = 1 << 40
DEFAULT_ALIGNMENT = 32
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}\Z")

STRING, ARRAY, BOOL, FLOAT32 = 8, 9, 7, 6
SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
ARRAY_DTYPES: Mapping[int, str] = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: shape in row-major order (the reverse of the file's), and where its bytes lie, in which part."""

    name: str
    shape: tuple[int, ...]
    quant: Quant
    begin: int
    end: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class GgufHead:
    """Metadata and tensors of a GGUF file."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


class _Cursor:
    """Walks over the head, reading the file as it goes; every step is checked against what remains."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name, self.at = file, name, 0
        self.size = file_size(file)
        self._buffer = bytearray()
        self._texts_left = MAX_TEXTS

    def fail(self, why: str) -> FormatError:
        return FormatError(f"{self.name}: {why} (at byte {self.at})")

    @property
    def remaining(self) -> int:
        return min(self.size, MAX_HEAD_BYTES) - self.at

    def take(self, count: int) -> bytes:
        if count > self.remaining:
            raise self.fail(f"{count} bytes are declared, {self.remaining} may follow in the head")
        end = self.at + count
        if end > len(self._buffer):
            self._read_up_to(end)
        piece = bytes(memoryview(self._buffer)[self.at : end])
        self.at = end
        return piece

    def _read_up_to(self, end: int) -> None:
        start = len(self._buffer)
        piece = bytearray(min(max(end - start, READ_AHEAD_BYTES), self.size - start))
        read_exactly(self.file, start, memoryview(piece))
        self._buffer += piece

    def scalar(self, kind: int) -> Any:
        layout = SCALARS[kind]
        piece = self.take(layout.size)
        if kind == BOOL and piece not in (b"\0", b"\1"):
            raise self.fail(f"a bool holds the byte {piece[0]}")
        value = layout.unpack(piece)[0]
        return as_written(value) if kind == FLOAT32 else value

    def natural(self, limit: int, what: str) -> int:
        value: int = self.scalar(10)
        if value > limit:
            raise self.fail(f"{what} is {value}; at most {limit} is read")
        return value

    def text(self, limit: int, what: str) -> str:
        length = self.natural(limit, f"the length of {what}")
        self._texts_left -= 1
        if self._texts_left < 0:
            raise self.fail(f"the head holds more than {MAX_TEXTS} texts")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.text(MAX_STRING_BYTES, f"the text of {key}")
        if kind == ARRAY:
            return self._array(key)
        if kind in SCALARS:
            return self.scalar(kind)
        raise self.fail(f"{key} has the unknown type {kind}")

    def _array(self, key: str) -> list[str] | NDArray[Any]:
        kind: int = self.scalar(4)
        count = self.natural(MAX_ARRAY_ITEMS, f"the length of {key}")
        if kind == STRING:
            if count * 8 > self.remaining:
                raise self.fail(f"{key} declares {count} texts, more than the head can hold")
            return [self.text(MAX_STRING_BYTES, f"a text of {key}") for _ in range(count)]
        if kind not in SCALARS:
            raise self.fail(f"{key} is an array of the type {kind}, which is not read")
        return np.frombuffer(self.take(count * SCALARS[kind].size), dtype=ARRAY_DTYPES[kind])


def as_written(value: float) -> float:
    """The number of fewest digits that a float32 stands for: what config.json says where a file has its float32.

    1e-6, and not 9.999999974752427e-07.
    """
    return float(str(np.float32(value)))


def read_head(file: BinaryIO, name: str) -> GgufHead:
    """Read and check the head of an open file; FormatError, naming `name`, for any broken rule."""
    cursor = _Cursor(file, name)
    num_tensors, num_keys = _preamble(cursor)
    metadata = _metadata(cursor, num_keys)
    alignment = _alignment(cursor, metadata)
    declared = [_declared(cursor) for _ in range(num_tensors)]
    data_start = _padded(cursor.at, alignment)
    tensors = _placed(cursor, declared, data_start, alignment)
    return GgufHead(metadata, tensors)


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    if cursor.take(4) != MAGIC:
        raise cursor.fail("does not start with GGUF")
    version = cursor.scalar(4)
    if version and not version & 0xFFFF:
        raise cursor.fail(
            f"is big-endian (GGUF version {version >> 24}); little-endian files are read: convert it with "
            "gguf-convert-endian FILE little, of the gguf package"
        )
    if version != VERSION:
        raise cursor.fail(f"is of GGUF version {version}; version {VERSION}, little-endian, is read")
    return cursor.natural(MAX_TENSORS, "the number of tensors"), cursor.natural(
        MAX_KEYS, "the number of keys"
    )


def _metadata(cursor: _Cursor, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.text(MAX_KEY_BYTES, "a key")
        if key in metadata:
            raise cursor.fail(f"the key {key!r} appears twice")
        metadata[key] = cursor.value(cursor.scalar(4), repr(key))
    return metadata


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    fits = type(alignment) is int and 8 <= alignment <= 65_536 and alignment & (alignment - 1) == 0
    if not fits:
        raise cursor.fail(f"general.alignment is {alignment!r}; a power of two from 8 to 65536 is read")
    return int(alignment)


def _declared(cursor: _Cursor) -> tuple[str, tuple[int, ...], Quant, int]:
    name = cursor.text(MAX_KEY_BYTES, "a tensor name")
    if not TENSOR_NAME.match(name):
        raise cursor.fail(f"tensor name {name[:80]!r} must match {TENSOR_NAME.pattern}")
    num_axes: int = cursor.scalar(4)
    if not 1 <= num_axes <= MAX_AXES:
        raise cursor.fail(f"{name} has {num_axes} axes; 1 to {MAX_AXES} are read")
    shape = tuple(cursor.natural(MAX_ELEMENTS, f"an axis of {name}") for _ in range(num_axes))[::-1]
    if not 1 <= math.prod(shape) <= MAX_ELEMENTS:
        raise cursor.fail(f"{name} has {math.prod(shape)} elements; 1 to {MAX_ELEMENTS} are read")
    quant = _quant(cursor, name)
    if shape[-1] % quant.block_elements:
        raise cursor.fail(
            f"{name} has rows of {shape[-1]}, no multiple of {quant.name}'s {quant.block_elements}"
        )
    return name, shape, quant, cursor.natural((1 << 63) - 1, f"the offset of {name}")


def _quant(cursor: _Cursor, tensor: str) -> Quant:
    kind: int = cursor.scalar(4)
    if kind in QUANT_BY_ID:
        return QUANT_BY_ID[kind]
    known = ", ".join(quant.name for quant in QUANT_BY_ID.values())
    raise cursor.fail(
        f"{tensor} is stored as {UNREAD.get(kind, f'type {kind}')}; read are {known}: take a file of the model in one of "
        "them (Q8_0, Q4_K_M), or its Hugging Face directory"
    )


def _placed(
    cursor: _Cursor,
    declared: list[tuple[str, tuple[int, ...], Quant, int]],
    data_start: int,
    alignment: int,
) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    expected = 0
    for name, shape, quant, offset in sorted(declared, key=lambda item: item[3]):
        if name in tensors:
            raise cursor.fail(f"the tensor {name!r} appears twice")
        if offset != expected:
            raise cursor.fail(f"{name} starts at {offset} of the data; {expected} follows what is before it")
        length = math.prod(shape) // quant.block_elements * quant.block_bytes
        begin = data_start + offset
        if begin + length > cursor.size:
            raise cursor.fail(f"{name} ends at byte {begin + length}, but the file has {cursor.size}")
        tensors[name] = GgufTensor(name, shape, quant, begin, begin + length)
        expected = offset + _padded(length, alignment)
    if cursor.size > data_start + expected:
        raise cursor.fail(f"{cursor.size - data_start - expected} bytes follow the last tensor")
    return tensors


def _padded(length: int, alignment: int) -> int:
    return -(-length // alignment) * alignment
