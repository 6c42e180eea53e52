"""An operation on experts, made definite: versions, logs and the operation itself, checked and frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _

from accounts.caller import Caller
from common.errors import Invalid
from common.figures import listed, sentences
from common.told import told
from corpora.selectors import corpus_get, training_files
from jobs.coverage import codes_without_rows
from jobs.resolved import Resolved, ready_version
from jobs.specs import OperateRequest, default_threads, spec_parse
from moe_core.errors import SpecError
from moe_core.spec import ModelSpec
from moe_core.spec.foresee import foreseen
from moe_core.spec.kinship import differences, joined
from moe_core.spec.operate import OperateSpec
from moe_core.spec.operations import ComposeSpec, MeasureSpec, OperationSpec, SpecialiseCloneSpec
from registry.models import ModelVersion

# A dense model will do for them; all others need experts that are there.
FROM_DENSE = ("upcycle", "compose", "measure")
TOKENIZER = "tokenizer.json"
# Of every domain that is composed some prompts fit the gate, some set its temperature, some are held out.
LEAST_PROMPTS = 4


def resolve_operate(caller: Caller, request: OperateRequest) -> Resolved:
    """Freeze the versions, the logs and the operation."""
    version = ready_version(caller, request.model_version)
    others = [ready_version(caller, number) for number in request.others]
    spec = _operate_spec(request)
    operation = spec.operation
    _check_others(version, others, operation)
    _check_begins(version, operation.kind)
    _check_foreseen(version.spec, operation)
    inputs: dict[str, Any] = {
        "model_version": {"id": version.pk, "label": str(version)},
        "others": [{"id": other.pk, "label": str(other)} for other in others],
        "corpus": None,
        "operate": spec.model_dump(mode="json"),
    }
    artifacts: dict[str, str] = {}
    if request.corpus is not None:
        corpus = corpus_get(caller.team, request.corpus)
        files = training_files(corpus)
        _check_rows(operation, corpus.counts)
        inputs["corpus"] = {"id": corpus.pk, "name": corpus.name, **files}
        artifacts = {"train.jsonl": files["train"], "held_out.jsonl": files["held_out"]}
    elif spec.needs_logs:
        _refuse("corpus", _without_corpus(spec))
    else:
        _check_without_logs(spec)
    return Resolved(
        name=version.model.name,
        spec=request.model_dump(mode="json"),
        inputs=inputs,
        artifacts=artifacts,
        base_version=version,
    )


def _check_others(version: ModelVersion, others: Sequence[ModelVersion], operation: OperationSpec) -> None:
    """Versions are composed when they have one shape, and each has its domain; one is measured beside another."""
    if isinstance(operation, MeasureSpec):
        _check_beside(version, others)
        return
    if not isinstance(operation, ComposeSpec):
        if others:
            _refuse("others", _("Only “compose” and “measure” take more than one version."))
        return
    if len(others) + 1 != len(operation.domains):
        _refuse("operation.domains", _("Name one domain for each version, in their order."))
    try:
        first = ModelSpec.parse(version.spec)
        specs = [ModelSpec.parse(other.spec) for other in others]
        for other, spec in zip(others, specs, strict=True):
            if apart := differences(first, spec):
                _refuse_shape(version, other, apart)
        joined([first, *specs])
    except SpecError as error:
        _refuse("others", told(str(error)))


def _check_beside(version: ModelVersion, others: Sequence[ModelVersion]) -> None:
    """The same text must be the same tokens to both, or no figure of one could be held against the other's."""
    if len(others) > 1:
        _refuse(
            "others", _("Name one version to measure beside; there are %(count)s.") % {"count": len(others)}
        )
    for other in others:
        if _tokens_of(other) != _tokens_of(version):
            words = {"other": str(other), "version": str(version)}
            sentence = _(
                "%(other)s has another tokenizer than %(version)s, so that its losses are of other tokens."
            )
            _refuse("others", sentence % words)


def _tokens_of(version: ModelVersion) -> tuple[int, str | None]:
    """What says which tokens a text is to a version: their number, and the tokenizer's file."""
    return int(version.spec["vocab_size"]), version.files.get(TOKENIZER, {}).get("sha256")


