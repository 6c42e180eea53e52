"""The report of an operation on experts, from the row of its job."""

from __future__ import annotations

from jobs.choices import JobKind
from jobs.models import Job
from registry.operated import Operated, operated_report, operation_title


def operated_of(job: Job) -> Operated | None:
    """What is known of it; None for other kinds of jobs and before anything is known."""
    report = job.result.get("operation") if job.kind == JobKind.OPERATE else None
    return operated_report(report) if isinstance(report, dict) else None


def operation_words(job: Job) -> str:
    """The operation's name in the reader's language."""
    return operation_title(str(job.inputs.get("operate", {}).get("operation", {}).get("kind", "")))
