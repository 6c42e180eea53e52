"""The schema of the REST API, for programs and for people."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from drf_spectacular.views import SpectacularAPIView

from accounts.access import Role, Scope, role_required
from accounts.permissions import READ_ONLY, GrantedByRoleAndScope
from api.reference import Reference
from api.schema import described
from gateway.asgi import application as gateway


class SchemaView(SpectacularAPIView):
    """OpenAPI 3 of everything under /api/v1."""

    grants = READ_ONLY
    permission_classes = [GrantedByRoleAndScope]


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
