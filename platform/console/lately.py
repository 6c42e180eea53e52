"""What people and programs did, in words: the audit log's last lines as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from accounts.models import AuditEvent, Team

SHOWN = 8

SENTENCES: Mapping[str, Promise] = {
    "setup.admin_created": _("%(target)s became the first admin"),
    "account.created": _("%(actor)s made the account %(target)s"),
    "account.changed": _("%(actor)s changed the account %(target)s"),
    "account.deleted": _("%(actor)s deleted the account %(target)s"),
    "account.password_changed": _("%(target)s changed their password"),
    "team.created": _("%(actor)s made the team %(target)s"),
    "team.changed": _("%(actor)s changed the team %(target)s"),
    "team.deleted": _("%(actor)s deleted the team %(target)s"),
    "invitation.created": _("%(actor)s made the invitation %(target)s"),
    "invitation.revoked": _("%(actor)s took the invitation %(target)s back"),
    "invitation.accepted": _("%(actor)s came into the team by the invitation %(target)s"),
    "member.added": _("%(actor)s added %(target)s to the team"),
    "member.changed": _("%(actor)s changed the membership of %(target)s"),
    "member.role_set": _("%(actor)s gave %(target)s a role"),
    "member.removed": _("%(actor)s removed %(target)s from the team"),
    "token.created": _("%(actor)s made the API token %(target)s"),
    "token.revoked": _("%(actor)s revoked the API token %(target)s"),
    "upload.created": _("%(actor)s uploaded %(target)s"),
    "upload.deleted": _("%(actor)s deleted the upload %(target)s"),
    "model.created": _("%(actor)s brought the model %(target)s"),
    "model.edited": _("%(actor)s edited the model %(target)s"),
    "version.created": _("%(target)s was registered"),
    "version.noted": _("%(actor)s wrote a note on %(target)s"),
    "version.verified": _("%(actor)s verified the bytes of %(target)s"),
    "alias.set": _("%(actor)s pointed an alias: %(target)s"),
    "alias.removed": _("%(actor)s removed the alias %(target)s"),
    "layout.created": _("%(actor)s drew the layout %(target)s"),
    "layout.revised": _("%(actor)s revised the layout %(target)s"),
    "layout.deleted": _("%(actor)s deleted the layout %(target)s"),
    "map.created": _("%(actor)s made the domain map %(target)s"),
    "map.revised": _("%(actor)s revised the domain map %(target)s"),
    "map.deleted": _("%(actor)s deleted the domain map %(target)s"),
    "corpus.created": _("%(actor)s made the corpus %(target)s"),
    "corpus.deleted": _("%(actor)s deleted the corpus %(target)s"),
    "corpus.file_added": _("%(actor)s added logs to %(target)s"),
    "corpus.file_edited": _("%(actor)s named the domain of a file of %(target)s"),
    "corpus.file_removed": _("%(actor)s took a file out of %(target)s"),
    "job.submitted": _("%(actor)s submitted the job %(target)s"),
    "job.cancelled": _("%(actor)s cancelled the job %(target)s"),
    "job.paused": _("%(actor)s paused the job %(target)s"),
    "job.resumed": _("%(actor)s resumed the job %(target)s"),
    "job.retried": _("%(actor)s retried the job %(target)s"),
    "deployment.created": _("%(actor)s made the deployment %(target)s"),
    "deployment.revised": _("%(actor)s changed the deployment %(target)s"),
    "deployment.scaled": _("%(actor)s changed the replicas of %(target)s"),
    "deployment.stopped": _("%(actor)s stopped the deployment %(target)s"),
    "deployment.rolled_back": _("%(actor)s rolled %(target)s back"),
    "deployment.retried": _("%(actor)s had %(target)s tried again"),
    "deployment.deleted": _("%(actor)s took the deployment %(target)s away"),
}

# Who came and went is for the audit log: it would crowd out what was done.
COMINGS: frozenset[str] = frozenset({"signin", "signin.failed", "signout"})


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened."""

    at: Any
    text: str


def lately(team: Team) -> list[Line]:
    """The newest lines first."""
    return [
        Line(event.at, sentence(event))
        for event in AuditEvent.objects.filter(team=team).exclude(action__in=COMINGS).order_by("-id")[:SHOWN]
    ]


def sentence(event: AuditEvent) -> str:
    """The line in words; an action that has none is named as it is."""
    words = SENTENCES.get(event.action)
    if words is None:
        return f"{event.actor} · {event.action} · {event.target}"
    return str(words) % {"actor": event.actor, "target": event.target}
