"""What the pages say about a map."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from routing.drafts import Draft, problems_of, remarks_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """The page's answer, then everything else there is to say."""

    state: str
    strong: str
    rest: str
    problems: list[str]
    remarks: list[str]


def verdict_of(draft: Draft) -> Verdict:
    """Can the map be used, and does each domain have a home of its own?"""
    problems, remarks = problems_of(draft), remarks_of(draft)
    if problems:
        more = len(problems) - 1
        rest = ngettext("One more thing is missing.", "%(count)s more things are missing.", more) % {"count": more}
        return Verdict("danger", problems[0], rest if more else "", problems, remarks)
    own = ngettext(
        "%(count)s domain has experts of its own;", "%(count)s domains have experts of their own;", len(draft.domains)
    ) % {"count": len(draft.domains)}
    general = len(draft.general_experts)
    if not general:
        return Verdict("caution", _("Every expert belongs to a domain."), remarks[0], problems, remarks)
    rest = ngettext(
        "%(count)s general expert takes the rest.", "%(count)s general experts take the rest.", general
    ) % {"count": general}
    shared = [text for text in remarks if text]
    state = "caution" if len(shared) and _is_shared(draft) else "ok"
    return Verdict(state, f"{own} {rest}" if not _is_chinese() else f"{own}{rest}", "", problems, remarks)


def _is_shared(draft: Draft) -> bool:
    """Whether two domains claim one expert."""
    every = [expert for one in draft.domains for expert in one.experts]
    return len(every) != len(set(every))


def _is_chinese() -> bool:
    from common.figures import is_chinese

    return is_chinese()
