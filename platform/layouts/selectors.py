"""Look-ups of layouts, cut to one team."""

from __future__ import annotations

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from accounts.models import Team
from common.errors import NotFound
from common.uses import tells_presence
from layouts.models import Layout, LayoutRevision


def layouts_of(team: Team) -> QuerySet[Layout]:
    """Return the team's layouts, newest first, with their base versions."""
    return Layout.objects.filter(team=team).select_related("base_version__model", "created_by").order_by("-id")


def layout_get(team: Team, pk: int) -> Layout:
    """Return one of the team's layouts or raise NotFound."""
    layout = layouts_of(team).filter(pk=pk).first()
    if layout is None:
        raise NotFound(_("There is no layout number %(number)s here.") % {"number": pk})
    return layout


def revisions_of(layout: Layout) -> QuerySet[LayoutRevision]:
    """Return a layout's revisions, newest first."""
    return layout.revisions.select_related("created_by", "base_version__model").order_by("-revision")


def revision_get(layout: Layout, number: int) -> LayoutRevision:
    """Return one revision or raise NotFound."""
    revision = revisions_of(layout).filter(revision=number).first()
    if revision is None:
        raise NotFound(_("This layout has no revision %(number)s.") % {"number": number})
    return revision


def is_present(team_id: int, pk: int) -> bool:
    """Return whether the team still has it."""
    return Layout.objects.filter(team_id=team_id, pk=pk).exists()


tells_presence("layout", is_present)