def _without_corpus(spec: OperateSpec) -> str:
    if spec.is_measured_only:
        return _("There is nothing to measure on; choose a corpus.")
    return _("This operation learns from logs; choose a corpus.")


def _refuse_shape(version: ModelVersion, other: ModelVersion, apart: list[str]) -> None:
    words = {"other": str(other), "version": str(version), "fields": listed(apart)}
    sentence = _("%(other)s has another shape than %(version)s (%(fields)s); compose versions of one shape.")
    _refuse("others", sentence % words)


def _check_begins(version: ModelVersion, kind: str) -> None:
    """What an operation begins with: a dense model, or experts."""
    if version.is_dense and kind not in FROM_DENSE:
        reason = _("%(version)s is dense; it has no experts to change. Lay experts over it first.") % {
            "version": str(version)
        }
        _refuse("model_version", reason)
    if kind == "upcycle" and not version.is_dense:
        _refuse("model_version", _("%(version)s has experts already.") % {"version": str(version)})


def _check_without_logs(spec: OperateSpec) -> None:
    try:
        spec.check_without_logs()
    except SpecError as error:
        _refuse("corpus", told(str(error)))


def _check_foreseen(spec: Mapping[str, Any], operation: OperationSpec) -> None:
    """Refuse at once what the operation would refuse by the specification alone, each fault beside its field."""
    try:
        foreseen(ModelSpec.parse(spec), operation)
    except SpecError as error:
        fields = {
            ".".join(map(str, ("operation", *place))): told(sentence) for place, sentence in error.complaints
        }
        raise Invalid(sentences(*fields.values()), fields=fields) from error


def _check_rows(operation: Any, counts: Mapping[str, Any]) -> None:
    """The domains that an operation names must be in the logs that it learns from."""
    codes: tuple[str, ...]
    if isinstance(operation, SpecialiseCloneSpec):
        field, codes, at_least = "operation.domain", (operation.domain,), 1
    elif isinstance(operation, ComposeSpec):
        field, codes, at_least = "operation.domains", operation.domains, LEAST_PROMPTS
    elif isinstance(operation, MeasureSpec):
        _check_held_out(counts)
        return
    else:
        return
    if lacking := codes_without_rows(counts, codes, at_least):
        _refuse(field, sentences(_lacking(lacking, at_least), _of_what_there_are_rows(counts)))


def _check_held_out(counts: Mapping[str, Any]) -> None:
    by_domain = counts.get("by_domain") or {}
    if not any(code and rows.get("held_out") for code, rows in by_domain.items()):
        _refuse("corpus", told(str(SpecError.of("measured_on_nothing"))))


def _lacking(codes: Sequence[str], at_least: int) -> str:
    words = {"domains": listed(codes), "least": at_least}
    if at_least == 1:
        return _("These logs hold no row to train on of the domain %(domains)s.") % words
    return _("These logs have fewer than %(least)s rows to train on of these domains: %(domains)s.") % words


def _of_what_there_are_rows(counts: Mapping[str, Any]) -> str:
    by_domain = counts.get("by_domain") or {}
    known = [code for code, rows in by_domain.items() if code and rows.get("train")]
    if not known:
        return _("None of their rows to train on names a domain.")
    return _("They have such rows of: %(known)s.") % {"known": listed(known)}


def _operate_spec(request: OperateRequest) -> OperateSpec:
    if "operation" in request.options:
        _refuse("options.operation", _("The operation has a field of its own."))
    plain = {"num_threads": default_threads(), **request.options, "operation": request.operation}
    try:
        return spec_parse(OperateSpec, plain)
    except Invalid as error:
        fields = {_asked_at(name): sentence for name, sentence in error.fields.items()}
        raise Invalid(error.message, fields=fields) from error


def _asked_at(name: str) -> str:
    """Where the request has a field of OperateSpec: all but the operation stand among its options."""
    return name if name.split(".")[0] in ("operation", "spec") else f"options.{name}"


def _refuse(field: str, reason: str) -> None:
    raise Invalid(reason, fields={field: reason})
