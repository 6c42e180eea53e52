"""What the pages say about a layout: the verdict, the figures beside the dense ones, advice, differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from common import figures
from common.layers import layers_text
from common.verdict import Verdict
from layouts.costing import preview
from layouts.models import Layout
from registry.block import Diagram, diagram
from registry.kinds import Run, runs_of
from registry.models import ModelVersion


@dataclass(frozen=True, slots=True)
class Line:
    """One figure: the dense model's and the mixture's."""

    label: str
    dense: tuple[str, str]
    mixture: tuple[str, str]
    key: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything the editor shows about what is typed."""

    verdict: Verdict
    lines: list[Line]
    memory: list[dict[str, Any]]
    parts: list[dict[str, Any]]
    advice: list[dict[str, str]]
    experts: list[dict[str, Any]]
    picture: Diagram
    family: str
    costs: dict[str, Any]


def answer_of(base: ModelVersion, spec: Any) -> Answer:
    """Price a layout; raises Invalid with the reason when it does not fit."""
    costs = preview(base, spec)
    dense, mixture = costs["dense"], costs["mixture"]
    words = {
        "times": figures.number(mixture["total"] / dense["total"], 2),
        "total": _compact(mixture["total"]),
        "active": _compact(mixture["active_per_token"]),
        "work": figures.number(mixture["flops_per_token"] / dense["flops_per_token"], 2),
        "bf16": figures.joined(figures.bytes_parts(mixture["bytes"]["bf16"])),
    }
    grave = [one for one in costs["advice"] if one["state"] in ("danger", "caution")]
    strong = _("%(total)s parameters, %(times)s times the dense model; a token meets %(active)s of them.") % words
    rest = _("It needs %(bf16)s at bf16 and %(work)s times the work per token.") % words
    return Answer(
        verdict=Verdict(grave[0]["state"] if grave else "ok", strong, rest),
        lines=_lines(dense, mixture),
        memory=_memory(dense, mixture),
        parts=_parts(mixture),
        advice=[{"state": one["state"], "text": advice_text(one)} for one in costs["advice"]],
        experts=_experts([Run(**run) for run in costs["experts"]]),
        picture=diagram(costs["shape"]),
        family=costs["family"],
        costs=costs,
    )


def list_verdict(newest: Layout | None, has_base: bool) -> Verdict:
    """What has been laid out, or what to do first."""
    if newest is not None:
        words = {"name": newest.name, "summary": summary(newest.spec)}
        return Verdict("ok", _("The newest layout is %(name)s.") % words, _("It has %(summary)s.") % words)
    if not has_base:
        return Verdict("off", _("There is no dense model to lay experts over."), _("Import one first."))
    rest = _("A layout says where a dense model gets experts, and what that costs.")
    return Verdict("off", _("No layout yet."), rest)


def problem_verdict(problem: str) -> Verdict:
    """Why there is no price."""
    return Verdict("danger", _("This layout cannot be built."), problem)


def _lines(dense: dict[str, Any], mixture: dict[str, Any]) -> list[Line]:
    rows = (
        ("total", _("Parameters in all"), "total", figures.compact_parts),
        ("active", _("Active per token"), "active_per_token", figures.compact_parts),
        ("flops", _("Compute per token"), "flops_per_token", figures.flops_parts),
        ("kv", _("KV cache per token"), "kv_bytes_per_token", figures.bytes_parts),
    )
    return [Line(label, show(dense[name]), show(mixture[name]), key) for key, label, name, show in rows]


def _memory(dense: dict[str, Any], mixture: dict[str, Any]) -> list[dict[str, Any]]:
    most = mixture["bytes"]["fp32"]
    names = {"fp32": "fp32", "bf16": "bf16", "int8": "int8", "int4": "int4"}
    return [
        {"name": label, "dense": dense["bytes"][name], "mixture": mixture["bytes"][name], "of": most, "key": name}
        for name, label in names.items()
    ]


