"""What a tuning did, in two sentences: is it better, and was it the map? The same on the job's page and the version's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from common import figures, gains
from common.verdict import Verdict

Figures = Mapping[str, Any]


def tuned_verdict(before: Figures, after: Figures, control: Figures) -> Verdict:
    """The whole answer, once before and after are measured."""
    strong = figures.sentences(_domains(before, after), loss_sentence(before, after))
    rest = figures.sentences(load_sentence(before, after), share_sentence(before, after, control))
    return Verdict(gains.lamp_of(before, after, control), strong, rest)


def loss_sentence(before: Figures, after: Figures) -> str:
    """Whether the loss fell, by more than chance."""
    ours, now = gains.number_of(before, "loss"), gains.number_of(after, "loss")
    moved = gains.change(ours, now) or 0.0
    words = {"share": figures.percent(abs(moved), 1)}
    match gains.judge("loss", ours, now):
        case "better":
            return _("Held-out loss fell by %(share)s.") % words
        case "worse":
            return _("Held-out loss rose by %(share)s.") % words
    return _("Held-out loss did not change by more than chance (%(share)s).") % {
        "share": figures.percent(moved, 1)
    }


def load_sentence(before: Figures, after: Figures) -> str:
    """Whether the load got more even."""
    ours, now = gains.number_of(before, "max_vio"), gains.number_of(after, "max_vio")
    words = {"before": figures.number(ours, 2), "after": figures.number(now, 2)}
    match gains.judge("max_vio", ours, now):
        case "better":
            return _("MaxVio fell from %(before)s to %(after)s: the load is more even.") % words
        case "worse":
            return _("MaxVio rose from %(before)s to %(after)s: the load is less even.") % words
    return _("MaxVio stayed at %(after)s (%(before)s before).") % words


def share_sentence(before: Figures, after: Figures, control: Figures) -> str:
    """Whether tokens reach the experts of their domain, and whether it was the map that did it."""
    words = {
        "share": figures.percent(gains.number_of(after, "mapped_share")),
        "before": figures.percent(gains.number_of(before, "mapped_share")),
        "control": figures.percent(gains.number_of(control, "mapped_share")),
    }
    reach = _("%(share)s of the tokens reach their own experts (%(before)s before).") % words
    lead = gains.lead_of(after, control)
    if lead is None:
        return figures.sentences(reach, _("No control was run, so it is not known whether the map did this."))
    if lead >= gains.REAL_LEAD:
        return figures.sentences(reach, _("With a deranged map it is %(control)s: the map did this.") % words)
    return figures.sentences(
        reach, _("With a deranged map it is %(control)s as well: it was not the map.") % words
    )


def _domains(before: Figures, after: Figures) -> str:
    """How many domains improve."""
    known = [change for change in gains.judged_domains(before, after).values() if change]
    better, worse = known.count("better"), known.count("worse")
    words = {"better": better, "of": len(known), "worse": worse}
    if not known:
        return ""
    if better == len(known):
        return ngettext("The one domain improves.", "All %(of)s domains improve.", len(known)) % words
    if worse:
        return _("%(better)s of %(of)s domains improve, %(worse)s get worse.") % words
    return _("%(better)s of %(of)s domains improve, none gets worse.") % words
