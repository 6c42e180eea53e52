"""The OpenAPI schema, with what each operation needs: `x-role` of a person and `x-scope` of a token. Bodies are closed."""

from __future__ import annotations

from functools import cache
from typing import Any

from django.utils import translation
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema

from accounts.permissions import Grants
from common.closed import Closed


class GrantedSchema(AutoSchema):
    """Says of every operation who may call it, as `accounts.permissions` will decide, and which fields end a body."""

    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """Return the operation with its grant."""
        operation: dict[str, Any] | None = super().get_operation(*args, **kwargs)  # type: ignore[no-untyped-call]
        grants: Grants | None = getattr(self.view, "grants", None)
        grant = grants.for_method(self.method) if grants else None
        if operation is not None and grant is not None:
            operation |= {"x-role": grant.role.value, "x-scope": grant.scope.value}
        return operation

    def _map_basic_serializer(self, serializer: Any, direction: str) -> dict[str, Any]:
        drawn: dict[str, Any] = super()._map_basic_serializer(serializer, direction)  # type: ignore[no-untyped-call]
        return drawn | {"additionalProperties": False} if isinstance(serializer, Closed) else drawn


@cache
def described() -> dict[str, Any]:
    """Return the whole schema, drawn once a process and in English whoever asks first."""
    with translation.override("en"):
        schema: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return schema
