"""What can be done with domain maps. A save replaces the whole map and keeps a snapshot of each revision."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from accounts.access import Role
from accounts.audit import audit_record
from accounts.caller import Caller
from common.errors import Conflict, Invalid
from common.uses import refuse_used
from routing.models import Domain, DomainMap, DomainMapRevision
from routing.plan import MapPlan, checked_plan
from routing.presets import example_plan
from routing.selectors import map_get


@transaction.atomic
def map_create(*, caller: Caller, name: str, plan: Any) -> DomainMap:
    """Make a map from plain data or a MapPlan."""
    caller.must_be(Role.EDITOR)
    checked = checked_plan(plan)
    try:
        with transaction.atomic():
            domain_map = DomainMap.objects.create(
                team=caller.team, created_by=caller.user, name=_named(name), **_columns(checked)
            )
    except IntegrityError as error:
        raise _name_taken(name) from error
    _write_domains(domain_map, checked)
    _remember(domain_map, caller, checked)
    audit_record(caller=caller, action="map.created", target=domain_map, domains=len(checked.domains))
    return map_get(caller.team, domain_map.pk)


@transaction.atomic
def map_revise(
    *, caller: Caller, map_id: int, expected_revision: int, plan: Any, name: str | None = None
) -> DomainMap:
    """Save the next revision, if anything is different; refused when somebody else saved one since `expected_revision`."""
    caller.must_be(Role.EDITOR)
    domain_map, checked = map_get(caller.team, map_id), checked_plan(plan)
    wanted = domain_map.name if name is None else _named(name)
    if domain_map.revision == expected_revision and _is_saved(domain_map, wanted, checked):
        return domain_map
    try:
        with transaction.atomic():
            moved = DomainMap.objects.filter(pk=map_id, revision=expected_revision).update(
                revision=expected_revision + 1, name=wanted, **_columns(checked)
            )
    except IntegrityError as error:
        raise _name_taken(wanted) from error
    if moved != 1:
        sentence = _("This map is at revision %(now)s, you started from %(yours)s; load it again.")
        raise Conflict(sentence % {"now": domain_map.revision, "yours": expected_revision}, code="stale_revision")
    domain_map = map_get(caller.team, map_id)
    _write_domains(domain_map, checked)
    _remember(domain_map, caller, checked)
    audit_record(caller=caller, action="map.revised", target=domain_map, revision=domain_map.revision)
    return map_get(caller.team, map_id)


@transaction.atomic
def map_delete(*, caller: Caller, map_id: int) -> None:
    """Remove a map that nothing uses; what was tuned with it keeps its own copy. Raises Conflict while it is in use."""
    caller.must_be(Role.EDITOR)
    domain_map = map_get(caller.team, map_id)
    # Who begins to use it now waits, and then finds it gone.
    DomainMap.objects.select_for_update().filter(pk=map_id).first()
    refuse_used("domain_map", caller.team.pk, map_id, str(domain_map))
    domain_map.delete()
    audit_record(caller=caller, action="map.deleted", target=domain_map)


def map_create_example(*, caller: Caller, num_experts: int = 8) -> DomainMap:
    """Make the example map: support replies, product copy, data analysis, contracts, the rest general."""
    names = set(DomainMap.objects.filter(team=caller.team).values_list("name", flat=True))
    stem = _("Example domains")
    name = next(
        name for number in range(1, 10_000) if (name := stem if number == 1 else f"{stem} {number}") not in names
    )
    return map_create(caller=caller, name=name, plan=example_plan(num_experts))


def _columns(plan: MapPlan) -> dict[str, Any]:
    return {
        "num_experts": plan.num_experts,
        "general_experts": list(plan.general_experts),
        "policy": plan.policy.model_dump(mode="json"),
    }


def _is_saved(domain_map: DomainMap, name: str, plan: MapPlan) -> bool:
    """Whether a map is this already, to the colours that it gave its domains itself."""
    rows = _rows(plan)
    saved = domain_map.domains.order_by("position").values(*rows[0])
    wanted = {"name": name, **_columns(plan)}
    return list(saved) == rows and all(getattr(domain_map, key) == value for key, value in wanted.items())


def _rows(plan: MapPlan) -> list[dict[str, Any]]:
    """Its domains as they are stored."""
    return [
        {
            "position": position, "code": domain.code, "name_en": domain.name_en, "name_zh": domain.name_zh,
            "examples": list(domain.examples), "experts": list(domain.experts),
            "colour": domain.colour or position % 5 + 1,
        }
        for position, domain in enumerate(plan.domains)
    ]  # fmt: skip


def _write_domains(domain_map: DomainMap, plan: MapPlan) -> None:
    domain_map.domains.all().delete()
    Domain.objects.bulk_create(Domain(map=domain_map, **row) for row in _rows(plan))


def _remember(domain_map: DomainMap, caller: Caller, plan: MapPlan) -> None:
    DomainMapRevision.objects.create(
        map=domain_map, revision=domain_map.revision, snapshot=plan.model_dump(mode="json"), created_by=caller.user
    )


def _named(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 120:
        sentence = _("A map needs a name of 1 to 120 characters.")
        raise Invalid(sentence, fields={"name": sentence})
    return name


def _name_taken(name: str) -> Conflict:
    sentence = _("Your team has a map named %(name)s already; choose another name.") % {"name": name}
    return Conflict(sentence, code="name_taken", fields={"name": sentence})
