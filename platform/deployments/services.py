"""What can be done with deployments. Each writes only what is desired; the reconciler does the rest."""

from __future__ import annotations

import re
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from accounts.access import Role
from accounts.audit import audit_record
from accounts.caller import Caller
from common.errors import Conflict, Invalid
from common.loops import wake
from common.told import told
from deployments.announce import announce
from deployments.domains import check_prior, frozen_domains
from deployments.engine_settings import EngineSettings, settings_changed, settings_checked
from deployments.models import (
    MAX_REPLICAS,
    NAME_PATTERN,
    Deployment,
    DeploymentEvent,
    DeploymentRevision,
    Replica,
)
from deployments.selectors import deployment_get, revision_get
from deployments.states import ReplicaState, Wanted
from deployments.translation import kept_domains, translated_domains
from moe_core.errors import SpecError
from moe_core.spec import ModelSpec
from moe_core.spec.served import check_gate
from registry.models import ModelVersion, VersionState
from registry.selectors import version_get
from routing.models import DomainMap
from routing.selectors import map_get

KEEP = object()


@transaction.atomic
def deployment_create(
    *,
    caller: Caller,
    name: str,
    version_id: int,
    replicas: int = 1,
    domain_map_id: int | None = None,
    translate_domains: bool = False,
    confirm_domains: bool = False,
    settings: dict[str, Any] | None = None,
    note: str = "",
) -> Deployment:
    """Make a deployment; its engines are started by the reconciler.

    `translate_domains` takes the map's numbers for those of the ancestor that was tuned with it; `confirm_domains` leaves
    out experts of it that are no more.
    """
    caller.must_be(Role.EDITOR)
    version = servable_version(caller, version_id)
    domain_map = map_get(caller.team, domain_map_id) if domain_map_id else None
    domains = _frozen(domain_map, version, translate=translate_domains, confirmed=confirm_domains)
    chosen = settings_checked(settings or {}, version.spec)
    check_prior(domains, chosen, version)
    try:
        with transaction.atomic():
            deployment = Deployment.objects.create(
                team=caller.team,
                created_by=caller.user,
                name=checked_name(name),
                desired_version=version,
                desired_replicas=checked_replicas(replicas),
                domain_map=domain_map,
                domains=domains,
                settings=chosen,
            )
    except IntegrityError as error:
        raise Invalid(
            _("There is a deployment named %(name)s already.") % {"name": name},
            fields={"name": _("This name is taken in your team; choose another one.")},
        ) from error
    _remember_revision(deployment, caller, note=note)
    _changed(deployment, caller, "created", version=str(version), replicas=replicas)
    return deployment_get(caller.team, deployment.pk)


@transaction.atomic
def deployment_update(
    *,
    caller: Caller,
    deployment_id: int,
    version_id: int | None = None,
    domain_map_id: int | object | None = KEEP,
    translate_domains: bool = False,
    confirm_domains: bool = False,
    settings: dict[str, Any] | None = None,
    note: str = "",
    expected_generation: int | None = None,
) -> Deployment:
    """Want another version, other domains or other settings: a new revision, served once it is ready.

    What is wanted already makes none, starts nothing and keeps no note. `settings` are those that should be different; None
    takes back one that need not be set. Domains that are kept follow their experts to the version's numbers; for
    `translate_domains` and `confirm_domains` see `deployment_create`.
    """
    caller.must_be(Role.EDITOR)
    deployment = _locked(caller, deployment_id, expected_generation)
    before = _wanted(deployment)
    version = servable_version(caller, version_id) if version_id else deployment.desired_version
    if domain_map_id is KEEP:
        served = deployment.domains, deployment.desired_version
        deployment.domains = kept_domains(*served, version, confirmed=confirm_domains)
    else:
        chosen = map_get(caller.team, domain_map_id) if isinstance(domain_map_id, int) else None
        deployment.domain_map = chosen
        deployment.domains = _frozen(chosen, version, translate=translate_domains, confirmed=confirm_domains)
    deployment.desired_version = version
    deployment.settings = settings_changed(
        deployment.settings, {} if settings is None else settings, version.spec
    )
    check_prior(deployment.domains, deployment.settings, version)
    if _wanted(deployment) != before:
        _next_revision(deployment, caller, note=note)
        _changed(deployment, caller, "revised", version=str(version), revision=deployment.revision)
    return deployment_get(caller.team, deployment.pk)


