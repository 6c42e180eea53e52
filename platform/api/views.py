"""The schema of the REST API."""

from __future__ import annotations

from drf_spectacular.views import SpectacularAPIView

from accounts.permissions import READ_ONLY, GrantedByRoleAndScope


class SchemaView(SpectacularAPIView):
    """OpenAPI 3 of everything under /api/v1."""

    grants = READ_ONLY
    permission_classes = [GrantedByRoleAndScope]


schema = SchemaView.as_view()
