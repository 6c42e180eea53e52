"""`manage.py api_token_issue --user NAME --scopes read,write`: print a token for a program on this machine."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.models import User
from accounts.selectors import caller_of
from accounts.services import api_token_create


class Command(BaseCommand):
    """Make a token on behalf of a person and print it once."""

    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        """Read whose token it is and what it may do."""
        parser.add_argument("--user", help="the person; without it the first admin")
        parser.add_argument("--name", default="command line")
        parser.add_argument("--scopes", default="read,write,deploy,infer")
        parser.add_argument("--days", type=int, default=1)

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the token."""
        people = User.objects.filter(is_active=True).order_by("id")
        user = (
            people.filter(username=options["user"]).first()
            if options["user"]
            else people.filter(is_superuser=True).first()
        )
        caller = caller_of(user) if user else None
        if caller is None:
            raise CommandError("There is no such person with a team; open the set-up link first.")
        _token, secret = api_token_create(
            caller=caller, name=options["name"], scopes=options["scopes"].split(","), days=options["days"]
        )
        self.stdout.write(secret)