@transaction.atomic
def deployment_rollback(
    *, caller: Caller, deployment_id: int, revision: int, expected_generation: int | None = None
) -> Deployment:
    """Want again what was wanted at an earlier revision; the history grows by one where that is not wanted now."""
    caller.must_be(Role.EDITOR)
    deployment = _locked(caller, deployment_id, expected_generation)
    before = _wanted(deployment)
    earlier = revision_get(deployment, revision)
    version = servable_version(caller, earlier.version_id)
    check_prior(earlier.domains, earlier.settings, version)
    deployment.desired_version, deployment.settings = earlier.version, earlier.settings
    deployment.domain_map = DomainMap.objects.filter(pk=earlier.domain_map_id or 0, team=caller.team).first()
    deployment.domains = earlier.domains
    if _wanted(deployment) != before:
        _next_revision(deployment, caller, rolled_back_to=revision)
        _changed(deployment, caller, "rolled_back", to=revision, version=str(earlier.version))
    return deployment_get(caller.team, deployment.pk)


@transaction.atomic
def deployment_scale(
    *, caller: Caller, deployment_id: int, replicas: int, expected_generation: int | None = None
) -> Deployment:
    """Want another number of replicas; running engines stay as they are. 0 stops the deployment."""
    caller.must_be(Role.EDITOR)
    deployment = _locked(caller, deployment_id, expected_generation)
    before, wanted = deployment.desired_replicas, checked_replicas(replicas)
    if before != wanted:
        deployment.desired_replicas = wanted
        _next_generation(deployment, "desired_replicas")
        kind = "stopped" if wanted == 0 else "scaled"
        _changed(deployment, caller, kind, before=before, replicas=wanted)
    return deployment_get(caller.team, deployment.pk)


def deployment_stop(*, caller: Caller, deployment_id: int) -> Deployment:
    """Want no replica; running answers end first."""
    return deployment_scale(caller=caller, deployment_id=deployment_id, replicas=0)


@transaction.atomic
def deployment_retry(*, caller: Caller, deployment_id: int) -> Deployment:
    """Free the places of replicas that failed, so that they are started again."""
    caller.must_be(Role.EDITOR)
    deployment = _locked(caller, deployment_id, None)
    freed = Replica.objects.filter(
        deployment=deployment, state=ReplicaState.FAILED, wanted=Wanted.RUN
    ).update(wanted=Wanted.DRAIN)
    if freed == 0:
        raise Conflict(_("No replica of %(name)s has failed.") % {"name": deployment.name})
    _next_generation(deployment)
    _changed(deployment, caller, "retried", replicas=freed)
    return deployment_get(caller.team, deployment.pk)


@transaction.atomic
def deployment_delete(*, caller: Caller, deployment_id: int) -> None:
    """Want nothing any more and free the name; what it served stays in the history."""
    caller.must_be(Role.EDITOR)
    deployment = _locked(caller, deployment_id, None)
    deployment.desired_replicas = 0
    _next_generation(deployment, "desired_replicas")
    Deployment.objects.filter(pk=deployment.pk).update(deleted_at=Now())
    _changed(deployment, caller, "deleted")


def servable_version(caller: Caller, version_id: int | None) -> ModelVersion:
    """Return one of the team's versions whose bytes are sound and whose gate answers token by token."""
    version = version_get(caller.team, version_id or 0)
    if version.state != VersionState.READY:
        raise Invalid(
            _("%(version)s cannot be served: its bytes are damaged.") % {"version": version},
            fields={"version": _("Choose a version that is ready.")},
        )
    try:
        check_gate(ModelSpec.parse(version.spec))
    except SpecError as error:
        raise Invalid(told(str(error)), fields={"version": told(str(error))}) from error
    return version


