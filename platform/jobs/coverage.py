"""Whether logs can teach what a domain map asks for: rows of each domain on both sides, what cannot work, what is weak.

Rows are counted when a file of logs is read; nothing is read here. A run that would end after minutes with "no window for
this domain" is refused before it is queued.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from common import figures
from moe_core.spec import RoutingSpec

# Fewer rows than this on a side teach little, and what is measured on them is noise.
FEW_ROWS = 20
# A text that is read more often than this is learnt by heart rather than learnt from.
MANY_PASSES = 30


@dataclass(frozen=True, slots=True)
class DomainRows:
    """The rows of one domain in the logs, and the experts that it is mapped to."""

    code: str
    name: str
    colour: int
    train: int
    held_out: int
    experts: tuple[int, ...] = ()
    about_tokens: int | None = None

    @property
    def is_mapped(self) -> bool:
        """Whether the map knows it."""
        return bool(self.experts)

    @property
    def state(self) -> str:
        """Its lamp: nothing to learn from, little, or enough; what the map does not know is off."""
        if not self.is_mapped:
            return "off"
        if not self.train:
            return "danger"
        return "caution" if min(self.train, self.held_out) < FEW_ROWS else "ok"

    @property
    def word(self) -> str:
        """The same in words."""
        if not self.is_mapped:
            return _("not on the map")
        if not self.train:
            return _("no rows")
        return _("few rows") if self.state == "caution" else _("enough")


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the logs hold for a map; `refusals` cannot work, `warnings` can."""

    rows: tuple[DomainRows, ...]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def state(self) -> str:
        """One lamp for all of it."""
        return "danger" if self.refusals else "caution" if self.warnings else "ok"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a run is to read: steps for each expert, steps for the router, tokens a step."""

    specialise_steps: int
    route_steps: int
    tokens_per_batch: int


def coverage_of(
    routing: RoutingSpec,
    counts: Mapping[str, Any],
    effort: Effort,
    *,
    colours: Mapping[str, int] | None = None,
    is_unsettled: bool = False,
) -> Coverage:
    """Compare a map with the counts of a corpus."""
    rows = tuple(_rows(routing, counts, colours or {}))
    refusals = list(_refusals(rows, effort))
    warnings = list(_warnings(rows, effort))
    if is_unsettled:
        warnings.append(_("A file of these logs is still being read; only what is in now is learnt from."))
    return Coverage(rows, tuple(refusals), () if refusals else tuple(warnings))


def codes_without_rows(counts: Mapping[str, Any], codes: Sequence[str], at_least: int = 1) -> list[str]:
    """Those of the domains that have fewer rows to train on than they must."""
    by_domain = counts.get("by_domain") or {}
    return [code for code in codes if by_domain.get(code, {}).get("train", 0) < at_least]


def _rows(
    routing: RoutingSpec, counts: Mapping[str, Any], colours: Mapping[str, int]
) -> Iterator[DomainRows]:
    """The map's domains in their order, then what else the logs name, then rows that name none."""
    sides: dict[str, dict[str, int]] = counts.get("by_domain") or {}
    tokens: dict[str, int] = counts.get("about_tokens") or {}
    chinese = figures.is_chinese()
    for domain in routing.domains:
        yield _row(
            domain.code, domain.name_zh if chinese else domain.name_en, colours.get(domain.code, 0), sides,
            domain.experts, tokens.get(domain.code),
        )  # fmt: skip
    for code in sorted(sides.keys() - set(routing.codes), key=lambda code: (code == "", code)):
        yield _row(code, code, 0, sides, (), tokens.get(code))


def _row(
    code: str,
    name: str,
    colour: int,
    sides: Mapping[str, Mapping[str, int]],
    experts: tuple[int, ...],
    about_tokens: int | None,
) -> DomainRows:
    own = sides.get(code, {})
    return DomainRows(code, name, colour, own.get("train", 0), own.get("held_out", 0), experts, about_tokens)


def _refusals(rows: Sequence[DomainRows], effort: Effort) -> Iterator[str]:
    mapped, others = [row for row in rows if row.is_mapped], [row for row in rows if not row.is_mapped]
    lacking = [row for row in mapped if not row.train]
    if mapped and len(lacking) == len(mapped):
        found = [row.code for row in others if row.code]
        words = {"map": _listed(row.code for row in mapped), "logs": _listed(found)}
        if not found:
            yield (
                _(
                    "The logs hold no row of a domain of the map (%(map)s). Name the domains in the logs, or say on "
                    "the page of the logs which domain a file belongs to."
                )
                % words
            )
            return
        yield (
            _(
                "The map and the logs have no domain in common: the map has %(map)s, the logs have %(logs)s. "
                "Give them the same codes."
            )
            % words
        )
        return
    unfed = [row for row in lacking if effort.route_steps or not _is_fed(row, mapped)]
    if unfed and (effort.route_steps or effort.specialise_steps):
        words = {"domains": _listed(row.code for row in unfed)}
        yield (
            _(
                "The logs hold no row to train on of %(domains)s. Add logs of that domain, or take it off the map."
            )
            % words
        )
    if mapped and not any(row.held_out for row in mapped):
        yield _(
            "No row of a mapped domain is held out, so nothing could be measured. Add more logs: about 15 in a "
            "hundred rows are held out."
        )


def _is_fed(row: DomainRows, mapped: Sequence[DomainRows]) -> bool:
    """Whether each of its experts learns from another domain; only the router needs rows of every domain."""
    return all(any(expert in other.experts and other.train for other in mapped) for expert in row.experts)


def _warnings(rows: Sequence[DomainRows], effort: Effort) -> Iterator[str]:
    mapped = [row for row in rows if row.is_mapped and row.train]
    if unmeasured := [row.code for row in mapped if not row.held_out]:
        yield _("No row of %(domains)s is held out; it is learnt, but what that gained is not measured.") % {
            "domains": _listed(unmeasured)
        }
    if few := [f"{row.code} ({row.train})" for row in mapped if row.train < FEW_ROWS]:
        yield _("Few rows to train on: %(domains)s.") % {"domains": _listed(few)}
    if noisy := [f"{row.code} ({row.held_out})" for row in mapped if 0 < row.held_out < FEW_ROWS]:
        yield _("Few rows are held out, so the verdict will be noisy: %(domains)s.") % {
            "domains": _listed(noisy)
        }
    strays = [row for row in rows if not row.is_mapped and row.code and row.train + row.held_out]
    if strays:
        count = sum(row.train + row.held_out for row in strays)
        words = {"count": figures.number(count), "domains": _listed(row.code for row in strays)}
        yield (
            ngettext(
                "%(count)s row is of a domain that the map does not have (%(domains)s): it counts as one of no domain.",
                "%(count)s rows are of domains that the map does not have (%(domains)s): they count as rows of no domain.",
                count,
            )
            % words
        )
    yield from _passes(mapped, effort)


def _passes(mapped: Sequence[DomainRows], effort: Effort) -> Iterator[str]:
    """Domains that the run would read over and over."""
    tokens = effort.specialise_steps * effort.tokens_per_batch
    often = [
        f"{row.code} ({figures.number(tokens / row.about_tokens)}×)"
        for row in mapped
        if row.about_tokens and tokens / row.about_tokens > MANY_PASSES
    ]
    if often:
        yield _(
            "The run is long for so little text and would read it many times: %(domains)s. Take fewer steps, or "
            "add logs."
        ) % {"domains": _listed(often)}


def _listed(codes: Any) -> str:
    return ("、" if figures.is_chinese() else ", ").join(codes)
