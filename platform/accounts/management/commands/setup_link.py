"""`manage.py setup_link`: print the one-time path that makes the first admin, or nothing when there is one."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand
from django.urls import reverse

from accounts.services import admin_exists, setup_token_issue


class Command(BaseCommand):
    """Print the set-up path."""

    help = __doc__

    def handle(self, *args: Any, **options: Any) -> None:
        """Issue a link while no admin exists."""
        if not admin_exists():
            self.stdout.write(reverse("accounts:setup", args=[setup_token_issue()]))
