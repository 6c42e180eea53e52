"""REST: who am I, and the team's tokens."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.access import Scope
from accounts.models import ApiToken
from accounts.permissions import MANAGE_ONLY, READ_ONLY, TeamScoped
from accounts.services import MAX_CONCURRENT, MAX_MONTHLY_TOKENS, api_token_create, api_token_revoke
from common.closed import Closed
from common.closed_requests import ClosedRequest


class WhoAmI(serializers.Serializer):
    """The caller as the platform sees it."""

    user = serializers.CharField()
    team = serializers.CharField()
    role = serializers.CharField()
    scopes = serializers.ListField(child=serializers.CharField(), allow_null=True)


class TokenOut(serializers.ModelSerializer):
    """A token without its secret."""

    class Meta:
        model = ApiToken
        fields = [
            "id", "name", "prefix", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at",
            "max_concurrent", "monthly_token_limit",
        ]  # fmt: skip
        read_only_fields = fields


class TokenIn(Closed):
    """What a new token may do, and for how long."""

    name = serializers.CharField(max_length=80)
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=Scope.choices), min_length=1, max_length=5
    )
    days = serializers.IntegerField(min_value=1, max_value=3650, default=90)
    max_concurrent = serializers.IntegerField(
        min_value=1, max_value=MAX_CONCURRENT, default=None, allow_null=True,
        help_text="Requests that the key may run at once; null: 16.",
    )  # fmt: skip
    monthly_token_limit = serializers.IntegerField(
        min_value=1, max_value=MAX_MONTHLY_TOKENS, default=None, allow_null=True,
        help_text="Tokens of prompts and answers in a calendar month (UTC); null: not limited.",
    )  # fmt: skip


class TokenMade(TokenOut):
    """A fresh token; the secret is shown here and never again."""

    secret = serializers.CharField(read_only=True)

    class Meta(TokenOut.Meta):
        fields = [*TokenOut.Meta.fields, "secret"]
        read_only_fields = fields


class MeView(ClosedRequest, APIView):
    """The caller."""

    grants = READ_ONLY

    @extend_schema(responses=WhoAmI)
    def get(self, request: Request) -> Response:
        """Say who calls, in which team, with which role and scopes."""
        caller = request._request.caller  # type: ignore[attr-defined]
        scopes = caller.token.scopes if caller.token else None
        name = caller.user.get_username() if caller.user else ""
        return Response({"user": name, "team": caller.team.slug, "role": caller.role.value, "scopes": scopes})


class TokenViewSet(TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """The team's tokens: list, make, revoke (for admins)."""

    grants = MANAGE_ONLY
    queryset = ApiToken.objects.order_by("-id")
    serializer_class = TokenOut

    @extend_schema(request=TokenIn, responses={201: TokenMade})
    def create(self, request: Request) -> Response:
        """Make a token and show its secret once."""
        wanted = TokenIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        token, secret = api_token_create(caller=self.caller, **wanted.validated_data)
        return Response({**TokenOut(token).data, "secret": secret}, status=status.HTTP_201_CREATED)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any = None) -> Response:
        """Revoke a token at once."""
        api_token_revoke(caller=self.caller, token_id=self.get_object().pk)
        return Response(status=status.HTTP_204_NO_CONTENT)
