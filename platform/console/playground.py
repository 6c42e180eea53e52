"""What the playground offers: who answers, which domains there are, and prompts to begin with."""

from __future__ import annotations

import re
from typing import Any

from django.db.models import F
from django.utils.translation import get_language, gettext

from accounts.models import Team
from console import navigation
from deployments.domains import shown_domains
from deployments.models import Deployment
from routing.models import Domain

MAX_STARTERS = 4
HAN = re.compile(r"[\u3400-\u9fff]")


def served_names(team: Team) -> list[str]:
    """The names that the gateway answers to, those that serve first."""
    serving_first = F("live_version_id").asc(nulls_last=True)
    found = Deployment.objects.filter(team=team, deleted_at=None).order_by(serving_first, "name")
    return list(found.values_list("name", flat=True))


def is_served(team: Team) -> bool:
    """Whether some deployment has a version that answers."""
    return Deployment.objects.filter(team=team, deleted_at=None, live_version__isnull=False).exists()


def domains_of(team: Team) -> dict[str, list[dict[str, Any]]]:
    """The domains that requests to each deployment may name: its own frozen copy, whatever became of the map."""
    return {one.name: shown_domains(one) for one in Deployment.objects.filter(team=team, deleted_at=None)}


def starters(team: Team) -> list[dict[str, Any]]:
    """Prompts to begin with: an example of each domain, else one of ours."""
    found: list[dict[str, Any]] = []
    for domain in Domain.objects.filter(map__team=team).order_by("-map__updated_at", "position"):
        text = _in_readers_language([text for text in map(_text, domain.examples) if text])
        if text and domain.code not in {one["domain"].code for one in found}:
            found.append({"prompt": text, "domain": domain})
    plain = gettext("Explain in two sentences why an order may arrive late.")
    return found[:MAX_STARTERS] or [{"prompt": plain, "domain": None}]


def _in_readers_language(texts: list[str]) -> str:
    """The first that is in the reader's language, else the first."""
    chinese = (get_language() or "").startswith("zh")
    return next((text for text in texts if bool(HAN.search(text)) == chinese), texts[0] if texts else "")


def _text(example: Any) -> str:
    if isinstance(example, dict):
        example = example.get(get_language() or "en") or example.get("prompt") or example.get("text") or ""
    return str(example).strip()


def verdict(can_ask: bool) -> dict[str, str]:
    """Can one ask, and whom."""
    if can_ask:
        text = gettext(
            "Answers come from the deployment that you choose, through the same gateway that programs use."
        )
        return {"state": "ok", "text": text, "url": "", "more": ""}
    return {
        "state": "off",
        "text": gettext("Nothing serves yet: deploy a version, and it answers here."),
        "url": navigation.address("deployments:list") or "",
        "more": gettext("Deployments"),
    }
