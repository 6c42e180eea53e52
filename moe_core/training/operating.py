"""An operation on experts as a job: models and logs in, a changed model and its report out.

The operations themselves are `moe_core.operations`; each is short beside a tuning run, so a killed one starts anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_core.checkpoint.hashes import hashes_of
from moe_core.checkpoint.inspect import inspect_dir
from moe_core.checkpoint.store import DtypeName, load, save, stored_dtype
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.errors import SpecError
from moe_core.kernels.precision import training_dtype
from moe_core.model.decoder import Decoder
from moe_core.operations.compose import compose
from moe_core.operations.distil import distil
from moe_core.operations.edit import merge_experts, preview_removal, remove_expert
from moe_core.operations.grow import add_expert, grow, release_twins
from moe_core.operations.measure import compare_all, measure_model
from moe_core.operations.prompts import Prompts
from moe_core.operations.quantise import dequantise, quantise
from moe_core.operations.routing_figures import comparable, routing_figures
from moe_core.operations.specialise import specialise_clone
from moe_core.operations.upcycle import upcycle
from moe_core.operations.wake import wake_expert
from moe_core.operations.watch import Part, Watch
from moe_core.spec.operate import LEARNING, OperateSpec
from moe_core.spec.operations import RemoveExpertSpec, UpcycleSpec
from moe_core.training.data import read_conversations
from moe_core.training.job import JobIO, finite_or_null
from moe_core.training.progress import Progress
from moe_core.training.workbench import counts_for

STAGES = ("read", "operate", "measure", "save")
MODEL, OTHER, TRAIN, HELD_OUT = "model", "other-", "train.jsonl", "held_out.jsonl"
Done = tuple[Decoder, dict[str, Any]]
# About how long each part takes beside the others; only the progress bar hangs on it.
WEIGHTS: dict[Part, float] = {
    "load": 2, "inputs": 2, "align": 2, "fit": 2, "pack": 1, "lay": 1, "learn": 10, "measure": 4,
}  # fmt: skip
PARTS: dict[str, tuple[Part, ...]] = {
    "upcycle": ("lay",),
    "quantise": ("pack",),
    "remove": ("load", "measure"),
    "merge": ("load", "inputs", "align", "measure"),
    "compose": ("fit", "measure"),
    "specialise_clone": ("learn", "measure"),
    "wake_expert": ("load", "inputs", "learn", "measure"),
    "distil": ("inputs", "load", "align", "learn", "measure"),
    "measure": ("measure",),
}


def parts_of(spec: OperateSpec, has_held_out: bool) -> tuple[Part, ...]:
    """What an operation does, in order; without held-out logs nothing that reads them is done."""
    parts = PARTS.get(spec.operation.kind, ())
    learns = spec.needs_logs
    return tuple(part for part in parts if learns or has_held_out or part in ("align", "lay", "pack"))


class Watcher:
    """Tells how far one stage of an operation is, and ends it when somebody asks."""

    def __init__(self, progress: Progress, stage: str, parts: Sequence[Part]) -> None:
        self.progress, self.stage, self.parts = progress, stage, list(parts)

    def __call__(self, part: Part, done: int, of: int) -> None:
        """Raises Cancelled or Paused."""
        self.progress.raise_if_asked()
        if part not in self.parts:
            self.parts.append(part)
        at = self.parts.index(part)
        before, own = sum(WEIGHTS[one] for one in self.parts[:at]), WEIGHTS[part] * done / max(1, of)
        whole = sum(WEIGHTS[one] for one in self.parts)
        self.progress.part(self.stage, part, done, of, (before + own) / whole)


def operate(spec: OperateSpec, io: JobIO) -> dict[str, Any]:
    """Do the operation and write the model; the result has `spec`, `inspection`, `operation` (the report), `lineage`.

    A preview and a measurement write no model, and their result is the report alone. Raises SpecError for an operation
    that does not fit the model, CheckpointError for files that are no model.
    """
    progress = Progress(io, STAGES)
    torch.set_num_threads(spec.num_threads)
    progress.stage("read")
    directories = list(_model_dirs(io))
    stored = _widest(directories)
    models = [load(path, training_dtype(spec.dtype, stored)) for path in directories]
    tokenizer = Tokenizer(io.inputs[MODEL])
    reach = [model.spec.max_position_embeddings for model in models if isinstance(model, Decoder)]
    longest = min([spec.prompt_tokens, *reach])
    if tokenizer.chat_format is None and not io.inputs.keys().isdisjoint((TRAIN, HELD_OUT)):
        progress.say("plain_logs")
    learns = spec.operation.kind in LEARNING
    train = _prompts(io, TRAIN, tokenizer, spec, longest, progress) if learns else None
    held_out = _prompts(io, HELD_OUT, tokenizer, spec, longest, progress)
    progress.raise_if_asked()
    if spec.is_measured_only:
        return _only_measured(models, held_out, io, progress)
    progress.stage("operate")
    progress.say("operation_begins", operation=spec.operation.kind, count=len(models))
    watch = Watcher(progress, "operate", parts_of(spec, held_out is not None))
    counts_V = None
    if isinstance(spec.operation, UpcycleSpec):
        counts_V = counts_for(spec.operation.layout, io.inputs, tokenizer, models[0].spec.vocab_size)
    changed, report = _perform(spec, models, train, held_out, watch, counts_V)
    progress.raise_if_asked()
    progress.stage("measure")
    watch = Watcher(progress, "measure", ("measure",))
    report = _measured(report, models[0], changed, held_out, watch)
    progress.raise_if_asked()
    report = finite_or_null(report)
    io.event("report", {"stage": "measure", "name": "operation", "figures": report})
    progress.raise_if_asked()
    if spec.preview:
        return {"operation": report}
    progress.stage("save")
    # In the precision that everything was stored in, so that what was not touched is the same bytes.
    save(changed, io.out_dir, dtype=stored, tokenizer_from=io.inputs[MODEL])
    return {
        "spec": changed.spec.model_dump(mode="json"),
        "inspection": inspect_dir(io.out_dir),
        "operation": report,
        "lineage": {"operation": spec.operation.model_dump(mode="json"), "files": hashes_of(io.out_dir)},
    }


def _only_measured(
    models: list[Decoder], held_out: Prompts | None, io: JobIO, progress: Progress
) -> dict[str, Any]:
    """The report of `measure`: of the first model, beside the second where there are two."""
    if held_out is None:
        raise SpecError.of("measured_on_nothing")
    if len(models) > 2:
        raise SpecError(f"a model is measured beside one other, not {len(models) - 1}; name one")
    progress.stage("measure")
    progress.say("measuring_begins", count=len(models))
    beside = models[1] if len(models) > 1 else None
    watch = Watcher(progress, "measure", PARTS["measure"])
    report = finite_or_null(measure_model(models[0], held_out, beside, watch))
    io.event("report", {"stage": "measure", "name": "operation", "figures": report})
    progress.raise_if_asked()
    return {"operation": report}


def _perform(
    spec: OperateSpec,
    models: list[Decoder],
    train: Prompts | None,
    held_out: Prompts | None,
    watch: Watch,
    counts_V: Tensor | None,
) -> Done:
    operation, model = spec.operation, models[0]
    if operation.kind in LEARNING and train is None:
        raise SpecError(f"{operation.kind} learns from logs; name a corpus with logs of the model's domains")
    if spec.preview:
        if held_out is None:
            raise SpecError.of("preview_without_logs")
        # What is only looked at may cost whatever it costs.
        operation = operation.model_copy(
            update={"max_loss_increase": None} if hasattr(operation, "max_loss_increase") else {}
        )
        if isinstance(operation, RemoveExpertSpec):
            return model, {"kind": operation.kind, **preview_removal(model, operation, held_out, watch)}
    acts: dict[str, Callable[[], Done]] = {
        "upcycle": lambda: upcycle(model, operation, watch, counts_V),  # type: ignore[arg-type]
        "grow": lambda: grow(model, operation),  # type: ignore[arg-type]
        "release_twins": lambda: release_twins(model, operation),  # type: ignore[arg-type]
        "add": lambda: add_expert(model, operation),  # type: ignore[arg-type]
        "remove": lambda: remove_expert(model, operation, held_out, watch),  # type: ignore[arg-type]
        "merge": lambda: merge_experts(model, operation, held_out, watch),  # type: ignore[arg-type]
        "quantise": lambda: quantise(model, operation, watch=watch),  # type: ignore[arg-type]
        "dequantise": lambda: dequantise(model, operation),  # type: ignore[arg-type]
        "compose": lambda: compose(models, operation, train, watch),  # type: ignore[arg-type]
        "specialise_clone": lambda: specialise_clone(model, operation, train, held_out, watch),  # type: ignore[arg-type]
        "wake_expert": lambda: wake_expert(model, operation, train, held_out, watch),  # type: ignore[arg-type]
        "distil": lambda: distil(model, operation, train, held_out, watch),  # type: ignore[arg-type]
    }
    return acts[operation.kind]()


def _measured(
    report: dict[str, Any], before: Decoder, after: Decoder, held_out: Prompts | None, watch: Watch
) -> dict[str, Any]:
    """Loss per domain, divergence and routing beside the operation's own figures, where it has not told them."""
    # The preview of a removal keeps no model to look at.
    if held_out is None or after is before:
        return report
    if "loss_after" in report:
        return {**report, "routing": _routing(before, after, held_out)}
    return {**report, **compare_all(before, after, held_out, watch)}


