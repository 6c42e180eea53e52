"""A map while it is edited: whatever was typed, complete or not, and what is wrong with it in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django.http import QueryDict
from django.utils.translation import gettext as _

from common.figures import is_chinese, listed
from common.ranges import UnreadableRange, parse_ranges, ranges_text
from routing.models import CODE, NUM_COLOURS, DomainMap
from routing.plan import MAX_DOMAINS, MAX_EXAMPLES, MAX_EXPERTS, MapPlan
from routing.policy_form import PolicyForm

# The matrix draws a box for each of these; those beyond are typed, as numbers and ranges.
MAX_DRAWN_EXPERTS = 64
# Twice what every second one of the other experts takes.
MAX_TYPED = 8000


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason why a draft cannot be saved, and the field that it stands beside: of a row, or of the whole."""

    text: str
    field: str
    row: int | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)
class DraftDomain:
    """One row as typed."""

    code: str = ""
    name_en: str = ""
    name_zh: str = ""
    examples: list[str] = field(default_factory=list)
    experts: list[int] = field(default_factory=list)
    colour: int = 1
    errors: dict[str, str] = field(default_factory=dict)
    # What was typed of the experts that are not drawn, where it cannot be read.
    unread: str = ""

    @property
    def title(self) -> str:
        """What to call the row: its name in the reader's language, as far as it has one."""
        names = (self.name_zh, self.name_en) if is_chinese() else (self.name_en, self.name_zh)
        return names[0] or names[1] or self.code or _("New domain")


@dataclass(slots=True)
class Draft:
    """The whole form as typed."""

    name: str = ""
    revision: int = 0
    num_experts: int = 8
    domains: list[DraftDomain] = field(default_factory=list)
    general_experts: list[int] = field(default_factory=list)
    policy: PolicyForm = field(default_factory=lambda: PolicyForm.of({}))
    errors: dict[str, str] = field(default_factory=dict)
    general_unread: str = ""
    # Experts that went when their number was changed.
    left_out: list[int] = field(default_factory=list)

    @property
    def is_blank(self) -> bool:
        """Whether nobody has written anything yet."""
        return not any(one.code or one.name_en or one.name_zh or one.experts for one in self.domains)

    @property
    def experts(self) -> range:
        """The columns of the matrix."""
        return range(min(self.num_experts, MAX_DRAWN_EXPERTS))

    @property
    def rows(self) -> list[tuple[DraftDomain, str]]:
        """Every domain, and those of its experts that the matrix does not draw, as they are typed."""
        return [(one, self._typed(one.experts, one.unread)) for one in self.domains]

    @property
    def general_typed(self) -> str:
        """The general experts that the matrix does not draw, as they are typed."""
        return self._typed(self.general_experts, self.general_unread)

    @property
    def asks_more(self) -> bool:
        """Whether there are fields for experts that the matrix does not draw: a model has some, or the draft names some."""
        typed = (self.general_typed, *(text for _one, text in self.rows))
        return self.num_experts > len(self.experts) or any(typed)

    def _typed(self, experts: list[int], unread: str) -> str:
        return unread or ranges_text(expert for expert in experts if expert not in self.experts)

    def fit(self) -> None:
        """Leave out experts beyond the last, after their number was changed."""
        every = {*self.general_experts, *(expert for one in self.domains for expert in one.experts)}
        self.left_out = sorted(expert for expert in every if expert >= self.num_experts)
        self.general_experts = [expert for expert in self.general_experts if expert < self.num_experts]
        for one in self.domains:
            one.experts = [expert for expert in one.experts if expert < self.num_experts]

    def plan(self) -> dict[str, Any]:
        """The draft as plain data for `checked_plan`."""
        domains = [
            {
                "code": one.code, "name_en": one.name_en, "name_zh": one.name_zh, "examples": one.examples,
                "experts": one.experts, "colour": one.colour,
            }
            for one in self.domains
        ]  # fmt: skip
        return {
            "num_experts": self.num_experts,
            "domains": domains,
            "general_experts": self.general_experts,
            "policy": self.policy.policy(),
        }


