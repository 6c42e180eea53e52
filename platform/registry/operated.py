"""What an operation on experts did, as the pages of its job and of its version show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from common import figures, gains
from common.verdict import Verdict
from registry.operated_facts import operated_facts
from registry.packed import PackedErrors, packed_errors

OPERATIONS: dict[str, Promise] = {
    "grow": gettext_lazy("Grow"),
    "release_twins": gettext_lazy("Release twins"),
    "add": gettext_lazy("Add one"),
    "remove": gettext_lazy("Remove one"),
    "merge": gettext_lazy("Merge two"),
    "specialise_clone": gettext_lazy("Clone and specialise"),
    "wake_expert": gettext_lazy("Wake one"),
    "quantise": gettext_lazy("Quantise"),
    "dequantise": gettext_lazy("Give floats back"),
    "distil": gettext_lazy("Distil"),
    "compose": gettext_lazy("Compose"),
    "upcycle": gettext_lazy("Lay experts"),
    "measure": gettext_lazy("Measure"),
}


@dataclass(frozen=True, slots=True)
class DomainChange:
    """Loss of one domain before and after, in nats a token."""

    code: str
    before: float | None
    after: float | None
    kl: float | None
    # Whether it was measured afterwards: then None is a loss that is no number.
    is_measured: bool = True

    @property
    def change(self) -> float | None:
        """By how much the loss rose."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def verdict(self) -> gains.Change:
        """better, worse, same, or nothing while it cannot be said."""
        return gains.judge("loss", self.before, self.after)


@dataclass(frozen=True, slots=True)
class Operated:
    """The report of an operation in words and rows."""

    facts: list[tuple[str, str]]
    domains: list[DomainChange]
    packed: PackedErrors | None = None


def operated_report(report: Mapping[str, Any]) -> Operated | None:
    """What a report says; None where it is not the report of an operation."""
    if report.get("kind") not in OPERATIONS:
        return None
    return Operated(list(operated_facts(report)), list(_domains(report)), packed_errors(report))


def operation_title(kind: str) -> str:
    """The operation's name in the reader's language."""
    return str(OPERATIONS.get(kind, kind))


def operated_verdict(operated: Operated | None) -> Verdict:
    """Whether a domain lost anything by it."""
    rows = operated.domains if operated else []
    if broken := [row.code for row in rows if row.is_measured and row.after is None]:
        sentence = _("Afterwards the loss is no number for %(codes)s.")
        return Verdict("danger", sentence % {"codes": figures.listed(broken)})
    known = [row for row in rows if row.verdict]
    if not known:
        return Verdict("ok", _("Its loss was not measured; name logs to have it measured."))
    worse = [row.code for row in known if row.verdict == "worse"]
    if not worse:
        return Verdict("ok", _("No domain's loss rose by more than chance."))
    worst = max(known, key=lambda row: row.change or 0.0)
    words = {
        "count": len(worse),
        "of": len(known),
        "worst": worst.code,
        "nats": figures.number(worst.change, 3),
        "share": figures.percent(gains.change(worst.before, worst.after), 1),
    }
    sentence = _(
        "The loss of %(count)s of %(of)s domains rose; most of all that of %(worst)s, by %(nats)s nats a token (%(share)s)."
    )
    return Verdict("caution", sentence % words)


def _domains(report: Mapping[str, Any]) -> Iterator[DomainChange]:
    before, after, kl = (_table(report, name) for name in ("loss_before", "loss_after", "kl"))
    before = before or _best_of_each(report)
    for code in after or before:
        yield DomainChange(code, before.get(code), after.get(code), kl.get(code), code in after)


def _best_of_each(report: Mapping[str, Any]) -> dict[str, float]:
    """By domain the lowest loss of the models that were composed; nothing of other operations."""
    best: dict[str, float] = {}
    for losses in _table(report, "loss_of_each").values():
        for code, loss in losses.items():
            if loss is not None:
                best[code] = min(loss, best.get(code, loss))
    return best


def _table(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = report.get(name)
    return value if isinstance(value, dict) else {}