def checked_name(name: str) -> str:
    """Return a name that clients can send as `model`."""
    name = name.strip()
    if not re.fullmatch(NAME_PATTERN, name):
        raise Invalid(
            _("%(name)s cannot be a deployment's name.") % {"name": name[:80] or "—"},
            fields={
                "name": _(
                    "Use 1 to 60 of a–z, 0–9, dot, hyphen and underscore, with a letter or digit at both ends."
                )
            },
        )
    return name


def checked_replicas(replicas: int) -> int:
    """Return a number of replicas within the bounds."""
    if isinstance(replicas, bool) or not 0 <= replicas <= MAX_REPLICAS:
        raise Invalid(
            _("A deployment has 0 to %(limit)s replicas.") % {"limit": MAX_REPLICAS},
            fields={"replicas": _("Choose 0 to %(limit)s.") % {"limit": MAX_REPLICAS}},
        )
    return replicas


def _locked(caller: Caller, deployment_id: int, expected_generation: int | None) -> Deployment:
    """Lock the row against other writers of what is desired, and refuse one who saw an older state."""
    deployment_get(caller.team, deployment_id)
    deployment = Deployment.objects.select_for_update().select_related(None).get(pk=deployment_id)
    if deployment.deleted_at is not None or expected_generation not in (None, deployment.generation):
        sentence = _("%(name)s was changed meanwhile (it is at change %(now)s); load it again.")
        raise Conflict(
            sentence % {"name": deployment.name, "now": deployment.generation}, code="stale_generation"
        )
    return deployment


def _frozen(
    domain_map: DomainMap | None, version: ModelVersion, *, translate: bool, confirmed: bool
) -> dict[str, Any]:
    """Freeze a map as it is, or by the numbers of a version that was made of the one it was tuned for."""
    if domain_map is not None and translate:
        return translated_domains(domain_map, version, confirmed=confirmed)
    return frozen_domains(domain_map, version)


def _wanted(deployment: Deployment) -> tuple[Any, ...]:
    """What a revision is made for; a setting that a row does not name is the engine's own."""
    settings = {**EngineSettings().model_dump(mode="json"), **deployment.settings}
    return deployment.desired_version_id, deployment.domain_map_id, deployment.domains, settings


def _next_revision(
    deployment: Deployment, caller: Caller, *, note: str = "", rolled_back_to: int | None = None
) -> None:
    deployment.revision += 1
    _next_generation(deployment, "revision", "desired_version", "domain_map", "domains", "settings")
    _remember_revision(deployment, caller, note=note, rolled_back_to=rolled_back_to)


def _next_generation(deployment: Deployment, *columns: str) -> None:
    deployment.generation += 1
    deployment.save(update_fields=["generation", "updated_at", *columns])


def _remember_revision(
    deployment: Deployment, caller: Caller, *, note: str = "", rolled_back_to: int | None = None
) -> None:
    DeploymentRevision.objects.create(
        deployment=deployment,
        number=deployment.revision,
        version=deployment.desired_version,
        domains=deployment.domains,
        domain_map=deployment.domain_map,
        settings=deployment.settings,
        note=note.strip()[:200],
        rolled_back_to=rolled_back_to,
        created_by=caller.user,
    )


def _changed(deployment: Deployment, caller: Caller, kind: str, **detail: Any) -> None:
    """Write the timeline and the audit log, and ring the reconciler, all in this transaction."""
    DeploymentEvent.objects.create(deployment=deployment, kind=kind, detail=detail, actor=caller.name)
    audit_record(caller=caller, action=f"deployment.{kind}", target=deployment, **detail)
    announce(deployment.pk)
    wake("deployments")
