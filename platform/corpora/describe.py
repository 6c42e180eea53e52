"""What the pages say about a corpus."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from accounts.models import Team
from common import figures
from common.verdict import Verdict
from corpora.models import Corpus, CorpusFile, FileState, Refusal
from corpora.reasons import REASONS, reason
from corpora.services import SAMPLE_NOTE
from routing.models import Domain

FEW_HELD_OUT = 20


def corpus_verdict(corpus: Corpus) -> Verdict:
    """Can something be learned from it?"""
    files = list(corpus.files.all())
    counts = corpus.counts
    if not files:
        return Verdict("off", _("This corpus has no file yet."), _("Add logs as JSON Lines or CSV."))
    if any(file.state in (FileState.WAITING, FileState.VALIDATING) for file in files):
        return Verdict("busy", _("A file is being read."), _("The figures follow when it has been."))
    failed = [file for file in files if file.state == FileState.FAILED]
    if failed:
        words = {"name": failed[0].upload.name}
        if counts.get("train"):
            strong = _("%(name)s could not be read; the other files are in.") % words
            return Verdict("caution", strong, failed[0].problem)
        return Verdict("danger", _("%(name)s could not be read.") % words, failed[0].problem)
    taken = counts.get("train", 0) + counts.get("held_out", 0)
    if not taken:
        return Verdict("danger", _("No row was taken."), _("The report of each file says why."))
    words = {
        "taken": figures.number(taken),
        "train": figures.number(counts["train"]),
        "held_out": figures.number(counts["held_out"]),
        "refused": figures.number(counts["refused"]),
    }
    strong = ngettext(
        "%(taken)s conversation: %(train)s to train on, %(held_out)s held out.",
        "%(taken)s conversations: %(train)s to train on, %(held_out)s held out.",
        taken,
    ) % words
    poor = [row for row in domain_rows(corpus) if row["held_out"] < FEW_HELD_OUT]
    if poor:
        sentence = _("Few are held out for %(domains)s; a verdict on them will be noisy.")
        return Verdict(
            "caution",
            strong,
            sentence % {"domains": figures.listed(row["code"] or _("no domain") for row in poor)},
        )
    if counts["refused"]:
        rest = ngettext("%(refused)s row was refused.", "%(refused)s rows were refused.", counts["refused"])
        return Verdict("ok", strong, rest % words)
    return Verdict("ok", strong, _("No row was refused."))


def list_verdict(corpora: list[Corpus]) -> Verdict:
    """What there is to learn from."""
    if not corpora:
        return Verdict(
            "off",
            _("No logs yet."),
            _("Upload what your users asked and what was answered, or take the samples."),
        )
    usable = [one for one in corpora if one.counts.get("train")]
    strong = ngettext("%(count)s corpus.", "%(count)s corpora.", len(corpora)) % {"count": len(corpora)}
    if not usable:
        return Verdict("caution", strong, _("None has rows to train on yet."))
    words = {"name": usable[0].name, "train": figures.number(usable[0].counts["train"])}
    rest = ngettext(
        "The newest, %(name)s, has %(train)s conversation to train on.",
        "The newest, %(name)s, has %(train)s conversations to train on.",
        usable[0].counts["train"],
    )
    return Verdict("ok", strong, rest % words)


def note(corpus: Corpus) -> str:
    """What the corpus is, as its maker wrote it; our own note in the reader's language."""
    return _(corpus.description) if corpus.description == SAMPLE_NOTE else corpus.description


def domain_rows(corpus: Corpus) -> list[dict[str, Any]]:
    """Counts by domain, with the names and colours that the team's maps give the codes."""
    known = known_domains(corpus.team)
    by_domain: dict[str, dict[str, int]] = corpus.counts.get("by_domain", {})
    most = max((sides["train"] + sides["held_out"] for sides in by_domain.values()), default=0)
    rows = []
    for code, sides in by_domain.items():
        domain = known.get(code)
        rows.append(
            {
                "code": code,
                "name": domain.name if domain else code,
                "colour": domain.colour if domain else 0,
                "is_mapped": domain is not None,
                "taken": sides["train"] + sides["held_out"],
                "of": most,
                **sides,
            }
        )
    return sorted(rows, key=lambda row: (row["code"] == "", row["code"]))


def known_domains(team: Team) -> dict[str, Domain]:
    """The team's domains by code; of several maps the newest speaks."""
    domains = Domain.objects.filter(map__team=team).order_by("map_id", "position")
    return {domain.code: domain for domain in domains}


def refusal_groups(file: CorpusFile) -> list[dict[str, Any]]:
    """Refusals by reason, the most frequent first."""
    by_code: dict[str, int] = file.counts.get("by_refusal", {})
    first = {refusal.code: refusal for refusal in Refusal.objects.filter(file=file).order_by("code", "-row")}
    return [
        {
            "code": code,
            "count": count,
            "reason": _general_reason(code, first.get(code)),
            "first": first.get(code),
        }
        for code, count in sorted(by_code.items(), key=lambda item: -item[1])
    ]


def _general_reason(code: str, example: Refusal | None) -> str:
    return reason(code, example.detail if example else "") if code in REASONS else code
