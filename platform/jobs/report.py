"""The figures of a tuning run as its page shows them: before, after and the control, as a whole and by domain.

While the run goes on, the figures come from its events; once it has ended, from its result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import get_language, gettext_lazy

from common import gains
from jobs.models import Job, JobEvent

BEFORE, AFTER, CONTROL = "before", "after", "control"
MOMENTS: tuple[tuple[str, Promise], ...] = (
    (BEFORE, gettext_lazy("before")),
    (AFTER, gettext_lazy("after")),
    (CONTROL, gettext_lazy("control: deranged map")),
)


@dataclass(frozen=True, slots=True)
class DomainRow:
    """One domain's figures; None where they are not measured yet."""

    code: str
    name: str
    colour: int
    before: float | None
    after: float | None
    control: float | None
    share: float | None
    control_share: float | None

    @property
    def change(self) -> float | None:
        """Relative change of the loss, below zero when it fell."""
        return gains.change(self.before, self.after)

    @property
    def control_change(self) -> float | None:
        """The same for the control."""
        return gains.change(self.before, self.control)

    @property
    def verdict(self) -> gains.Change:
        """better, worse, same, or nothing while it cannot be said."""
        return gains.judge("loss", self.before, self.after)


@dataclass(frozen=True, slots=True)
class Report:
    """What is measured so far."""

    moments: Mapping[str, Mapping[str, Any]]
    domains: tuple[DomainRow, ...]

    def of(self, moment: str) -> Mapping[str, Any]:
        """The figures of one moment; nothing while it is not measured."""
        return self.moments.get(moment) or {}

    def figure(self, moment: str, name: str) -> float | None:
        """One figure of one moment."""
        return gains.number_of(self.of(moment), name)

    @property
    def is_measured(self) -> bool:
        """Whether before and after can be compared."""
        return self.figure(BEFORE, "loss") is not None and self.figure(AFTER, "loss") is not None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a moment, for the table; moments that are not measured are left out."""
        return [
            {
                "key": key,
                "title": title,
                "changes": gains.judged(self.of(BEFORE), self.of(key)) if key == AFTER else {},
                **{name: self.figure(key, name) for name in gains.FIGURES},
            }
            for key, title in MOMENTS
            if key in self.moments
        ]


def report_of(job: Job) -> Report:
    """Everything that is measured of a job by now."""
    moments = {key: figures for key, figures in measured(job).items() if key in (BEFORE, AFTER, CONTROL)}
    return Report(moments, tuple(domain_rows(job, moments)))


def measured(job: Job) -> dict[str, dict[str, Any]]:
    """The figures by moment, from the result or else from the events."""
    tuning = job.result.get("tuning")
    if isinstance(tuning, dict):
        return {key: value for key, value in tuning.items() if isinstance(value, dict)}
    events = JobEvent.objects.filter(job=job, kind="report").order_by("seq")
    return {
        str(event.payload.get("name")): event.payload["figures"]
        for event in events
        if isinstance(event.payload.get("figures"), dict)
    }


def domain_rows(job: Job, moments: Mapping[str, Mapping[str, Any]]) -> list[DomainRow]:
    """One row for each domain of the frozen map, and one for rows of no domain when there are any."""
    rows = [
        _row(domain["code"], name_of(domain), colour_of(job, domain["code"]), moments)
        for domain in domains_of(job)
    ]
    general = _row("", "", 0, moments)
    return [*rows, general] if general.before is not None else rows


def domains_of(job: Job) -> list[dict[str, Any]]:
    """The domains of the frozen map."""
    domains: list[dict[str, Any]] = job.inputs.get("tune", {}).get("routing", {}).get("domains", [])
    return domains


def name_of(domain: Mapping[str, Any]) -> str:
    """A domain's name in the reader's language."""
    return str(domain["name_zh"] if (get_language() or "en").startswith("zh") else domain["name_en"])


def colour_of(job: Job, code: str) -> int:
    """A domain's colour at the time of submission."""
    return int(job.inputs.get("domain_map", {}).get("colours", {}).get(code, 0))


def _row(code: str, name: str, colour: int, moments: Mapping[str, Mapping[str, Any]]) -> DomainRow:
    def look(moment: str, table: str) -> float | None:
        value = ((moments.get(moment) or {}).get(table) or {}).get(code)
        return float(value) if isinstance(value, int | float) else None

    return DomainRow(
        code=code,
        name=name,
        colour=colour,
        before=look(BEFORE, "loss_by_domain"),
        after=look(AFTER, "loss_by_domain"),
        control=look(CONTROL, "loss_by_domain"),
        share=look(AFTER, "mapped_share_by_domain"),
        control_share=look(CONTROL, "mapped_share_by_domain"),
    )
