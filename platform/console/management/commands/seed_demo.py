"""`manage.py seed_demo`: what the main job starts from — the example domains, the sample logs, the small model."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.access import Role
from accounts.caller import Caller
from accounts.models import Membership
from console.workers import builtin_offer
from corpora.models import Corpus
from corpora.services import corpus_from_samples
from jobs.models import Job
from jobs.services import job_submit
from registry.models import Model
from routing.models import DomainMap
from routing.services import map_create_example


class Command(BaseCommand):
    """Fill a team with sample data; what is there already stays as it is."""

    help = "Give a team the example domains, the sample logs and an import of the small model."

    def add_arguments(self, parser: CommandParser) -> None:
        """The team, by its slug."""
        parser.add_argument("--team", default="", help="slug of the team; the oldest one when not given")

    def handle(self, *args: Any, **options: Any) -> None:
        """Add what is missing."""
        caller = admin_of(options["team"])
        if not DomainMap.objects.filter(team=caller.team).exists():
            self.stdout.write(f"Domain map: {map_create_example(caller=caller)}")
        if not Corpus.objects.filter(team=caller.team).exists():
            self.stdout.write(f"Corpus: {corpus_from_samples(caller=caller)}")
        offer = builtin_offer()
        busy = Job.objects.filter(team=caller.team, kind="import").exists()
        if offer and not busy and not Model.objects.filter(team=caller.team).exists():
            spec = {"name": offer["title"], "source": {"kind": "builtin", "name": offer["name"]}}
            self.stdout.write(f"Import: {job_submit(caller=caller, kind='import', spec=spec)}")
        self.stdout.write(f"The team {caller.team} has what the main job starts from.")


def admin_of(slug: str) -> Caller:
    """The oldest admin of the team as a caller."""
    found = Membership.objects.filter(role=Role.ADMIN, user__is_active=True).select_related("team", "user")
    member = (found.filter(team__slug=slug) if slug else found).order_by("team_id", "id").first()
    if member is None:
        raise CommandError("There is no such team with an admin; make the first admin in the browser first.")
    return Caller(team=member.team, user=member.user, role=Role.ADMIN)
