"""The schema of the REST API, for programs and for people."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from drf_spectacular.utils import OpenApiParameter, extend_schema
from drf_spectacular.views import SpectacularAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import Role, Scope, role_required
from accounts.permissions import READ_ONLY, GrantedByRoleAndScope
from api.reference import Reference
from api.schema import described
from common.closed_requests import ClosedRequest, takes_query
from gateway.asgi import application as gateway


class SchemaView(ClosedRequest, SpectacularAPIView):
    """OpenAPI 3 of everything under /api/v1."""

    grants = READ_ONLY
    permission_classes = [GrantedByRoleAndScope]

    @takes_query(OpenApiParameter("lang", str, description="The language of its descriptions."))
    @extend_schema(exclude=True)
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Draw the schema."""
        return super().get(request, *args, **kwargs)  # type: ignore[no-untyped-call, no-any-return]


schema = SchemaView.as_view()


@role_required(Role.VIEWER)
@require_safe
def reference(request: HttpRequest) -> HttpResponse:
    """Show every operation, from the same schema that programs read; no script or style from elsewhere."""
    read = Reference(described())
    context = {
        "parts": read.parts(),
        "shapes": read.shapes(),
        "scopes": Scope.choices,
        "gateway": [(path, sorted(set(methods) - {"HEAD"})) for path, methods in gateway.routes.items()],
        "base": request.build_absolute_uri("/").rstrip("/"),
    }
    return render(request, "api/reference.html", context)
