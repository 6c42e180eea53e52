"""What open jobs use: the layout, the domain map and the logs that each was asked with."""

from __future__ import annotations

from collections.abc import Iterable

from django.utils.translation import gettext as _

from common.uses import finds_users
from jobs.choices import OPEN
from jobs.models import Job


def users_of_map(team_id: int, pk: int) -> Iterable[str]:
    """Name the open jobs that tune for a map."""
    return _names(team_id, inputs__domain_map__id=pk)


def users_of_layout(team_id: int, pk: int) -> Iterable[str]:
    """Name the open jobs that build with a layout."""
    return _names(team_id, inputs__layout__id=pk)


def users_of_corpus(team_id: int, pk: int) -> Iterable[str]:
    """Name the open jobs that learn from a corpus or measure on it."""
    return _names(team_id, inputs__corpus__id=pk)


def _names(team_id: int, **condition: int) -> Iterable[str]:
    for number in Job.objects.filter(team_id=team_id, state__in=OPEN, **condition).values_list(
        "pk", flat=True
    ):
        yield _("job %(number)s") % {"number": number}


finds_users("domain_map", users_of_map)
finds_users("layout", users_of_layout)
finds_users("corpus", users_of_corpus)
