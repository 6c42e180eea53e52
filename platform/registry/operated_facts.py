"""The figures that the report of an operation has beside its losses, each with its name and unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _

from common import figures
from registry.packed import packed_facts

Report = Mapping[str, Any]
Facts = Iterator[tuple[str, str]]


def operated_facts(report: Report) -> Facts:
    """What every operation tells, around what its own kind does."""
    if "keeps_function" in report:
        yield _("Says the same at that moment"), _kept(report)
    tell = KINDS.get(str(report.get("kind")))
    if tell is not None:
        yield from tell(report)
    if _all_known(same := report.get("same_best_token") or {}):
        yield _("Same best next token"), figures.percent(_mean(list(same.values())), 1)


def _grown(report: Report) -> Facts:
    before, now = report["num_experts"]
    yield _("Experts per layer"), _now(figures.number(now), figures.number(before))
    before, now = report["top_k"]
    if now != before:
        yield "top-k", _now(figures.number(now), figures.number(before))


def _added(report: Report) -> Facts:
    yield _("New expert"), _experts(report["expert"])
    if "source" in report:
        yield _("Twin of expert"), _experts(report["source"])


def _removed(report: Report) -> Facts:
    yield _("Removed, by layer"), _by_layer(report["experts"])


def _merged(report: Report) -> Facts:
    yield (
        _("Merged, by layer"),
        _by_layer(
            [
                f"{_experts(two)} → {_experts(one)}"
                for one, two in zip(report["first"], report["second"], strict=True)
            ]
        ),
    )


def _specialised(report: Report) -> Facts:
    yield _("New expert"), _experts(report["expert"])
    if "source" in report:
        yield _("Clone of expert"), _experts(report["source"])
    # Of each domain: how much of all choices goes to the clone.
    shares = sorted(report.get("clone_share", {}).items(), key=lambda one: -one[1])
    if shares:
        told = figures.listed(f"{code} {figures.percent(share, 1)}" for code, share in shares)
        yield _("Its share of all choices"), told


def _woken(report: Report) -> Facts:
    yield _("Woken, by layer"), _by_layer(report["woken"])
    before, now = (figures.number(_mean(report[name]), 2) for name in ("share_before", "share_after"))
    yield _("Its load over the fair share"), _now(now, before)
    if raised := report.get("bias_raised"):
        # A mean alone would hide the layer in which the bias held it off.
        words = {"mean": figures.number(_mean(raised), 2), "most": figures.number(max(raised), 2)}
        yield _("Its bias was raised by"), _("%(mean)s, at most %(most)s") % words


def _released(report: Report) -> Facts:
    before, now = (_chosen_by(hold) for hold in report["hold"])
    yield _("Experts that are twins"), figures.number(report["twins"])
    yield _("Who chooses between twins"), _now(now, before)


def _packed(report: Report) -> Facts:
    words = {"now": _size(report["expert_bytes"]), "before": _size(report["expert_bytes_16_bit"])}
    yield _("Bits a weight, as stored"), figures.number(report["bits_per_weight"], 2)
    yield _("Experts' bytes"), _("%(now)s of %(before)s at 16 bits") % words
    yield _("Saved"), figures.percent(report["saved"], 1)
    yield from packed_facts(report)


def _unpacked(report: Report) -> Facts:
    before, now = (_size(count) for count in report["expert_bytes"])
    yield _("Experts' bytes"), _now(now, before)


def _distilled(report: Report) -> Facts:
    before, now = (figures.joined(figures.compact_parts(count)) for count in report["parameters"])
    yield _("Parameters"), _now(now, before)
    yield _("Layers"), figures.number(len(report["layers"]))


def _composed(report: Report) -> Facts:
    """How well the gates find the domains of prompts that they were not fitted on, and what the losses are held against."""
    if report.get("loss_of_each"):
        yield _("Loss before"), _("of the best of the versions, domain by domain")
    layers = [layer for layer in report.get("layers", []) if isinstance(layer, dict)]
    for name, title in (
        ("token_accuracy", _("Held-out tokens at their domain's experts")),
        ("new_token_accuracy", _("The same of tokens that no fitted prompt has")),
        ("own_choices", _("Experts that a version alone would choose, still chosen")),
    ):
        told = [layer[name] for layer in layers if layer.get(name) is not None]
        if told:
            yield title, figures.percent(_mean(told), 1)
    if silent := [layer["layer"] for layer in layers if layer.get("beats_chance") is False]:
        yield _("Layers whose gates tell the domains no better than chance"), figures.listed(silent)
    if report.get("temperature_acts") is False:
        yield (
            _("Calibrated temperature"),
            _("changes no output: one expert takes each token, with full weight"),
        )


def _measured(report: Report) -> Facts:
    yield _("Tokens read"), figures.number(sum(report["tokens"].values()))
    if _all_known(report["loss"]):
        yield (
            _("Mean loss of the domains, nats a token"),
            figures.number(_mean(list(report["loss"].values())), 3),
        )
    mean = (report.get("routing") or {}).get("mean") or {}
    for name, title in (("max_vio", "MaxVio"), ("entropy", _("Entropy of the load"))):
        if name in mean:
            yield title, figures.number(mean[name], 2)
    if "agreement" in mean:
        yield _("Chooses experts as the other does (Jaccard)"), figures.percent(mean["agreement"], 1)


KINDS: dict[str, Callable[[Report], Facts]] = {
    "grow": _grown,
    "add": _added,
    "remove": _removed,
    "merge": _merged,
    "specialise_clone": _specialised,
    "wake_expert": _woken,
    "release_twins": _released,
    "quantise": _packed,
    "dequantise": _unpacked,
    "distil": _distilled,
    "compose": _composed,
    "measure": _measured,
}


def _kept(report: Report) -> str:
    """Whether the function is kept, and where rounding chose between halves of an expert, which they are."""
    if report["keeps_function"]:
        return _("yes, to rounding")
    if undecided := report.get("undecided"):
        words = {"experts": figures.listed(undecided["experts"]), "layer": undecided["layer"]}
        return _("no: rounding chooses between experts %(experts)s of layer %(layer)s") % words
    return _("no")


def _now(now: str, before: str) -> str:
    return _("%(now)s (%(before)s before)") % {"now": now, "before": before}


def _experts(one: int | Sequence[int]) -> str:
    """The number of an expert, or those of one in each group."""
    return " + ".join(map(str, one)) if isinstance(one, list | tuple) else str(one)


def _by_layer(each: Sequence[Any]) -> str:
    """One entry a layer; one for all where they are alike."""
    told = [one if isinstance(one, str) else _experts(one) for one in each]
    if len(told) > 1 and len(set(told)) == 1:
        return _("%(entry)s in all layers") % {"entry": told[0]}
    return figures.listed(told)


def _all_known(by_domain: Mapping[str, Any]) -> bool:
    """Whether there is a mean over the domains: not where one of them is no number."""
    return bool(by_domain) and None not in by_domain.values()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _chosen_by(hold: float | None) -> str:
    """Who chooses between twins at this hold."""
    if hold is None:
        return _("a hash")
    return _("the gate") if hold == 0 else _("the gate, held by %(hold)s") % {"hold": figures.plain(hold)}


def _size(num_bytes: float) -> str:
    return figures.joined(figures.bytes_parts(num_bytes))
