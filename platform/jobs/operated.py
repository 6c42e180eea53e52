"""The report of an operation on experts, from the row of its job."""

from __future__ import annotations

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from jobs.choices import JobKind
from jobs.models import Job
from registry.operated import Operated, operated_report

# What `moe_core.operations.watch` calls them, with what is counted.
PART_WORDS: dict[str, Promise] = {
    "load": _("Counting the load of each expert, prompt by prompt"),
    "inputs": _("Collecting what the routers see, prompt by prompt"),
    "align": _("Aligning and merging experts, layer by layer"),
    "fit": _("Fitting the gates, layer by layer"),
    "pack": _("Packing the experts, layer by layer"),
    "lay": _("Laying the experts, layer by layer"),
    "learn": _("Learning, step by step"),
    "measure": _("Measuring loss and divergence, before and after, prompt by prompt"),
}


def operated_of(job: Job) -> Operated | None:
    """What is known of it; None for other kinds of jobs and before anything is known."""
    report = job.result.get("operation") if job.kind == JobKind.OPERATE else None
    return operated_report(report) if isinstance(report, dict) else None
