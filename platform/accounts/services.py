"""What can be done with people, teams and tokens."""

from __future__ import annotations

from datetime import timedelta

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.text import slugify
from django.utils.translation import gettext as _

from accounts.access import SCOPE_ROLE, Role, Scope
from accounts.audit import audit_record
from accounts.caller import Caller
from accounts.models import ApiToken, Membership, SetupToken, Team, User
from accounts.tokens import token_digest, token_new, token_shown
from common.errors import Conflict, Invalid, NotFound
from common.figures import listed

SETUP_LINK_LIFE = timedelta(hours=24)
SETUP_LOCK = 0x73657475
# Bounds of what a token may ask for, so that a slip of the finger is not a limit.
MAX_CONCURRENT = 1000
DEFAULT_CONCURRENT = 16
MAX_MONTHLY_TOKENS = 10**12


def admin_exists() -> bool:
    """Whether somebody can already administer this installation."""
    return User.objects.filter(is_superuser=True, is_active=True).exists()


def setup_token_issue() -> str:
    """Return a one-time secret for the set-up link. Older unused links stop working."""
    if admin_exists():
        raise Conflict(_("This installation has an admin already; sign in instead."))
    token = token_new()
    with transaction.atomic():
        SetupToken.objects.filter(used_at=None).delete()
        SetupToken.objects.create(digest=token_digest(token), expires_at=timezone.now() + SETUP_LINK_LIFE)
    return token


def setup_token_valid(token: str) -> bool:
    """Whether a set-up link may still be used."""
    fresh = SetupToken.objects.filter(digest=token_digest(token), used_at=None, expires_at__gt=Now())
    return fresh.exists() and not admin_exists()


@transaction.atomic
def first_admin_create(*, token: str, username: str, password: str, team_name: str) -> User:
    """Make the first admin and the first team, using up the set-up link."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [SETUP_LOCK])
    used = SetupToken.objects.filter(digest=token_digest(token), used_at=None, expires_at__gt=Now()).update(
        used_at=Now()
    )
    if admin_exists() or used != 1:
        raise NotFound(_("This set-up link has been used or has expired."))
    user = user_create(username=username, password=password, staff=True)
    team = team_create(name=team_name, owner=user)
    audit_record(caller=None, team=team, action="setup.admin_created", target=user.username)
    return user


def user_create(*, username: str, password: str, staff: bool = False) -> User:
    """Make a person, refusing weak passwords and names that are taken or odd."""
    user = User(username=username.strip(), is_staff=staff, is_superuser=staff)
    wrong: dict[str, str] = {}
    try:
        validate_password(password, user)
    except ValidationError as error:
        wrong["password"] = " ".join(error.messages)
    user.set_password(password)
    try:
        user.full_clean()
    except ValidationError as error:
        wrong |= {name: " ".join(map(str, messages)) for name, messages in error.message_dict.items()}
    if wrong:
        raise Invalid(_("The account was not made."), fields=wrong)
    try:
        with transaction.atomic():
            user.save()
    except IntegrityError as error:  # somebody took the name since
        taken = User._meta.get_field("username").error_messages["unique"]
        raise Invalid(_("The account was not made."), fields={"username": str(taken)}) from error
    return user


def team_create(*, name: str, owner: User) -> Team:
    """Make a team with its first admin."""
    name = name.strip()
    if not name:
        raise Invalid(_("A team needs a name."), fields={"team_name": _("Give a name.")})
    slug = slugify(name) or "team"
    for number in range(1, 100):
        try:
            with transaction.atomic():
                team = Team.objects.create(name=name, slug=slug if number == 1 else f"{slug}-{number}")
                Membership.objects.create(user=owner, team=team, role=Role.ADMIN)
                return team
        except IntegrityError:
            continue
    raise Conflict(_("There are too many teams of this name."))


@transaction.atomic
def api_token_create(
    *,
    caller: Caller,
    name: str,
    scopes: list[str],
    days: int | None = 90,
    max_concurrent: int | None = None,
    monthly_token_limit: int | None = None,
) -> tuple[ApiToken, str]:
    """Make a token of at most the caller's own rights; the second value is shown once and kept nowhere."""
    wanted = _known_scopes(scopes)
    for scope in wanted:
        caller.must_be(SCOPE_ROLE[scope])
    if not name.strip():
        raise Invalid(_("A token needs a name."), fields={"name": _("Give a name.")})
    if days is not None and not 1 <= days <= 3650:
        raise Invalid(_("The life of a token is 1 to 3650 days."), fields={"days": str(days)})
    limits = _checked_limits(caller.role, max_concurrent, monthly_token_limit)
    secret = token_new()
    token = ApiToken.objects.create(
        team=caller.team,
        created_by=caller.user,
        name=name.strip()[:80],
        prefix=token_shown(secret),
        digest=token_digest(secret),
        scopes=[scope.value for scope in wanted],
        expires_at=timezone.now() + timedelta(days=days) if days else None,
        **limits,
    )
    audit_record(caller=caller, action="token.created", target=token, scopes=token.scopes, limits=limits)
    return token, secret


def scopes_of(role: Role) -> list[Scope]:
    """Return the scopes that a person of this role may give to a token."""
    return [scope for scope in Scope if role.covers(SCOPE_ROLE[scope])]


def most_concurrent(role: Role) -> int:
    """Return how many requests at once a person of this role may allow a token: more than usual is an admin's choice."""
    return MAX_CONCURRENT if role.covers(Role.ADMIN) else DEFAULT_CONCURRENT


def _checked_limits(
    role: Role, max_concurrent: int | None, monthly_token_limit: int | None
) -> dict[str, int]:
    """Return the limits that were given, refusing those out of bounds; the others keep the model's defaults."""
    given = (
        ("max_concurrent", max_concurrent, most_concurrent(role)),
        ("monthly_token_limit", monthly_token_limit, MAX_MONTHLY_TOKENS),
    )
    for name, value, most in given:
        if value is not None and not 1 <= value <= most:
            reason = _("%(value)s is no limit: give 1 to %(most)s, or leave it empty.") % {
                "value": value,
                "most": most,
            }
            raise Invalid(reason, fields={name: reason})
    return {name: value for name, value, _most in given if value is not None}


def _known_scopes(scopes: list[str]) -> list[Scope]:
    """Return the scopes in order, refusing unknown ones by name."""
    unknown = sorted(set(scopes) - set(Scope.values))
    if unknown or not scopes:
        known = listed(Scope.values)
        reason = _("Choose at least one of the scopes %(known)s.") % {"known": known}
        raise Invalid(reason, fields={"scopes": reason})
    return [scope for scope in Scope if scope.value in scopes]


@transaction.atomic
def api_token_revoke(*, caller: Caller, token_id: int) -> None:
    """End a token at once. A member may end tokens that they made, an admin every one of the team."""
    token = ApiToken.objects.filter(team=caller.team, pk=token_id).first()
    if token is None:
        raise NotFound(_("There is no such token."))
    if token.created_by != caller.user:
        caller.must_be(Role.ADMIN)
    if ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=Now()):
        audit_record(caller=caller, action="token.revoked", target=token)
