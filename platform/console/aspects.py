"""The lamps of the shelf: the few facts that hold for every page."""

from __future__ import annotations

from typing import TypedDict

from django.utils.translation import ngettext

from accounts.models import Team
from console import counts, navigation
from deployments.selectors import deployments_of, standing_of

WORST_FIRST = ("danger", "caution", "unknown", "busy", "ok", "off")


class Aspect(TypedDict):
    """One lamp of the shelf."""

    lamp: str
    text: str
    url: str


def aspects(team: Team) -> list[Aspect]:
    """Deployments and running jobs of the team; an aspect without a page is not shown."""
    return [aspect for aspect in (_deployments(team), _jobs(team)) if aspect is not None]


def _deployments(team: Team) -> Aspect | None:
    url = navigation.address("deployments:list")
    standings = [standing_of(one) for one in deployments_of(team)] if url else []
    if url is None or not standings:
        return None
    lamp, wanted = worst([one.lamp for one in standings]), [one for one in standings if one.wanted]
    answering = sum(one.ready > 0 for one in wanted)
    if answering == len(wanted):
        text = ngettext("%(count)s deployment", "%(count)s deployments", len(standings))
        return {"lamp": lamp, "text": text % {"count": len(standings)}, "url": url}
    text = ngettext(
        "%(answering)s of %(count)s deployment answers",
        "%(answering)s of %(count)s deployments answer",
        len(wanted),
    )
    return {"lamp": lamp, "text": text % {"answering": answering, "count": len(wanted)}, "url": url}


def worst(lamps: list[str]) -> str:
    """The lamp that matters most; those that are off on purpose say nothing."""
    return min(lamps, key=lambda lamp: WORST_FIRST.index(lamp))


def _jobs(team: Team) -> Aspect | None:
    url, count = navigation.address("jobs:list"), counts.open_jobs(team)
    if url is None or not count:
        return None
    text = ngettext("%(count)s job running", "%(count)s jobs running", count) % {"count": count}
    return {"lamp": "busy", "text": text, "url": url}