def _routing(before: Decoder, after: Decoder, held_out: Prompts) -> dict[str, Any]:
    """How the held-out prompts are routed now, and how far that is as before where experts have their old numbers."""
    first = routing_figures(before, held_out) if comparable(before.spec.moe, after.spec.moe) else None
    return routing_figures(after, held_out).report(first.choices() if first else None)


def _model_dirs(io: JobIO) -> Iterator[Path]:
    yield io.inputs[MODEL]
    for name in sorted(io.inputs, key=lambda name: (len(name), name)):
        if name.startswith(OTHER):
            yield io.inputs[name]


def _widest(directories: Sequence[Path]) -> DtypeName:
    """float32 where one of the models is stored so."""
    return "float32" if "float32" in map(stored_dtype, directories) else "bfloat16"


def _prompts(
    io: JobIO, name: str, tokenizer: Tokenizer, spec: OperateSpec, longest: int, progress: Progress
) -> Prompts | None:
    """The first prompts of each domain in a file of logs; None without logs of any domain."""
    if name not in io.inputs:
        return None
    by_domain: dict[str, list[list[int]]] = {}
    for talk in read_conversations(io.inputs[name]):
        kept = by_domain.setdefault(talk.domain, []) if talk.domain else []
        if talk.domain and len(kept) < spec.prompts_per_domain:
            ids = tokenizer.log_tokens(talk.messages).ids[:longest]
            if len(ids) > 1:
                kept.append(ids)
    by_domain = {code: prompts for code, prompts in by_domain.items() if prompts}
    if not by_domain:
        progress.say("no_domain_named", "warning", file=name)
        return None
    counts = ", ".join(f"{code} {len(prompts)}" for code, prompts in by_domain.items())
    progress.say("prompts_taken", file=name, counts=counts)
    return Prompts.of(by_domain)
