"""What the pages say about models and versions: verdicts, parts, the line of descent, the report of a tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from common import figures, gains
from common.verdict import Verdict
from moe_core.spec import ModelSpec, cost_of
from registry.models import Model, ModelVersion, VersionState
from registry.operated import operation_title
from registry.selectors import ancestors
from registry.tuned import tuned_verdict

# Pages tell the compute of one token that looks back at so many others.
CONTEXT_TOKENS = 1024
PARTS: dict[str, Promise] = {
    "embedding": gettext_lazy("embedding"),
    "attention": gettext_lazy("attention"),
    "router": gettext_lazy("router"),
    "experts": gettext_lazy("experts"),
    "shared_experts": gettext_lazy("shared experts"),
    "dense_mlp": gettext_lazy("dense feed-forward"),
    "norms": gettext_lazy("norms"),
    "head": gettext_lazy("output head"),
}
STAGES = (
    ("before", gettext_lazy("before")),
    ("after", gettext_lazy("after")),
    ("control", gettext_lazy("control: deranged map")),
)


def list_verdict(models: Sequence[Model]) -> Verdict:
    """Is every model sound, and which is the newest version?"""
    versions = [version for model in models for version in model.versions.all()]
    damaged = [version for version in versions if version.state == VersionState.FAILED]
    if damaged:
        name = f"{damaged[0].model.name} {damaged[0].label}"
        return Verdict(
            "danger", _("The bytes of %(name)s are damaged.") % {"name": name}, _("Nothing loads it.")
        )
    if not models:
        return Verdict(
            "off", _("No model yet."), _("Import the small one that comes along, or bring your own.")
        )
    strong = ngettext("%(count)s model.", "%(count)s models.", len(models)) % {"count": len(models)}
    if not versions:
        return Verdict("caution", strong, _("None has a version yet; an import makes one."))
    newest = max(versions, key=lambda version: version.pk)
    words = {"name": f"{newest.model.name} {newest.label}", "ago": figures.ago(newest.created_at)}
    return Verdict("ok", strong, _("The newest version is %(name)s, made %(ago)s.") % words)


def version_verdict(version: ModelVersion) -> Verdict:
    """What is it, and can it be trusted?"""
    if version.state == VersionState.FAILED:
        return Verdict(
            "danger",
            _("The bytes of this version are damaged; nothing loads it."),
            _("Import or build it again: a version never changes."),
        )
    spec, facts = version_spec(version), version_facts(version)
    words = {
        "experts": version.num_experts,
        "layers": spec.num_hidden_layers,
        "moe_layers": len(spec.moe.moe_layers) if spec.moe else 0,
        "total": figures.joined(figures.compact_parts(facts["total"])),
        "active": figures.joined(figures.compact_parts(facts["active"])),
        "top_k": spec.moe.top_k if spec.moe else 0,
    }
    if spec.moe is None:
        strong = ngettext(
            "A dense model of %(layers)s layer and %(total)s parameters, each of which every token meets.",
            "A dense model of %(layers)s layers and %(total)s parameters, each of which every token meets.",
            spec.num_hidden_layers,
        )
        return Verdict("ok", strong % words, _("Lay experts over it to make a mixture."))
    strong = ngettext(
        "%(experts)s expert in %(moe_layers)s of %(layers)s layers; every token meets it.",
        "%(experts)s experts in %(moe_layers)s of %(layers)s layers; a token meets %(top_k)s of them.",
        version.num_experts,
    )
    rest = _("That is %(active)s of %(total)s parameters.")
    return Verdict("ok", strong % words, rest % words)


def version_spec(version: ModelVersion) -> ModelSpec:
    """The version's specification as moe_core reads it."""
    return ModelSpec.parse(version.spec)


def version_facts(version: ModelVersion) -> dict[str, Any]:
    """Total and active parameters: as inspected in the files, else as the specification says."""
    cost = cost_of(version_spec(version))
    return {
        "total": version.inspection.get("params_total", cost.total),
        "active": version.inspection.get("params_active", cost.active_per_token),
        "spec_total": cost.total,
        "flops": figures.joined(figures.flops_parts(cost.flops_per_token(CONTEXT_TOKENS))),
        "context_tokens": CONTEXT_TOKENS,
        "kv_bytes": cost.kv_bytes_per_token,
    }


