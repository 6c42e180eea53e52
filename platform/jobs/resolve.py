"""What was asked, made definite: names become rows of the caller's team, rows become frozen copies and hashes.

A job must mean tomorrow what it meant when it was submitted, whatever is edited in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.utils.translation import gettext as _

from accounts.caller import Caller
from common.errors import Invalid
from common.figures import listed, sentences
from common.told import told_faults
from corpora.selectors import corpus_get, training_files
from jobs.builtin import builtin_get
from jobs.choices import JobKind
from jobs.coverage import Coverage, Effort, coverage_of
from jobs.folders import folder_checked
from jobs.resolve_operate import resolve_operate
from jobs.resolved import Resolved, ready_version
from jobs.specs import (
    BuiltinSource,
    FolderSource,
    ImportRequest,
    OperateRequest,
    TuneRequest,
    UploadSource,
    default_threads,
    spec_parse,
)
from layouts.selectors import layout_get
from moe_core.errors import SpecError
from moe_core.spec import LayoutSpec, ModelSpec, RoutingSpec, TuneSpec
from moe_core.spec.demands import check_tunable
from registry import store
from registry.models import ModelVersion, UploadKind
from registry.selectors import upload_get
from registry.sniff import said_of_part
from routing.selectors import map_get, routing_spec


def resolve(*, caller: Caller, kind: str, spec: Any) -> Resolved:
    """Check a specification and freeze what it names."""
    if kind == JobKind.IMPORT:
        return resolve_import(caller, spec_parse(ImportRequest, spec))
    if kind == JobKind.TUNE:
        return resolve_tune(caller, spec_parse(TuneRequest, spec))
    if kind == JobKind.OPERATE:
        return resolve_operate(caller, spec_parse(OperateRequest, spec))
    known = listed(JobKind.values)
    raise Invalid(
        _("There is no kind of job “%(kind)s”; there are: %(known)s.")
        % {"kind": str(kind)[:40], "known": known},
        fields={"kind": _("Choose one of %(known)s.") % {"known": known}},
    )


def resolve_import(caller: Caller, request: ImportRequest) -> Resolved:
    """Find the source of an import."""
    source = request.source
    artifacts: dict[str, str] = {}
    facts: dict[str, Any] = {"licence": request.licence, "dtype": request.dtype}
    match source:
        case BuiltinSource():
            builtin = builtin_get(source.name)
            facts |= {"licence": request.licence or builtin.licence, "source": builtin.source}
        case UploadSource():
            upload = upload_get(caller.team, source.id)
            if upload.kind != UploadKind.GGUF:
                reason = _(
                    "%(name)s is %(kind)s; one uploaded file is imported when it is GGUF. Import a safetensors "
                    "model as a folder."
                ) % {"name": upload.name, "kind": upload.get_kind_display()}
                raise Invalid(reason, fields={"source.id": reason})
            with store.path_of(upload.artifact_id).open("rb") as file:
                said = said_of_part(file, upload.name)
            if said is not None:
                raise Invalid(said, fields={"source.id": said})
            artifacts["source.gguf"] = upload.artifact_id
            facts["source"] = upload.name
        case FolderSource():
            path = folder_checked(source.path)
            facts |= {"source": path.name, "path": str(path)}
    return Resolved(
        name=request.name,
        spec=request.model_dump(mode="json"),
        inputs={"source_kind": source.kind, **facts},
        artifacts=artifacts,
    )


def resolve_tune(caller: Caller, request: TuneRequest) -> Resolved:
    """Freeze the version, the layout, the map and the logs of a tuning run."""
    version = ready_version(caller, request.model_version)
    domain_map = map_get(caller.team, request.domain_map)
    corpus = corpus_get(caller.team, request.corpus)
    files = training_files(corpus)
    layout, layout_facts = _layout_of(caller, request, version)
    routing = routing_spec(domain_map)
    tune = _tune_spec(request, version, layout, routing)
    coverage = coverage_of(routing, corpus.counts, effort_of(tune), is_unsettled=corpus.is_unsettled)
    if coverage.refusals:
        raise Invalid(
            " ".join(coverage.refusals),
            code="logs_do_not_fit",
            fields={"corpus": " ".join(coverage.refusals)},
        )
    inputs = {
        "model_version": {"id": version.pk, "label": str(version)},
        "layout": layout_facts,
        "domain_map": {
            "id": domain_map.pk, "name": domain_map.name, "revision": domain_map.revision,
            "colours": {domain.code: domain.colour for domain in domain_map.domains.all()},
        },
        "corpus": {"id": corpus.pk, "name": corpus.name, **files, "coverage": _kept(coverage)},
        "tune": tune.model_dump(mode="json"),
    }  # fmt: skip
    return Resolved(
        name=version.model.name,
        spec=request.model_dump(mode="json"),
        inputs=inputs,
        artifacts={"train.jsonl": files["train"], "held_out.jsonl": files["held_out"]},
        base_version=version,
    )


def effort_of(tune: TuneSpec) -> Effort:
    """How much a run reads of its logs."""
    return Effort(tune.specialise_steps, tune.route_steps, tune.tokens_per_batch)


def _kept(coverage: Coverage) -> dict[str, dict[str, int]]:
    """The rows that a run began with; logs that are added later do not change what it was."""
    return {row.code: {"train": row.train, "held_out": row.held_out} for row in coverage.rows}


def _layout_of(
    caller: Caller, request: TuneRequest, version: ModelVersion
) -> tuple[LayoutSpec | None, dict[str, Any] | None]:
    """A dense version needs a layout, a mixture has one already."""
    if request.layout is None:
        if version.is_dense:
            reason = _("%(version)s is dense; choose a layout to lay over it.") % {"version": str(version)}
            raise Invalid(reason, fields={"layout": reason})
        return None, None
    layout = layout_get(caller.team, request.layout)
    spec = layout.layout_spec()
    return spec, {
        "id": layout.pk, "name": layout.name, "revision": layout.revision, "spec": spec.model_dump(mode="json"),
    }  # fmt: skip


def _tune_spec(
    request: TuneRequest, version: ModelVersion, layout: LayoutSpec | None, routing: RoutingSpec
) -> TuneSpec:
    """Put the parts together and see that they fit one another."""
    tune = _tune_options(request, layout, routing)
    if not routing.domains:
        reason = _("The domain map has no domains; add at least one.")
        raise Invalid(reason, fields={"domain_map": reason})
    base = ModelSpec.parse(version.spec)
    fields: dict[str, str] = {}
    with _noting(fields, "layout"):
        base = layout.applied_to(base) if layout else base
    if base.moe is not None:
        with _noting(fields, "domain_map"):
            routing.check_fits(base.moe.num_experts, base.moe.moe_layers)
        with _noting(fields, "layout" if layout else "model_version"):
            check_tunable(base.moe)
        with _noting(fields, "tune"):
            tune.check_gates(base.moe)
    if tune.control:
        with _noting(fields, "domain_map"):
            routing.deranged(tune.seed)
    if fields:
        reason = _("These parts do not fit together: %(reason)s")
        raise Invalid(reason % {"reason": sentences(*fields.values())}, fields=fields)
    return tune


@contextmanager
def _noting(fields: dict[str, str], name: str) -> Iterator[None]:
    """Keep what does not fit under the field that it is about, so that everything is told at once."""
    try:
        yield
    except SpecError as error:
        for field, sentence in told_faults(error, name).items():
            fields.setdefault(field, sentence)


def _tune_options(request: TuneRequest, layout: LayoutSpec | None, routing: RoutingSpec) -> TuneSpec:
    """Sizes and rates as asked for, the rest as TuneSpec has it."""
    named = {"layout", "routing"} & request.tune.keys()
    if named:
        reason = _("Layout and routing are named by their rows, not here.")
        raise Invalid(reason, fields={f"tune.{name}": reason for name in named})
    options = {"num_threads": default_threads(), **request.tune}
    parts = {"layout": layout.model_dump() if layout else None, "routing": routing.model_dump()}
    return spec_parse(TuneSpec, {**options, **parts}, prefix="tune")


def source_path(inputs: dict[str, Any]) -> Path:
    """Where the folder of an import lies, checked again on the machine that reads it."""
    return folder_checked(str(inputs["path"]))
