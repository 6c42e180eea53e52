"""People, teams, what they may do, and what they did."""

from __future__ import annotations

from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from accounts.access import Role, Scope
from common.models import Timestamped


class User(AbstractUser):
    """A person. Rights come from memberships; `is_staff` opens Django's admin."""

    REQUIRED_FIELDS = []


class Team(Timestamped):
    """The owner of everything that is made here."""

    name = models.CharField(_("name"), max_length=80)
    slug = models.SlugField(unique=True, max_length=60)

    def __str__(self) -> str:
        return self.name


class Membership(Timestamped):
    """One person's role in one team."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role.choices, default=Role.VIEWER)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "team"], name="one_membership_per_team"),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="membership_role_known"),
        ]

    def __str__(self) -> str:
        return f"{self.user} · {self.team} · {self.role}"


class TeamOwned(Timestamped):
    """A row that belongs to one team."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    created_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")

    class Meta:
        abstract = True


class ApiToken(TeamOwned):
    """A key for programs: 256 random bits, of which only the SHA-256 is kept. Shown once."""

    name = models.CharField(_("name"), max_length=80)
    prefix = models.CharField(max_length=16)
    digest = models.CharField(max_length=64, unique=True)
    scopes = ArrayField(models.CharField(max_length=10, choices=Scope.choices))
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    max_concurrent = models.PositiveIntegerField(default=16)
    monthly_token_limit = models.PositiveBigIntegerField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(scopes__len__gt=0) & models.Q(scopes__contained_by=Scope.values),
                name="token_scopes_known",
            )
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class InvitationState(models.TextChoices):
    """What became of an invitation."""

    OPEN = "open", pgettext_lazy("state of an invitation", "open")
    ACCEPTED = "accepted", pgettext_lazy("state of an invitation", "used")
    REVOKED = "revoked", _("revoked")
    EXPIRED = "expired", _("expired")
    VOID = "void", pgettext_lazy("state of an invitation", "void")


class Invitation(TeamOwned):
    """A one-time link into a team, with the role that it gives; only its hash is kept.

    It holds only while who made it is an admin of the team: somebody who was removed has left no door open.
    """

    digest = models.CharField(max_length=64, unique=True)
    role = models.CharField(max_length=10, choices=Role.choices)
    note = models.CharField(_("for"), max_length=80, blank=True)
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True)
    accepted_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="invitation_role_known"),
            models.CheckConstraint(
                condition=models.Q(accepted_at=None) | models.Q(revoked_at=None), name="invitation_ends_once"
            ),
        ]

    def __str__(self) -> str:
        return f"#{self.pk} {self.note}".strip()

    @property
    def state_label(self) -> str:
        """The word for `state`, which the selectors annotate: the clock and the maker's role decide."""
        return str(InvitationState(self.state).label)  # type: ignore[attr-defined]


class SetupToken(models.Model):
    """A one-time link that makes the first admin; only its hash is kept."""

    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"set-up link #{self.pk}"


class SignInLimit(models.Model):
    """How far the tries of a name, an address or a browser are spent (accounts.throttle); the key is a hash."""

    key = models.CharField(max_length=64, primary_key=True)
    spent_until = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"{self.key[:8]} until {self.spent_until:%F %T}"


class AuditEvent(models.Model):
    """One line of the audit log. A trigger refuses UPDATE and DELETE; each line carries the hash of the one before."""

    at = models.DateTimeField()
    team = models.ForeignKey(
        Team, on_delete=models.DO_NOTHING, null=True, related_name="+", db_constraint=False
    )
    actor = models.CharField(max_length=200)
    action = models.CharField(max_length=80)
    target = models.CharField(max_length=200)
    detail = models.JSONField(default=dict)
    previous_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)

    class Meta:
        indexes = [models.Index(fields=["team", "-id"], name="audit_by_team")]

    def __str__(self) -> str:
        return f"{self.at:%F %T} {self.actor} {self.action} {self.target}"
