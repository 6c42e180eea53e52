"""What a file is, by its first bytes. Formats that can carry code, and archives, are refused whatever their name."""

from __future__ import annotations

import struct
from typing import IO

from django.utils.translation import gettext as _

from common.errors import Invalid
from common.told import told
from moe_core.sentences import CORE
from registry.gguf_split import part_of
from registry.models import UploadKind

# A first byte of 0x80 is a pickle; a safetensors header length never is that small and that odd at once.
REFUSED = {
    b"PK": "ZIP",
    b"\x89HDF": "HDF5",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7-Zip",
    b"\x93NUMPY": "NumPy",
    b"\x7fELF": "ELF",
    b"MZ": "EXE",
    b"%PDF": "PDF",
}
# Enough to tell every kind, tar included.
HEAD_BYTES = 4096
MAX_SAFETENSORS_HEADER = 100 * 2**20
TEXT_KINDS = {
    "json": UploadKind.JSON,
    "jsonl": UploadKind.JSONL,
    "ndjson": UploadKind.JSONL,
    "csv": UploadKind.CSV,
    "tsv": UploadKind.CSV,
}


def kind_of(head: bytes, name: str) -> UploadKind:
    """Return the kind of a file from its head; text formats are told apart by the name's ending."""
    refuse_code_and_archives(head)
    if head[:4] == b"GGUF":
        return UploadKind.GGUF
    if is_safetensors(head):
        return UploadKind.SAFETENSORS
    ending = name.rpartition(".")[2].lower()
    if ending in TEXT_KINDS and looks_like_text(head):
        return TEXT_KINDS[ending]
    raise Invalid(
        _("This is no GGUF, safetensors, JSON, JSON Lines or CSV file; nothing else is taken."),
        code="unknown_format",
    )


def must_be_whole_model(file: IO[bytes], name: str) -> None:
    """Raise Invalid, with the way out, for a file that holds no whole model: logs, or a part of one; rewind the file."""
    kind = kind_of(file.read(HEAD_BYTES), name)
    if kind == UploadKind.SAFETENSORS:
        raise Invalid(
            _(
                "A safetensors file is only a part of a model. Import its whole folder, with config.json and the "
                "tokenizer, from a folder of the machine."
            ),
            code="refused_format",
        )
    if kind != UploadKind.GGUF:
        sentence = _(
            "%(name)s is a %(kind)s file, not a model. Logs are uploaded on the page of logs and corpora."
        )
        raise Invalid(sentence % {"name": name, "kind": kind.label}, code="refused_format")
    if (said := said_of_part(file, name)) is not None:
        raise Invalid(said, code="refused_format")


def said_of_part(file: IO[bytes], name: str) -> str | None:
    """What to say of a GGUF file that is one of several by its own keys, whatever its name; None for a whole one."""
    part = part_of(file)
    if part is None:
        return None
    return told(CORE.say("gguf_part_alone", name=name, part=part.number, count=part.count))


def refuse_code_and_archives(head: bytes) -> None:
    """Raise Invalid for pickles, archives, compressed files and programs."""
    if head[:1] == b"\x80" and not is_safetensors(head):
        _refuse("pickle")
    for magic, name in REFUSED.items():
        # A JSON Lines file may begin with any letters; what follows a two-letter magic is binary in the real thing.
        if (
            head.startswith(magic)
            and not is_safetensors(head)
            and (len(magic) > 2 or not looks_like_text(head))
        ):
            _refuse(name)
    if head[257:262] == b"ustar":
        _refuse("tar")


def is_safetensors(head: bytes) -> bool:
    """Whether the head is a little-endian length of a plausible size, followed by a JSON object."""
    if len(head) < 10:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return 2 <= length <= MAX_SAFETENSORS_HEADER and head[8:9] == b"{"


def looks_like_text(head: bytes) -> bool:
    """Whether there is no control byte but white space (UTF-16 with its mark is text too)."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return True
    return not any(byte < 32 and byte not in b"\t\n\r\x0c" for byte in head)


def _refuse(name: str) -> None:
    sentence = _(
        "A file of the kind %(kind)s is not taken: it can carry code or hide its size. Send the plain file."
    )
    raise Invalid(sentence % {"kind": name}, code="refused_format")
