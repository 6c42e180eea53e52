"""GGUF files that were cut into parts, read as the one file that they were.

Parts lie beside each other as NAME-00001-of-00002.gguf; each says its number and how many there are, and only the first has
the metadata. A whole file that was joined again says that there are none.
Source: llama.cpp, tools/gguf-split and src/llama-model-loader.cpp.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from moe_core.checkpoint.files import open_regular
from moe_core.checkpoint.gguf_header import MAX_TENSORS, GgufHead, GgufTensor, read_head
from moe_core.errors import FormatError

NUMBER, COUNT, NUM_TENSORS = "split.no", "split.count", "split.tensors.count"
PART_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf\Z", re.DOTALL)
# Each is an open file; the largest models that are published have some 50.
MAX_PARTS = 256


@dataclass(frozen=True, slots=True)
class Part:
    """What a part says of itself: its number from 1 on, and how many there are."""

    number: int
    count: int


def open_parts(path: Path, *, follow_links: bool = True) -> tuple[tuple[BinaryIO, ...], GgufHead]:
    """The open files of a model, of which any part may be named, and their common head; the caller closes them.

    With `follow_links` false the others may be no links, which could lead out of the folder that was meant.
    Raises CheckpointError for a file that cannot be opened, FormatError for one that is broken, for parts that are missing
    and for those of different models.
    """
    with ExitStack() as opened:
        file = opened.enter_context(open_regular(path))
        head = read_head(file, path.name)
        part = part_of(head, path.name)
        if part is None:
            opened.pop_all()
            return (file,), head
        files, heads = [file], [head]
        for number, name in enumerate(_names(path, part), 1):
            if number == part.number:
                continue
            beside = path.with_name(name)
            if not os.path.lexists(beside):
                raise FormatError.of("gguf_part_missing", name=name, part=number, count=part.count)
            files.insert(number - 1, opened.enter_context(open_regular(beside, follow_links=follow_links)))
            heads.insert(number - 1, _checked(read_head(files[number - 1], name), name, number, part.count))
        joined = _joined(heads, path.name)
        opened.pop_all()
        return tuple(files), joined


def part_of(head: GgufHead, name: str) -> Part | None:
    """Which part a file is; None for a whole one. FormatError for numbers that are none."""
    count, number = head.metadata.get(COUNT, 0), head.metadata.get(NUMBER, 0)
    if type(count) is not int or type(number) is not int or not 0 <= count <= MAX_PARTS:
        raise FormatError(f"{name}: {COUNT} is {str(count)[:40]}; at most {MAX_PARTS} parts are read")
    if count <= 1:
        return None
    if not 0 <= number < count:
        raise FormatError(f"{name}: {NUMBER} ({number}) must be below {COUNT} ({count})")
    return Part(number + 1, count)


def _names(path: Path, part: Part) -> list[str]:
    """The names of all parts, the first one's first, out of one of them."""
    match = PART_NAME.match(path.name)
    if match is None:
        raise FormatError.of("gguf_part_alone", name=path.name, part=part.number, count=part.count)
    stem, number, count = match.groups()
    if (int(number), int(count)) != (part.number, part.count):
        raise _misnamed(path.name, int(number), int(count), part)
    return [f"{stem}-{at:05d}-of-{part.count:05d}.gguf" for at in range(1, part.count + 1)]


def _checked(head: GgufHead, name: str, number: int, count: int) -> GgufHead:
    found = part_of(head, name)
    if found != Part(number, count):
        raise _misnamed(name, number, count, found)
    return head


def _misnamed(name: str, number: int, count: int, found: Part | None) -> FormatError:
    inside = f"part {found.number} of {found.count}" if found else "a whole model"
    return FormatError(
        f"{name}: is {inside} by its keys {NUMBER} and {COUNT}, but part {number} of {count} by its name; download it again"
    )


def _joined(heads: list[GgufHead], name: str) -> GgufHead:
    """The first part's metadata, and every tensor with the place of its part."""
    tensors: dict[str, GgufTensor] = {}
    for place, head in enumerate(heads):
        twice = tensors.keys() & head.tensors.keys()
        if twice:
            raise FormatError(f"{name}: the tensor {min(twice)} is in two parts; download them again")
        tensors |= {key: replace(tensor, part=place) for key, tensor in head.tensors.items()}
        if len(tensors) > MAX_TENSORS:
            raise FormatError(f"{name}: the parts have more than {MAX_TENSORS} tensors")
    said = heads[0].metadata.get(NUM_TENSORS)
    if said != len(tensors):
        raise FormatError(
            f"{name}: the parts have {len(tensors)} tensors, but {NUM_TENSORS} of the first is {str(said)[:40]}; "
            "download them again"
        )
    return GgufHead(heads[0].metadata, tensors)