def draft_of_plan(plan: MapPlan, *, name: str = "", revision: int = 0) -> Draft:
    """A complete plan as a draft."""
    domains = [
        DraftDomain(one.code, one.name_en, one.name_zh, list(one.examples), list(one.experts), one.colour or 1)
        for one in plan.domains
    ]
    policy = PolicyForm.of(plan.policy.model_dump())
    return Draft(name, revision, plan.num_experts, domains, list(plan.general_experts), policy)


def draft_of_map(domain_map: DomainMap) -> Draft:
    """A saved map as a draft."""
    domains = [
        DraftDomain(one.code, one.name_en, one.name_zh, list(one.examples), list(one.experts), one.colour)
        for one in domain_map.domains.all()
    ]
    return Draft(
        domain_map.name, domain_map.revision, domain_map.num_experts, domains, list(domain_map.general_experts),
        PolicyForm.of(domain_map.policy),
    )  # fmt: skip


def draft_of_form(data: QueryDict) -> Draft:
    """What was posted; rows come in the order of their `row` fields."""
    general, general_unread = _experts(data, "general")
    draft = Draft(
        name=_text(data, "name", 120),
        revision=_whole(data.get("revision", ""), 0),
        num_experts=min(MAX_EXPERTS, max(2, _whole(data.get("num_experts", ""), 8))),
        general_experts=general,
        general_unread=general_unread,
        policy=PolicyForm(data),
    )
    for row in data.getlist("row")[:MAX_DOMAINS]:
        experts, unread = _experts(data, f"experts-{row}")
        draft.domains.append(
            DraftDomain(
                code=_text(data, f"code-{row}", 40).lower(),
                name_en=_text(data, f"name_en-{row}", 80),
                name_zh=_text(data, f"name_zh-{row}", 80),
                examples=_lines(data.get(f"examples-{row}", "")),
                experts=experts,
                colour=min(NUM_COLOURS, max(1, _whole(data.get(f"colour-{row}", ""), 1))),
                unread=unread,
            )
        )
    return draft


def mark(draft: Draft, problems: Iterable[Problem]) -> None:
    """Put every problem beside its field; the first of a field stands there, all are listed on the page."""
    for problem in problems:
        place = draft if problem.row is None else draft.domains[problem.row]
        place.errors.setdefault(problem.field, problem.text)


def problems_of(draft: Draft) -> list[Problem]:
    """Every reason why the draft cannot be saved, in the reader's language."""
    found: list[Problem] = []
    if not draft.domains:
        found.append(Problem(_("There is no domain yet; add one."), "domains"))
    counts = Counter(one.code for one in draft.domains if one.code)
    for row, one in enumerate(draft.domains):
        found += _problems_of_row(draft, row, one, counts)
    found += _problems_of_numbers(draft, _("General"), draft.general_experts, draft.general_unread)
    for name, errors in draft.policy.errors.items():
        words = {"field": draft.policy.fields[name].label, "error": " ".join(map(str, errors))}
        found.append(Problem(_("%(field)s: %(error)s") % words, name))
    return found


def _problems_of_row(draft: Draft, row: int, one: DraftDomain, counts: Counter[str]) -> list[Problem]:
    found: list[Problem] = []
    words = {"domain": one.title, "code": one.code}
    if not re.match(CODE, one.code):
        text = _("%(domain)s needs a code: 2 to 12 small letters, digits or hyphens, a letter first.") % words
        found.append(Problem(text, "code", row))
    elif counts[one.code] > 1:
        found.append(Problem(_("Two domains have the code %(code)s.") % words, "code", row))
        counts[one.code] = 1
    if not one.name_en or not one.name_zh:
        lacking = "name_zh" if one.name_en else "name_en"
        found.append(Problem(_("%(domain)s needs a name in both languages.") % words, lacking, row))
    if not one.experts and not one.unread:
        found.append(Problem(_("%(domain)s has no expert of its own.") % words, "experts", row))
    both = sorted(set(one.experts) & set(draft.general_experts))
    if both:
        words["expert"] = str(both[0])
        text = _("Expert %(expert)s is general and cannot belong to %(domain)s as well.") % words
        found.append(Problem(text, "experts", row))
    return found + _problems_of_numbers(draft, one.title, one.experts, one.unread, row)


