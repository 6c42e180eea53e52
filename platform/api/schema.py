"""The OpenAPI schema, with what each operation needs: `x-role` of a person and `x-scope` of a token."""

from __future__ import annotations

from functools import cache
from typing import Any

from django.utils import translation
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema

from accounts.permissions import Grants


class GrantedSchema(AutoSchema):
    """Says of every operation who may call it, as `accounts.permissions` will decide."""

    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """Return the operation with its grant."""
        operation: dict[str, Any] | None = super().get_operation(*args, **kwargs)  # type: ignore[no-untyped-call]
        grants: Grants | None = getattr(self.view, "grants", None)
        grant = grants.for_method(self.method) if grants else None
        if operation is not None and grant is not None:
            operation |= {"x-role": grant.role.value, "x-scope": grant.scope.value}
        return operation


@cache
def described() -> dict[str, Any]:
    """Return the whole schema, drawn once a process and in English whoever asks first."""
    with translation.override("en"):
        schema: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return schema
