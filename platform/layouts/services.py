"""What can be done with layouts. Each change is a new revision; none is ever rewritten."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import ProtectedError
from django.utils.translation import gettext as _

from accounts.access import Role
from accounts.audit import audit_record
from accounts.caller import Caller
from common.errors import Conflict, Invalid
from common.figures import sentences
from common.told import told_faults
from common.uses import refuse_used
from layouts.models import Layout, LayoutRevision
from layouts.selectors import layout_get
from moe_core.errors import SpecError
from moe_core.spec import LayoutSpec, ModelSpec
from registry.models import ModelVersion
from registry.selectors import version_get


@transaction.atomic
def layout_create(*, caller: Caller, name: str, base_version_id: int, spec: Any, note: str = "") -> Layout:
    """Make a layout over one of the team's dense versions."""
    caller.must_be(Role.EDITOR)
    base = version_get(caller.team, base_version_id)
    plain = checked_spec(base, spec).model_dump(mode="json")
    try:
        with transaction.atomic():
            layout = Layout.objects.create(
                team=caller.team, created_by=caller.user, name=_named(name), base_version=base, spec=plain
            )
    except IntegrityError as error:
        raise _name_taken(name) from error
    _remember(layout, caller, note)
    audit_record(caller=caller, action="layout.created", target=layout, base=base.pk)
    return layout


@transaction.atomic
def layout_revise(
    *,
    caller: Caller,
    layout_id: int,
    expected_revision: int,
    name: str | None = None,
    base_version_id: int | None = None,
    spec: Any = None,
    note: str = "",
) -> Layout:
    """Save the next revision; refused when somebody else saved one since `expected_revision`."""
    caller.must_be(Role.EDITOR)
    layout = layout_get(caller.team, layout_id)
    base = version_get(caller.team, base_version_id) if base_version_id else layout.base_version
    plain = checked_spec(base, layout.spec if spec is None else spec).model_dump(mode="json")
    wanted = {"name": layout.name if name is None else _named(name), "base_version": base, "spec": plain}
    if all(getattr(layout, field) == value for field, value in wanted.items()):
        return layout
    try:
        with transaction.atomic():
            moved = Layout.objects.filter(pk=layout.pk, revision=expected_revision).update(
                revision=expected_revision + 1, **wanted
            )
    except IntegrityError as error:
        raise _name_taken(str(wanted["name"])) from error
    if moved != 1:
        sentence = _("This layout is at revision %(now)s, you started from %(yours)s; load it again.")
        raise Conflict(sentence % {"now": layout.revision, "yours": expected_revision}, code="stale_revision")
    layout = layout_get(caller.team, layout_id)
    _remember(layout, caller, note)
    audit_record(caller=caller, action="layout.revised", target=layout, revision=layout.revision)
    return layout


@transaction.atomic
def layout_delete(*, caller: Caller, layout_id: int) -> None:
    """Remove a layout that nothing uses; what was built with it keeps its own copy. Raises Conflict while it is in use."""
    caller.must_be(Role.EDITOR)
    layout = layout_get(caller.team, layout_id)
    refuse_used("layout", caller.team.pk, layout_id, str(layout))
    try:
        layout.delete()
    except ProtectedError as error:
        raise Conflict(_("This layout is still used.")) from error
    audit_record(caller=caller, action="layout.deleted", target=layout)


def checked_spec(base: ModelVersion, spec: Any) -> LayoutSpec:
    """Return the layout if it is well formed and fits the base, else raise Invalid with the reason."""
    try:
        parsed = spec if isinstance(spec, LayoutSpec) else LayoutSpec.parse(spec)
        parsed.applied_to(ModelSpec.parse(base.spec))
    except SpecError as error:
        fields = told_faults(error, "spec")
        raise Invalid(sentences(*fields.values()), fields=fields) from error
    return parsed


def _remember(layout: Layout, caller: Caller, note: str) -> None:
    LayoutRevision.objects.create(
        layout=layout, revision=layout.revision, base_version=layout.base_version, spec=layout.spec,
        note=note.strip()[:400], created_by=caller.user,
    )  # fmt: skip


def _named(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 120:
        sentence = _("A layout needs a name of 1 to 120 characters.")
        raise Invalid(sentence, fields={"name": sentence})
    return name


def _name_taken(name: str) -> Conflict:
    sentence = _("Your team has a layout named %(name)s already; choose another name.") % {"name": name}
    return Conflict(sentence, code="name_taken", fields={"name": sentence})
