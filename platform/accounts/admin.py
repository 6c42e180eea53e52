"""People and teams in Django's admin, audited; the audit log is there to read only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.forms import UserChangeForm
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _

from accounts.access import Role
from accounts.admin_audit import AuditedTeamAdmin, AuditedUserAdmin
from accounts.members import must_keep_an_admin, team_locked
from accounts.models import ApiToken, AuditEvent, Membership, Team, User
from accounts.ownership import why_not_deleted
from common.errors import Conflict


def why_needed(user: User) -> list[str]:
    """Return a sentence for each team whose last admin the person is."""
    found = []
    for membership in Membership.objects.filter(user=user, role=Role.ADMIN).select_related("team", "user"):
        try:
            must_keep_an_admin(membership)
        except Conflict as refusal:
            found.append(refusal.message)
    return found


class PersonForm(UserChangeForm):
    """An account; it is not closed while a team needs it."""

    def clean_is_active(self) -> bool:
        """Refuse to close the account of a team's last admin."""
        wanted = bool(self.cleaned_data["is_active"])
        if self.instance.is_active and not wanted and (needed := why_needed(self.instance)):
            raise forms.ValidationError(needed)
        return wanted


@admin.register(User)
class PersonAdmin(AuditedUserAdmin, UserAdmin):
    """Accounts of people."""

    form = PersonForm

    def get_deleted_objects(self, objs: Sequence[User] | QuerySet[User], request: HttpRequest) -> Any:
        """Refuse to delete a team's last admin, saying of which."""
        to_delete, counts, lacking, protected = super().get_deleted_objects(objs, request)
        needed = [sentence for user in objs for sentence in why_needed(user)]
        return to_delete, counts, lacking, [*protected, *needed]

    @transaction.atomic
    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """Change a password and write the line of it, or neither."""
        return super().user_change_password(request, id, form_url)


class MemberFormSet(forms.BaseInlineFormSet):
    """The members of a team, an admin among them."""

    def clean(self) -> None:
        """Refuse a team that nobody could administer."""
        super().clean()
        if self.instance.pk:
            team_locked(self.instance)
        left = [form.cleaned_data for form in self.forms if getattr(form, "cleaned_data", None)]
        left = [row for row in left if row.get("user") and not row.get("DELETE")]
        if not any(row["role"] == Role.ADMIN and row["user"].is_active for row in left):
            raise forms.ValidationError(_("A team needs an admin whose account is active."))


class MembershipInline(admin.TabularInline):
    """Members of a team."""

    model = Membership
    formset = MemberFormSet
    extra = 0
    min_num = 1


@admin.register(Team)
class TeamAdmin(AuditedTeamAdmin):
    """Teams with their members."""

    list_display = ["name", "slug", "created_at"]
    inlines = [MembershipInline]

    def get_deleted_objects(self, objs: Sequence[Team] | QuerySet[Team], request: HttpRequest) -> Any:
        """Refuse to delete a team that owns something, saying what; tokens and invitations go with a team."""
        if refusals := [sentence for team in objs if (sentence := why_not_deleted(team))]:
            return [], {}, set(), refusals
        to_delete, counts, _lacking, protected = super().get_deleted_objects(objs, request)
        return to_delete, counts, set(), protected


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows that nobody may change by hand."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """No."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """No."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """No."""
        return False


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    """The audit log."""

    list_display = ["at", "team", "actor", "action", "target"]
    search_fields = ["actor", "action", "target"]


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    """API tokens without their hashes."""

    list_display = ["name", "prefix", "team", "created_by", "expires_at", "revoked_at"]
    exclude = ["digest"]
