"""Fields of a request that would do nothing: each is refused with what it belongs to, rather than passed over."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _

from common.errors import Invalid
from common.figures import sentences

REVISING = ("version", "domain_map", "settings")


def check_creation(wanted: dict[str, Any]) -> None:
    """Raise Invalid where a new deployment would translate or confirm the domains of no map."""
    faults = {}
    if not wanted.get("domain_map"):
        if wanted["translate_domains"]:
            faults["translate_domains"] = _translates_nothing()
        if wanted["confirm_domains"]:
            faults["confirm_domains"] = _("It is about the experts of a domain map; name domain_map too.")
    _refuse(faults)


def check_change(wanted: dict[str, Any]) -> None:
    """Raise Invalid where a change, or a field of it, would change nothing."""
    # Settings that name none say nothing.
    revising = [name for name in REVISING if name in wanted and wanted[name] != {}]
    if not revising and "replicas" not in wanted:
        raise Invalid(_("A change must change something: name version, domain_map, settings or replicas."))
    faults = {}
    if wanted["note"].strip() and not revising:
        faults["note"] = _("A note is kept with a revision, which replicas do not make; leave it out.")
    if wanted["translate_domains"] and not wanted.get("domain_map"):
        faults["translate_domains"] = _translates_nothing()
    if wanted["confirm_domains"] and not {"version", "domain_map"} & set(revising):
        faults["confirm_domains"] = _(
            "It is about experts that another version or domain map leaves out; name version or domain_map too."
        )
    _refuse(faults)


def _translates_nothing() -> str:
    return _("It is about a domain map that is named with it; name domain_map too.")


def _refuse(faults: dict[str, str]) -> None:
    if faults:
        raise Invalid(sentences(*faults.values()), fields=faults)
