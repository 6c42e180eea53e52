"""The footer of a panel file: whose panels they are, what lies where, and the digest of what lies there.

In the file it is JSON, then the SHA-256 of that, its length in 8 bytes and a mark. Nothing of it is believed, and nothing
mapped by it, before the SHA-256 is found right: a start that is off by a bit would be the place of other panels.
"""

from __future__ import annotations

import hashlib
import os

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from moe_core.errors import MoeCoreError

MARK = b"TURNOUT3"
LENGTH_BYTES = 8
TAIL_BYTES = hashlib.sha256().digest_size + LENGTH_BYTES + len(MARK)
MAX_FOOTER_BYTES = 64 << 20


class PanelFileError(MoeCoreError):
    """A panel file that cannot be used; the model is packed anew."""


class _Told(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Part(_Told):
    """Bytes of the body."""

    start: NonNegativeInt
    bytes: NonNegativeInt


class Section(Part):
    """Panels, by their number and kind."""

    what: str


class StoredTensor(Part):
    """A tensor that is in no panels."""

    name: str
    dtype: str
    shape: tuple[NonNegativeInt, ...]


class Footer(_Told):
    """All that a panel file says beside its body; `facts` are those of the model that its tensors do not tell."""

    key: str
    digest: str
    facts: dict[str, bool]
    sections: tuple[Section, ...]
    tensors: tuple[StoredTensor, ...]

    def to_bytes(self) -> bytes:
        """As it stands at the end of a file."""
        told = self.model_dump_json().encode()
        return told + hashlib.sha256(told).digest() + len(told).to_bytes(LENGTH_BYTES, "little") + MARK


def read_footer(file: int) -> tuple[Footer, int]:
    """The footer of an open file, and how many bytes the body before it has.

    Raises PanelFileError for a file that has none as it was written, OSError when it cannot be read.
    """
    told, body_bytes = _told_by(file)
    try:
        footer = Footer.model_validate_json(told)
    except ValidationError as error:
        raise PanelFileError("its footer cannot be read") from error
    parts: list[Part] = [*footer.sections, *footer.tensors]
    if any(part.start + part.bytes > body_bytes for part in parts):
        raise PanelFileError(f"its footer names what lies outside of its {body_bytes} bytes")
    return footer, body_bytes


def _told_by(file: int) -> tuple[bytes, int]:
    size = os.fstat(file).st_size
    if size < TAIL_BYTES:
        raise PanelFileError(f"it has {size} bytes, and the end alone takes {TAIL_BYTES}")
    tail = os.pread(file, TAIL_BYTES, size - TAIL_BYTES)
    length = int.from_bytes(tail[-len(MARK) - LENGTH_BYTES : -len(MARK)], "little")
    body_bytes = size - TAIL_BYTES - length
    if not tail.endswith(MARK) or length > MAX_FOOTER_BYTES or body_bytes < 0:
        raise PanelFileError("it has no footer of this format")
    told = os.pread(file, length, body_bytes)
    if hashlib.sha256(told).digest() != tail[: -len(MARK) - LENGTH_BYTES]:
        raise PanelFileError("its footer is damaged")
    return told, body_bytes