def parts_of(version: ModelVersion) -> list[dict[str, Any]]:
    """Parameters and bytes by part, largest first; parts that hold nothing are left out."""
    params: dict[str, int] = version.inspection.get("params") or {}
    sizes: dict[str, int] = version.inspection.get("bytes") or {}
    if not params:
        params = {name: getattr(cost_of(version_spec(version)).params, name) for name in PARTS}
    rows = [
        {"name": str(PARTS.get(name, name)), "params": count, "bytes": sizes.get(name)}
        for name, count in params.items()
        if count
    ]
    return sorted(rows, key=lambda row: -row["params"])


def descent(version: ModelVersion) -> list[dict[str, Any]]:
    """The line from the first ancestor to this version, as stations."""
    steps = []
    for one in ancestors(version):
        is_here = one.pk == version.pk
        steps.append(
            {
                "title": f"{one.model.name} {one.label}",
                "note": how_made(one),
                "url": "" if is_here else reverse("registry:version", args=[one.pk]),
                "state": "now" if is_here else "done",
            }
        )
    return steps


def how_made(version: ModelVersion) -> str:
    """One phrase on where a version comes from."""
    lineage = version.lineage
    if lineage.get("kind") == "tune":
        return _("tuned from %(parent)s by job %(job)s") % {
            "parent": version.parent.label if version.parent else "—",
            "job": lineage.get("job_id", "—"),
        }
    if lineage.get("kind") == "operate":
        return _("%(operation)s: made from %(parent)s by job %(job)s") % {
            "operation": operation_title(str((lineage.get("operation") or {}).get("kind", ""))),
            "parent": figures.listed(_made_of(version)),
            "job": lineage.get("job_id", "—"),
        }
    if lineage.get("kind") == "import":
        return _("imported by job %(job)s") % {"job": lineage.get("job_id", "—")}
    return _("registered")


def _made_of(version: ModelVersion) -> Iterator[str]:
    """The version that an operation began with, then the others that were composed with it."""
    yield version.parent.label if version.parent else "—"
    for other in version.lineage.get("others") or []:
        # Versions of the same model need no name.
        yield str(other["label"]).removeprefix(f"{version.model.name} ")


def report_rows(version: ModelVersion) -> list[dict[str, Any]]:
    """Before, after and control of a tuning, one row each; nothing for an imported version."""
    moments = {key: _moment(version, key) for key, _title in STAGES}
    return [
        {
            "key": key,
            "title": title,
            "changes": gains.judged(moments["before"], moments["after"]) if key == "after" else {},
            **moments[key],
        }
        for key, title in STAGES
        if moments[key]
    ]


def report_domains(version: ModelVersion) -> list[dict[str, Any]]:
    """Loss per domain before and after, and whether that is a gain."""
    before = _moment(version, "before").get("loss_by_domain") or {}
    after = _moment(version, "after").get("loss_by_domain") or {}
    colours: dict[str, int] = version.lineage.get("colours") or {}
    names = domain_names(version)
    shares = _moment(version, "after").get("mapped_share_by_domain") or {}
    return [
        {
            "code": code,
            "name": names.get(code, code),
            "before": before[code],
            "after": after[code],
            "change": gains.change(before[code], after[code]),
            "verdict": gains.judge("loss", before[code], after[code]),
            "share": shares.get(code),
            "colour": colours.get(code, 0),
        }
        # Rows of no domain come last.
        for code in sorted(before, key=lambda code: code == "")
        if code in after
    ]


def domain_names(version: ModelVersion) -> dict[str, str]:
    """The names of the domains that a version was tuned on, in the reader's language."""
    routing = (version.lineage.get("tune") or {}).get("routing") or {}
    name = "name_zh" if figures.is_chinese() else "name_en"
    return {domain["code"]: domain[name] for domain in routing.get("domains") or []}


def report_verdict(version: ModelVersion) -> Verdict | None:
    """Did the tuning help, and is that real? The words of its job's page."""
    before, after, control = (_moment(version, key) for key, _title in STAGES)
    if not before.get("loss") or not after.get("loss"):
        return None
    return tuned_verdict(before, after, control)


def _moment(version: ModelVersion, key: str) -> dict[str, Any]:
    value = version.report.get(key)
    return value if isinstance(value, dict) else {}
