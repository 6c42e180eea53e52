"""Changes made in Django's admin stand in the audit log as well, written in the same transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from accounts.audit import audit_person, audit_record
from accounts.models import Membership, Team, User

# Not secret, and what one wants to know of an account.
TOLD_OF_ACCOUNTS = ("is_active", "is_staff", "is_superuser")


def actor_of(request: HttpRequest) -> str:
    """Return who works in Django's admin, marked as such: their role in the team does not matter there."""
    return f"{request.user.get_username()} (administration)"


def changed_fields(message: Any) -> list[str]:
    """Return the names of the fields that a change message of Django's admin lists; never their values."""
    if not isinstance(message, list):
        return []
    parts = [
        part["changed"].get("fields", [])
        for part in message
        if "changed" in part and "name" not in part["changed"]
    ]
    return [str(name) for fields in parts for name in fields]


class AuditedAdmin(admin.ModelAdmin):
    """Pages whose every addition, change and deletion is a line of the audit log."""

    def audit(self, request: HttpRequest, thing: Any, verb: str, **detail: Any) -> None:
        """Write the line of one thing."""
        raise NotImplementedError

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Write that something was added."""
        self.audit(request, obj, "created")
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Write that something was changed, unless only its inlines were."""
        if changed := changed_fields(message):
            self.audit(request, obj, "changed", changed=changed)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: Iterable[Any]) -> Any:
        """Write that things are being deleted."""
        for thing in queryset:
            self.audit(request, thing, "deleted")
        return super().log_deletions(request, queryset)  # type: ignore[arg-type]

    @transaction.atomic
    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Run the actions of the list in one transaction with their lines."""
        return super().changelist_view(request, extra_context)


class AuditedUserAdmin(AuditedAdmin):
    """Accounts: a line in the log of each team that the person is in."""

    def audit(self, request: HttpRequest, thing: User, verb: str, **detail: Any) -> None:
        """Write what became of an account."""
        flags = {name: getattr(thing, name) for name in TOLD_OF_ACCOUNTS}
        audit_person(user=thing, action=f"account.{verb}", actor=actor_of(request), **flags, **detail)


class AuditedTeamAdmin(AuditedAdmin):
    """Teams, and their members in the same form."""

    def audit(self, request: HttpRequest, thing: Team, verb: str, **detail: Any) -> None:
        """Write what became of a team."""
        audit_record(
            caller=None,
            action=f"team.{verb}",
            target=thing.name,
            team=thing,
            actor=actor_of(request),
            **detail,
        )

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Save the members, with a line for each that was added, changed or removed."""
        super().save_formset(request, form, formset, change)
        if formset.model is not Membership:
            return
        rows = [
            *((one, "member.added", {}) for one in formset.new_objects),
            *((one, "member.changed", {"changed": list(fields)}) for one, fields in formset.changed_objects),
            *((one, "member.removed", {}) for one in formset.deleted_objects),
        ]
        for membership, action, detail in rows:
            audit_record(
                caller=None, action=action, target=membership.user.get_username(), team=membership.team,
                actor=actor_of(request), role=membership.role, **detail,
            )  # fmt: skip
