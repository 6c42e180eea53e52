"""What an operation on experts did, as its page shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from common import figures
from jobs.choices import JobKind
from jobs.models import Job
from jobs.operation_forms import FORMS


@dataclass(frozen=True, slots=True)
class DomainChange:
    """Loss of one domain before and after, in nats a token."""

    code: str
    before: float | None
    after: float | None
    kl: float | None

    @property
    def change(self) -> float | None:
        """By how much the loss rose."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True, slots=True)
class Operated:
    """The report of an operation in words and rows."""

    facts: list[tuple[str, str]]
    domains: list[DomainChange]
    is_done: bool


def operated_of(job: Job) -> Operated | None:
    """What is known of it; None for other kinds of jobs and before anything is known."""
    report = job.result.get("operation") if job.kind == JobKind.OPERATE else None
    if not isinstance(report, dict):
        return None
    return Operated(list(_facts(report)), list(_domains(report)), job.has_ended)


def operation_words(job: Job) -> str:
    """The operation's name in the reader's language."""
    kind = str(job.inputs.get("operate", {}).get("operation", {}).get("kind", ""))
    return str(FORMS[kind].title) if kind in FORMS else kind


def _domains(report: dict[str, Any]) -> Iterator[DomainChange]:
    before, after, kl = (_table(report, name) for name in ("loss_before", "loss_after", "kl"))
    for code in after or before:
        yield DomainChange(code, before.get(code), after.get(code), kl.get(code))


def _table(report: dict[str, Any], name: str) -> dict[str, float]:
    value = report.get(name)
    return value if isinstance(value, dict) else {}


def _facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The figures that some operations have, each with its unit."""
    if "keeps_function" in report:
        kept = _("yes, to rounding") if report["keeps_function"] else _("no")
        yield _("Says the same at that moment"), kept
    if report.get("expert") is not None and not isinstance(report["expert"], list):
        yield _("New expert"), str(report["expert"])
    if report.get("experts"):
        yield _("Removed, by layer"), ", ".join(str(expert) for expert in report["experts"])
    if "bits_per_weight" in report:
        words = {"now": _size(report["expert_bytes"]), "before": _size(report["expert_bytes_16_bit"])}
        yield _("Bits a weight, as stored"), figures.number(report["bits_per_weight"], 2)
        yield _("Experts' bytes"), _("%(now)s of %(before)s at 16 bits") % words
        yield _("Saved"), figures.percent(report["saved"], 1)
    if report.get("same_best_token"):
        same = report["same_best_token"].values()
        yield _("Same best next token"), figures.percent(sum(same) / len(same), 1)


def _size(num_bytes: float) -> str:
    return figures.joined(figures.bytes_parts(num_bytes))
