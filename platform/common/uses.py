"""Which things are in use, and which are still there: rooms register what they know of a kind, any other room asks.

A lower room may not import a higher one, yet must refuse to delete what it uses; and a page shows lineage by number,
after the thing itself may be gone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Literal

from django.utils.translation import gettext as _

from common.errors import Conflict
from common.figures import is_chinese

Kind = Literal["layout", "domain_map", "corpus"]
# Each takes a team's number and a thing's number.
Finder = Callable[[int, int], Iterable[str]]
Presence = Callable[[int, int], bool]

MAX_NAMED = 5
_finders: defaultdict[Kind, list[Finder]] = defaultdict(list)
_presences: dict[Kind, Presence] = {}


def finds_users(kind: Kind, finder: Finder) -> None:
    """Register who names the users of things of a kind; once is enough."""
    if finder not in _finders[kind]:
        _finders[kind].append(finder)


def tells_presence(kind: Kind, presence: Presence) -> None:
    """Register who knows whether a team still has a thing of a kind."""
    _presences[kind] = presence


def users_of(kind: Kind, team_id: int, pk: int) -> list[str]:
    """Return the names of what uses a thing now."""
    return [name for finder in _finders[kind] for name in finder(team_id, pk)]


def refuse_used(kind: Kind, team_id: int, pk: int, name: str) -> None:
    """Raise Conflict that names the users of a thing, if it has any."""
    users = users_of(kind, team_id, pk)
    if not users:
        return
    more = len(users) - MAX_NAMED
    named = ("、" if is_chinese() else ", ").join(users[:MAX_NAMED]) + (
        _(" and %(count)s more") % {"count": more} if more > 0 else ""
    )
    sentence = _("%(name)s is in use by %(users)s; change or end these first, then delete it.")
    raise Conflict(sentence % {"name": name, "users": named}, code="in_use")


def is_present(kind: Kind, team_id: int, pk: int) -> bool:
    """Return whether the team still has the thing."""
    return _presences[kind](team_id, pk)