def _problems_of_numbers(
    draft: Draft, title: str, experts: list[int], unread: str, row: int | None = None
) -> list[Problem]:
    """What is wrong with the numbers themselves, beside the field where they are typed."""
    found: list[Problem] = []
    if unread:
        words = {"domain": title, "part": _unreadable_part(unread)}
        text = _("%(domain)s: “%(part)s” is no expert and no range of experts, such as 70 or 100-107.") % words
        found.append(Problem(text, "typed", row))
    beyond = [expert for expert in experts if expert >= draft.num_experts]
    if beyond:
        words = {"domain": title, "expert": str(beyond[0]), "last": str(draft.num_experts - 1)}
        text = _("%(domain)s names expert %(expert)s, but the last one is %(last)s.") % words
        found.append(Problem(text, "typed", row))
    return found


def remarks_of(draft: Draft) -> list[str]:
    """What is allowed but worth a thought."""
    found: list[str] = []
    if draft.left_out:
        found.append(_("Left out, as there is no such expert: %(experts)s.") % {"experts": ranges_text(draft.left_out)})
    owners: dict[int, list[str]] = {}
    for one in draft.domains:
        for expert in one.experts:
            owners.setdefault(expert, []).append(one.title)
    for expert, titles in sorted(owners.items()):
        if len(titles) > 1:
            words = {"expert": expert, "domains": listed(titles)}
            found.append(_("Expert %(expert)s is shared by %(domains)s; each will blur the other.") % words)
    if not draft.general_experts and draft.domains:
        found.append(_("There is no general expert: requests without a domain have no home."))
    idle = sorted(set(range(draft.num_experts)) - set(owners) - set(draft.general_experts))
    if idle and draft.domains:
        shown = listed(idle[:8]) + ("…" if len(idle) > 8 else "")
        found.append(_("No domain and no general use for these experts: %(experts)s.") % {"experts": shown})
    if len(draft.domains) == 1:
        found.append(_("With a single domain there is no control: its labels cannot be misplaced."))
    poor = [one.title for one in draft.domains if len(one.examples) < 3]
    if poor:
        found.append(_("Fewer than three examples: %(domains)s.") % {"domains": listed(poor)})
    return found


def _text(data: QueryDict, key: str, length: int) -> str:
    """A line of text as it can be stored: PostgreSQL takes no NUL."""
    return data.get(key, "").replace("\0", "").strip()[:length]


def _experts(data: QueryDict, name: str) -> tuple[list[int], str]:
    """The experts whose boxes are set and those that are typed; and what is typed, where it cannot be read."""
    values = data.getlist(name)
    drawn = {
        int(value) for value in values if value.isdigit() and len(value) < 5 and int(value) < MAX_EXPERTS
    }
    typed = _text(data, f"typed-{name}", MAX_TYPED)
    try:
        return sorted(drawn | set(parse_ranges(typed, limit=MAX_EXPERTS))), ""
    except UnreadableRange:
        return sorted(drawn), typed


def _unreadable_part(text: str) -> str:
    try:
        parse_ranges(text, limit=MAX_EXPERTS)
    except UnreadableRange as error:
        return error.part
    return ""


def _lines(text: str) -> list[str]:
    return [line.strip()[:500] for line in text.replace("\0", "").splitlines() if line.strip()][:MAX_EXAMPLES]


def _whole(text: str, default: int) -> int:
    return int(text) if text.isdigit() and len(text) < 10 else default