def _experts(runs: list[Run]) -> list[dict[str, Any]]:
    """What one layer holds, for each kind of expert: parameters of all and of one of them."""
    most = max(run.total for run in runs)
    return [{"title": run.title, "params": run.total, "each": run.params, "of": most} for run in runs]


def _parts(mixture: dict[str, Any]) -> list[dict[str, Any]]:
    words = {
        "experts": _("experts"),
        "shared_experts": _("shared experts"),
        "dense_mlp": _("dense feed-forward"),
        "router": _("router"),
        "attention": _("attention"),
        "embedding": _("embedding"),
        "head": _("output head"),
        "norms": _("norms"),
    }
    rows = [{"name": words[key], "params": mixture["params"][key], "of": mixture["total"]} for key in words]
    return [row for row in rows if row["params"]]


def advice_text(one: dict[str, Any]) -> str:
    """One piece of advice in a sentence that says the way out."""
    sentences = {
        "one_expert": _("One expert is no mixture: there is nothing to route. Take at least four."),
        "all_experts": _("top-k equals the number of experts: every token meets all of them and nothing is saved."),
        "cut_experts": _(
            "Experts of width %(width)s keep only that many of the %(dense_width)s neurons of the feed-forward "
            "that they are copied from; the model starts worse and must be trained longer."
        ),
        "many_experts": _("%(num_experts)s experts in a layer learn slowly: start with 64 at most, and double later."),
        "few_experts": _("With %(num_experts)s experts, domains must share; four to sixteen are a good start."),
        "top_one": _("top-1 is cheapest but harder to tune: a token that goes wrong has no second opinion."),
        "first_layer": _("The first layer has experts; many models leave it dense, since it reads words, not topics."),
        "odd_width": _("A width that is a multiple of 64 (yours is %(width)s) runs faster."),
        "sees_the_batch": _(
            "With this gate a token's experts hang on the other tokens of its batch: fit to learn or to encode with, not "
            "for a model that answers word by word."
        ),
        "deaf_gate": _(
            "top-1 with weights that sum to one teaches the gate nothing: the weight is always one. Take the Switch "
            "gate, or two experts."
        ),
        "mixed_kinds": _(
            "Experts of several kinds are not packed in int8 or int4, and growing, removing or merging single ones is "
            "refused."
        ),
        "not_renormalised": _("The weights of the chosen experts are not made to sum to one, unlike in Mixtral."),
    }
    return sentences[one["code"]] % one


def difference(before: dict[str, Any] | None, after: dict[str, Any]) -> list[dict[str, str]]:
    """What changed from one revision to the next, as removed and added lines."""
    if before is None:
        return []
    lines = []
    for key in after:
        old, new = _shown(key, before.get(key)), _shown(key, after.get(key))
        if old != new:
            lines += [{"kind": "del", "text": f"{key}: {old}"}, {"kind": "add", "text": f"{key}: {new}"}]
    return lines


def summary(spec: dict[str, Any]) -> str:
    """A layout in a few words."""
    layers, experts = len(spec["moe_layers"]), spec["num_experts"]
    words = {"experts": experts, "k": spec["top_k"], "layers": layers}
    if experts == 1:
        return ngettext("one expert in %(layers)s layer", "one expert in %(layers)s layers", layers) % words
    if spec.get("expert_kinds"):
        sentence = ngettext(
            "%(experts)s experts of several kinds, top-%(k)s, in %(layers)s layer",
            "%(experts)s experts of several kinds, top-%(k)s, in %(layers)s layers",
            layers,
        )
        return sentence % words
    sentence = ngettext(
        "%(experts)s experts, top-%(k)s, in %(layers)s layer",
        "%(experts)s experts, top-%(k)s, in %(layers)s layers",
        layers,
    )
    return sentence % words


def _shown(key: str, value: Any) -> str:
    if key == "moe_layers" and value:
        return layers_text(value)
    if key == "expert_kinds" and value:
        return figures.plain([f"{one.pop('count')} × {figures.plain(list(one.values()))}" for one in runs_of(value)])
    return figures.plain(value)


def _compact(value: int) -> str:
    return figures.joined(figures.compact_parts(value))
