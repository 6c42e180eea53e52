"""What the pages say about a map."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from common.figures import is_chinese
from common.verdict import Verdict
from routing.drafts import Draft, Problem, problems_of, remarks_of
from routing.models import DomainMap


@dataclass(frozen=True, slots=True)
class MapVerdict(Verdict):
    """The page's answer, then everything else there is to say."""

    problems: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = ()


def verdict_of(draft: Draft, *, is_sent: bool = False) -> MapVerdict:
    """Can the map be used, and does each domain have a home of its own? A draft that was sent is not blank."""
    problems, remarks = tuple(problems_of(draft)), tuple(remarks_of(draft))
    if draft.is_blank and not is_sent:
        strong = _("Name the first domain, and light the experts that shall be its own.")
        return MapVerdict("off", strong, "", problems)
    if problems:
        more = len(problems) - 1
        rest = ngettext("One more thing is missing.", "%(count)s more things are missing.", more) % {"count": more}
        return MapVerdict("danger", problems[0].text, rest if more else "", problems, remarks)
    own = ngettext(
        "%(count)s domain has experts of its own;", "%(count)s domains have experts of their own;", len(draft.domains)
    ) % {"count": len(draft.domains)}
    general = len(draft.general_experts)
    if not general:
        return MapVerdict("caution", _("Every expert belongs to a domain."), remarks[0], problems, remarks)
    rest = ngettext(
        "%(count)s general expert takes the rest.", "%(count)s general experts take the rest.", general
    ) % {"count": general}
    if _is_shared(draft):
        # The first remark names the expert that two domains share.
        return MapVerdict("caution", remarks[0], rest, problems, remarks)
    gap = "" if is_chinese() else " "
    return MapVerdict("ok", f"{own}{gap}{rest}", "", problems, remarks)


def _is_shared(draft: Draft) -> bool:
    """Whether two domains claim one expert."""
    every = [expert for one in draft.domains for expert in one.experts]
    return len(every) != len(set(every))


def list_verdict(maps: list[tuple[DomainMap, MapVerdict]]) -> Verdict:
    """Is there a map that can be used?"""
    if not maps:
        return Verdict("off", _("No domain is mapped yet."), _("A map gives each business domain experts of its own."))
    newest, verdict = maps[0]
    strong = _("%(name)s: %(sentence)s") % {"name": newest.name, "sentence": verdict.strong}
    return Verdict(verdict.state, strong, verdict.rest)
