"""Whether a change of a measured figure is a gain, a loss or noise: the one rule, for every page, the API and the demo.

Held-out logs are a sample, so a small change says nothing: what is within its figure's noise is neither gain nor loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

# "" is what cannot be said yet.
Change = Literal["better", "worse", "same", ""]
WORDS: dict[Change, str | Promise] = {
    "better": _("better"),
    "worse": _("worse"),
    "same": _("unchanged"),
    "": _("not measured yet"),
}
LAMPS: dict[Change, str] = {"better": "ok", "worse": "caution", "same": "off", "": "unknown"}


@dataclass(frozen=True, slots=True)
class Figure:
    """Which way a figure is better, and how far it moves by chance: `noise` in its own unit, or a share of its value."""

    less_is_better: bool
    noise: float
    relative_noise: float = 0.0

    def judge(self, before: float, after: float) -> Change:
        """Compare two values."""
        moved = after - before
        if abs(moved) <= max(self.noise, self.relative_noise * abs(before)):
            return "same"
        return "better" if (moved < 0) == self.less_is_better else "worse"


FIGURES: dict[str, Figure] = {
    # Nats a token.
    "loss": Figure(less_is_better=True, noise=0.0, relative_noise=0.01),
    # Shares of the tokens.
    "mapped_share": Figure(less_is_better=False, noise=0.02),
    # Times the fair share, above it; 0 is even.
    "max_vio": Figure(less_is_better=True, noise=0.05, relative_noise=0.05),
    # 1 where all experts carry the same.
    "entropy": Figure(less_is_better=False, noise=0.01),
    "dead_experts": Figure(less_is_better=True, noise=0.0),
}
# By so much the mapped share must lie above that of a router that learnt another map, or it was not the map.
REAL_LEAD = 0.20


def judge(name: str, before: float | None, after: float | None) -> Change:
    """Whether figure `name` got better; "" while one of the two is not known."""
    return "" if before is None or after is None else FIGURES[name].judge(before, after)


def change(before: float | None, after: float | None) -> float | None:
    """after against before, as a share of before."""
    return None if not before or after is None else after / before - 1.0


def number_of(figures: Mapping[str, Any], name: str) -> float | None:
    """A figure of a report, or None where it holds none."""
    value = figures.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def judged(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Change]:
    """Every figure of a report against the one before."""
    return {name: judge(name, number_of(before, name), number_of(after, name)) for name in FIGURES}


def judged_domains(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Change]:
    """The loss of every domain; rows of no domain are no domain."""
    ours, theirs = (one.get("loss_by_domain") or {} for one in (before, after))
    return {code: judge("loss", ours[code], theirs.get(code)) for code in ours if code}


def lead_of(after: Mapping[str, Any], control: Mapping[str, Any]) -> float | None:
    """By how much the mapped share lies above that of the control; None without one."""
    ours, theirs = number_of(after, "mapped_share"), number_of(control, "mapped_share")
    return None if ours is None or theirs is None else ours - theirs


def lamp_of(before: Mapping[str, Any], after: Mapping[str, Any], control: Mapping[str, Any]) -> str:
    """ "ok" when the loss fell, nothing got worse, and no control did as well; else "caution"."""
    changes = judged(before, after)
    lead = lead_of(after, control)
    worse = "worse" in (*changes.values(), *judged_domains(before, after).values())
    is_real = lead is None or lead >= REAL_LEAD
    return "ok" if changes["loss"] == "better" and is_real and not worse else "caution"
