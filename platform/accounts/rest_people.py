"""REST: the team's members, its invitations and its audit log."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.urls import reverse
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import Role
from accounts.invitations import (
    DEFAULT_DAYS,
    MAX_DAYS,
    MAX_NOTE,
    invitation_create,
    invitation_revoke,
)
from accounts.members import member_remove, member_role_set
from accounts.models import AuditEvent, Invitation, InvitationState, Membership
from accounts.permissions import MANAGE, MANAGE_ONLY, READ_MANAGE, Grants, TeamScoped
from accounts.selectors import audit_of, invitations_of
from common.closed import Closed
from common.closed_requests import takes_query

MAX_FILTER = 200


class MemberOut(serializers.ModelSerializer):
    """A member and their role."""

    user = serializers.CharField(source="user.username", read_only=True)

    class Meta:
        model = Membership
        fields = ["id", "user", "role", "created_at"]
        read_only_fields = fields


class RoleIn(Closed):
    """Another role."""

    role = serializers.ChoiceField(choices=Role.choices)


class MemberViewSet(TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """Who is in the team. People come in by invitation."""

    grants = READ_MANAGE
    queryset = Membership.objects.select_related("user").order_by("-id")
    serializer_class = MemberOut
    lookup_value_regex = r"\d{1,18}"

    @extend_schema(request=RoleIn, responses=MemberOut)
    def partial_update(self, request: Request, pk: Any = None) -> Response:
        """Give a member another role; the last admin keeps theirs."""
        wanted = RoleIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        role = Role(wanted.validated_data["role"])
        return Response(MemberOut(member_role_set(caller=self.caller, membership_id=int(pk), role=role)).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any = None) -> Response:
        """Take a member out of the team; the last admin stays."""
        member_remove(caller=self.caller, membership_id=int(pk))
        return Response(status=status.HTTP_204_NO_CONTENT)


class InvitationOut(serializers.ModelSerializer):
    """An invitation without its link."""

    state = serializers.ChoiceField(choices=InvitationState.choices, read_only=True)
    created_by = serializers.CharField(source="created_by.username", default=None, read_only=True)
    accepted_by = serializers.CharField(source="accepted_by.username", default=None, read_only=True)

    class Meta:
        model = Invitation
        fields = [
            "id", "note", "role", "state", "created_at", "created_by", "expires_at", "accepted_at", "accepted_by",
            "revoked_at",
        ]  # fmt: skip
        read_only_fields = fields


class InvitationIn(Closed):
    """Which role an invitation gives, and for how long."""

    role = serializers.ChoiceField(choices=Role.choices, default=Role.VIEWER)
    days = serializers.IntegerField(min_value=1, max_value=MAX_DAYS, default=DEFAULT_DAYS)
    note = serializers.CharField(
        max_length=MAX_NOTE, default="", allow_blank=True, help_text="Whom it is for, to tell it apart."
    )


class InvitationMade(InvitationOut):
    """A fresh invitation; the link is shown here and never again."""

    link = serializers.URLField(read_only=True)

    class Meta(InvitationOut.Meta):
        fields = [*InvitationOut.Meta.fields, "link"]
        read_only_fields = fields


class InvitationViewSet(
    TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet
):
    """One-time links into the team (for admins)."""

    grants = MANAGE_ONLY
    queryset = Invitation.objects.all()
    serializer_class = InvitationOut
    lookup_value_regex = r"\d{1,18}"

    def get_queryset(self) -> QuerySet[Invitation]:
        """Return the team's invitations with their state."""
        return self.queryset.none() if _is_drawn(self) else invitations_of(self.caller.team)

    @extend_schema(request=InvitationIn, responses={201: InvitationMade})
    def create(self, request: Request) -> Response:
        """Make a link that lets one person in, and show it once."""
        wanted = InvitationIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        asked = {**wanted.validated_data, "role": Role(wanted.validated_data["role"])}
        made, secret = invitation_create(caller=self.caller, **asked)
        link = request.build_absolute_uri(reverse("accounts:join", args=[secret]))
        shown = InvitationOut(invitations_of(self.caller.team).get(pk=made.pk)).data
        return Response({**shown, "link": link}, status=status.HTTP_201_CREATED)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any = None) -> Response:
        """Revoke an invitation; the line stays in the list."""
        invitation_revoke(caller=self.caller, invitation_id=int(pk))
        return Response(status=status.HTTP_204_NO_CONTENT)


class AuditFilter(serializers.Serializer):
    """Which lines of the log."""

    actor = serializers.CharField(
        max_length=MAX_FILTER, required=False, help_text="Contained in who did it, whatever the case."
    )
    action = serializers.CharField(
        max_length=MAX_FILTER,
        required=False,
        help_text="An action (`signin.failed`), or its beginning up to a dot (`deployment`).",
    )
    target = serializers.CharField(
        max_length=MAX_FILTER,
        required=False,
        help_text="Contained in what it was done to, whatever the case.",
    )
    since = serializers.DateTimeField(required=False, help_text="From this time on.")
    until = serializers.DateTimeField(required=False, help_text="Before this time.")


class AuditOut(serializers.ModelSerializer):
    """One line of the log; `hash` covers the line and the hash of the line before it."""

    detail = serializers.DictField(read_only=True)

    class Meta:
        model = AuditEvent
        fields = ["id", "at", "actor", "action", "target", "detail", "hash"]
        read_only_fields = fields


class AuditViewSet(TeamScoped, mixins.ListModelMixin, viewsets.GenericViewSet):
    """What was done in the team, newest first (for admins)."""

    grants = Grants(MANAGE, None)
    queryset = AuditEvent.objects.all()
    serializer_class = AuditOut

    def get_queryset(self) -> QuerySet[AuditEvent]:
        """Return the team's lines that fit the filters."""
        if _is_drawn(self):
            return self.queryset.none()
        asked = AuditFilter(data=self.request.query_params)
        asked.is_valid(raise_exception=True)
        return audit_of(self.caller.team, **asked.validated_data)

    @takes_query(AuditFilter)
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Return a page of the log."""
        return super().list(request, *args, **kwargs)


def _is_drawn(view: Any) -> bool:
    """Whether the schema is being drawn, which nobody calls."""
    return bool(getattr(view, "swagger_fake_view", False))
