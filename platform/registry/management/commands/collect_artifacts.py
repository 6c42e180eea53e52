"""`manage.py collect_artifacts`: remove objects of the store that nothing refers to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from registry.collector import GRACE, collect


class Command(BaseCommand):
    """Collect, or say what would be collected."""

    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the grace and the dry run."""
        hours = int(GRACE.total_seconds() // 3600)
        parser.add_argument("--grace-hours", type=int, default=hours, help=f"keep younger objects (default {hours})")
        parser.add_argument("--dry-run", action="store_true", help="only say what would go")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run once."""
        found = collect(grace=timedelta(hours=max(1, options["grace_hours"])), dry_run=options["dry_run"])
        verb = "would remove" if options["dry_run"] else "removed"
        self.stdout.write(f"{verb} {len(found.removed)} objects, {found.num_bytes:,} bytes; {found.num_parts} parts")
