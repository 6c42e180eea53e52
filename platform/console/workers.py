"""The machines behind the console, and the model that comes along."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext

from deployments.models import Node
from jobs.builtin import CATALOGUE

SILENT_AFTER = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Machine:
    """A node as the overview shows it."""

    name: str
    lamp: str
    word: str
    used_bytes: int | None
    total_bytes: int | None


def nodes() -> list[Machine]:
    """Every node, and whether its agent was heard lately."""
    return [_machine(node) for node in Node.objects.order_by("name")]


def _machine(node: Node) -> Machine:
    heard = node.heartbeat_at is not None and timezone.now() - node.heartbeat_at < SILENT_AFTER
    capacity: dict[str, Any] = node.capacity or {}
    total, free = capacity.get("memory_bytes"), capacity.get("free_bytes")
    return Machine(
        name=node.name,
        lamp="ok" if heard else "danger",
        word=gettext("heard just now") if heard else gettext("silent"),
        used_bytes=total - free if total and free is not None else None,
        total_bytes=total,
    )


def builtin_offer() -> dict[str, Any] | None:
    """The first model that comes along and is installed here."""
    for one in CATALOGUE.values():
        path = one.path()
        if path is not None:
            return {
                "name": one.name,
                "title": one.title,
                "licence": one.licence,
                "size_bytes": path.stat().st_size,
            }
    return None
