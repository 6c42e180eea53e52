"""Django's admin without doors of its own: passwords and signing out go the way of the console, with its lines."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.admin.apps import AdminConfig
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect


class TurnoutAdminSite(AdminSite):
    """The site behind /admin/."""

    def password_change(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:  # type: ignore[override]
        """Change one's own password where guesses are counted and the change is audited."""
        return redirect("accounts:password")

    def logout(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:  # type: ignore[override]
        """Sign out as everywhere else."""
        from accounts.entry import SignOut  # the models are not loaded when this module is

        return SignOut.as_view()(request)


class TurnoutAdminConfig(AdminConfig):
    """Django's admin with our site."""

    default_site = "accounts.admin_site.TurnoutAdminSite"
