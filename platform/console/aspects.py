"""The lamps of the shelf: the few facts that hold for every page."""

from __future__ import annotations

from typing import Any, TypedDict

from django.utils.translation import ngettext

from console import counts, navigation


class Aspect(TypedDict):
    """One lamp of the shelf."""

    lamp: str
    text: str
    url: str


def aspects(team: Any) -> list[Aspect]:
    """Deployments and running jobs of the team; an aspect without a page is not shown."""
    return [aspect for aspect in (_deployments(team), _jobs(team)) if aspect is not None]


def _deployments(team: Any) -> Aspect | None:
    url, count = navigation.address("deployments:list"), counts.deployments(team)
    if url is None or not count:
        return None
    text = ngettext("%(count)s deployment", "%(count)s deployments", count) % {"count": count}
    return {"lamp": "ok", "text": text, "url": url}


def _jobs(team: Any) -> Aspect | None:
    url, count = navigation.address("jobs:list"), counts.open_jobs(team)
    if url is None:
        return None
    text = ngettext("%(count)s job running", "%(count)s jobs running", count) % {"count": count}
    return {"lamp": "busy" if count else "off", "text": text, "url": url}
