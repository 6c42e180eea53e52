"""Makes the token with which the demo client works; run as `python -m standalone.demo_access`, answers in JSON.

The token belongs to the first admin. Where there is none yet, to a plain person `demo` with a team of its own, made
here with a random password, so that the link that makes the first admin stays good for its owner.
"""

from __future__ import annotations

import json
import secrets
import sys

USERNAME = "demo"
SCOPES = ["read", "write", "deploy", "infer"]


def main() -> None:
    """Find or make the person, make a token for a day, print both."""
    import django

    django.setup()
    from accounts.models import User
    from accounts.selectors import caller_of
    from accounts.services import api_token_create, team_create, user_create

    password = None
    admins = User.objects.filter(is_active=True, is_superuser=True).order_by("id")
    user = admins.first() or User.objects.filter(username=USERNAME).first()
    if user is None:
        password = secrets.token_urlsafe(15)
        user = user_create(username=USERNAME, password=password)
        team_create(name="Demo", owner=user)
    caller = caller_of(user)
    if caller is None:
        raise SystemExit(f"{user.username} belongs to no team, so no token can be made for the demo.")
    _row, token = api_token_create(caller=caller, name="demo", scopes=SCOPES, days=1)
    sys.stdout.write(json.dumps({"token": token, "username": user.username, "password": password}) + "\n")


if __name__ == "__main__":
    main()
