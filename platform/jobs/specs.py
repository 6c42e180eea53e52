"""What may be asked of a job, as closed schemas: unknown fields and numbers out of bounds are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from django.utils.translation import gettext as _
from pydantic import Field

from common.errors import Invalid
from common.processors import usable_processors
from common.told import told_faults
from moe_core.errors import SpecError
from moe_core.spec.base import Spec

RowId = Annotated[int, Field(ge=1, le=2**63 - 1)]
Name = Annotated[str, Field(min_length=1, max_length=120)]
MAX_DEFAULT_THREADS = 4
S = TypeVar("S", bound=Spec)


class BuiltinSource(Spec):
    """A model that comes with the installation."""

    kind: Literal["builtin"]
    name: Annotated[str, Field(min_length=1, max_length=80)]


class UploadSource(Spec):
    """A file that somebody sent."""

    kind: Literal["upload"]
    id: RowId


class FolderSource(Spec):
    """A file or folder on the machine, under one of the roots that its administrator opened."""

    kind: Literal["folder"]
    path: Annotated[str, Field(min_length=1, max_length=1000)]


class ImportRequest(Spec):
    """Bring a model into the registry."""

    name: Name
    source: Annotated[BuiltinSource | UploadSource | FolderSource, Field(discriminator="kind")]
    licence: Annotated[str, Field(max_length=120)] = ""
    # In what its floats are kept: bfloat16 rounds those that are stored in float32 and float16.
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


def default_threads() -> int:
    """Threads of a run; frozen into the job, because another number may change the last bits."""
    return min(MAX_DEFAULT_THREADS, usable_processors())


class TuneRequest(Spec):
    """Lay experts over a version and tune them and their router on logs. A mixture needs no layout."""

    model_version: RowId
    layout: RowId | None = None
    domain_map: RowId
    corpus: RowId
    # Fields of moe_core.spec.TuneSpec, but for layout and routing, which the rows above give.
    tune: dict[str, Any] = Field(default_factory=dict)


class OperateRequest(Spec):
    """Do one operation on the experts of a version; logs are needed where it learns, and measured on where given."""

    model_version: RowId
    # More versions: of the same shape for `compose`, one to measure beside for `measure`.
    others: Annotated[tuple[RowId, ...], Field(max_length=63)] = ()
    corpus: RowId | None = None
    # One of moe_core.spec.operations, told apart by `kind`.
    operation: dict[str, Any]
    # The other fields of moe_core.spec.operate.OperateSpec.
    options: dict[str, Any] = Field(default_factory=dict)


def spec_parse(schema: type[S], data: Any, *, prefix: str = "") -> S:
    """Validate plain data, or raise Invalid with a message for each field."""
    try:
        return schema.parse(data)
    except SpecError as error:
        sentence = _("The job's specification has fields that are not valid.")
        raise Invalid(sentence, fields=told_faults(error, prefix)) from error
