"""What a version measured as it is shows: loss by domain, which expert leads for whom, and one sentence of it all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from common import figures, gains
from common.verdict import Verdict

KIND = "measure"
# Steps of the scale of shares.
STEPS = 10


@dataclass(frozen=True, slots=True)
class Loss:
    """One domain: how much of it was read, and the loss in nats a token, beside the other version's if there is one."""

    code: str
    tokens: int
    here: float | None
    other: float | None
    kl: float | None

    @property
    def above(self) -> float | None:
        """By how much the loss is above the other version's."""
        return None if self.here is None or self.other is None else self.here - self.other

    @property
    def verdict(self) -> gains.Change:
        """better, worse, same, or nothing without another version."""
        return gains.judge("loss", self.other, self.here)


@dataclass(frozen=True, slots=True)
class Cell:
    """The expert that leads for one domain in one layer; None where the domain chose nothing there."""

    expert: int
    share: str
    step: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The tables of a measurement."""

    losses: list[Loss]
    codes: list[str]
    leading: list[tuple[str, list[Cell | None]]]
    has_other: bool


def measured_report(report: Mapping[str, Any]) -> Measured | None:
    """What a report says; None for that of another operation."""
    if report.get("kind") != KIND:
        return None
    losses = list(_losses(report))
    codes = [loss.code for loss in losses]
    return Measured(losses, codes, list(_leading(report, codes)), bool(report.get("loss_before")))


def measured_verdict(report: Mapping[str, Any]) -> Verdict:
    """The loss in a sentence, beside the other version's if there is one, and how even the load is in another."""
    found = measured_report(report)
    if found is None or not found.losses:
        return Verdict("ok", _("It is measured."))
    state, strong = _beside(found.losses) if found.has_other else _alone(found.losses)
    asleep = _asleep(report)
    if asleep and state == "ok":
        state = "caution"
    return Verdict(state, strong, _load_sentence(report, asleep))


def _losses(report: Mapping[str, Any]) -> Iterator[Loss]:
    here, other, kl, tokens = (_table(report, name) for name in ("loss", "loss_before", "kl", "tokens"))
    for code, loss in here.items():
        yield Loss(code, int(tokens.get(code) or 0), loss, other.get(code), kl.get(code))


def _leading(report: Mapping[str, Any], codes: Sequence[str]) -> Iterator[tuple[str, list[Cell | None]]]:
    for row in report.get("leading") or []:
        title = _("layer %(number)s") % {"number": row["layer"]}
        yield title, [_cell(row["by_domain"].get(code)) for code in codes]


def _cell(told: Mapping[str, Any] | None) -> Cell | None:
    if told is None:
        return None
    return Cell(told["expert"], figures.percent(told["share"]), round(STEPS * told["share"]))


def _no_number(codes: Sequence[str]) -> str:
    return _(
        "The loss is no number for %(codes)s: a weight of the version, or what it makes of one, is not finite."
    ) % {"codes": figures.listed(codes)}


def _alone(losses: Sequence[Loss]) -> tuple[str, str]:
    broken = [loss.code for loss in losses if loss.here is None]
    return ("danger", _no_number(broken)) if broken else ("ok", _mean_sentence(losses))


def _mean_sentence(known: Sequence[Loss]) -> str:
    worst = max(known, key=lambda loss: loss.here or 0.0)
    words = {
        "mean": figures.number(sum(loss.here or 0.0 for loss in known) / len(known), 3),
        "count": len(known),
        "code": worst.code,
        "most": figures.number(worst.here, 3),
    }
    if len(known) == 1:
        return _("The loss of %(code)s is %(most)s nats a token.") % words
    return (
        _(
            "The loss is %(mean)s nats a token over %(count)s domains; the highest is that of %(code)s, %(most)s."
        )
        % words
    )


def _beside(losses: Sequence[Loss]) -> tuple[str, str]:
    broken = [loss.code for loss in losses if loss.here is None]
    if broken:
        return "danger", _no_number(broken)
    unknown = [loss.code for loss in losses if loss.other is None]
    if unknown:
        sentence = _(
            "The other version's loss is no number for %(codes)s, so that nothing can be held against it there."
        )
        return "caution", sentence % {"codes": figures.listed(unknown)}
    worse = [loss for loss in losses if loss.verdict == "worse"]
    better = [loss for loss in losses if loss.verdict == "better"]
    words: dict[str, Any] = {"count": len(worse or better), "of": len(losses)}
    if worse:
        worst = max(worse, key=lambda loss: loss.above or 0.0)
        words |= {"code": worst.code, "nats": figures.number(worst.above, 3)}
        sentence = _(
            "The loss of %(count)s of %(of)s domains is above that of the other version; most of all that of %(code)s, by "
            "%(nats)s nats a token."
        )
        return "caution", sentence % words
    if better:
        return "ok", _(
            "The loss of %(count)s of %(of)s domains is below that of the other version, and of none above."
        ) % words
    return "ok", _("No domain's loss differs from that of the other version by more than chance.")


def _asleep(report: Mapping[str, Any]) -> int:
    return round(sum(row.get("dead_experts") or 0 for row in _routing(report).get("layers") or []))


def _load_sentence(report: Mapping[str, Any], asleep: int) -> str:
    mean = _routing(report).get("mean") or {}
    if "max_vio" not in mean:
        return ""
    busiest = _("The busiest expert of a layer carries %(times)s times the mean load.") % {
        "times": figures.number(1.0 + mean["max_vio"], 2)
    }
    if not asleep:
        return figures.sentences(busiest, _("No expert is asleep."))
    sleeping = ngettext("%(count)s expert is asleep.", "%(count)s experts are asleep.", asleep) % {
        "count": asleep
    }
    return figures.sentences(busiest, sleeping)


def _routing(report: Mapping[str, Any]) -> Mapping[str, Any]:
    return _table(report, "routing")


def _table(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = report.get(name)
    return value if isinstance(value, dict) else {}
