"""A model measured as it is, alone or beside another: loss by domain, every figure of routing, who works for whom.

Shapes: L expert layers, E experts, N domains.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moe_core.errors import SpecError
from moe_core.model.decoder import Decoder
from moe_core.operations.parts import decoder_of
from moe_core.operations.passes import Observe, compare, loss_by_domain, unobserved
from moe_core.operations.prompts import Prompts, check_prompts
from moe_core.operations.routing_figures import RoutingFigures, comparable
from moe_core.operations.watch import Watch, unwatched

# L · N · E counts beyond so many are left out of a report; who leads in each layer is told of any model.
MAX_COUNTS = 2**17


def measure_model(
    model: Decoder, prompts: Prompts, beside: Decoder | None = None, watch: Watch = unwatched
) -> dict[str, Any]:
    """Measure a model on prompts of domains; neither model is changed.

    Args:
        model: dense or a mixture, with experts of any kind, packed ones too.
        prompts: what it is measured on; padding never counts.
        beside: another model that reads the same tokens, such as the one that `model` was made from. Then the report has
            its figures too, and how far the two differ.
        watch: hears how far it is.

    Returns:
        Plain data; figures of weights that are not finite are NaN. `tokens` and `loss` (nats a token) by domain; of a
        mixture `routing`, the figures of `moe_core.operations.metrics` by layer and as their mean, `leading`, the expert of
        each layer that a domain sends most to with its share of the domain's choices, and `load`, these choices counted
        for every expert (None beyond MAX_COUNTS numbers). With `beside` also `loss_before`, `loss_after`, `loss_change`,
        `kl` (of `beside` from `model`) and `same_best_token` by domain, `routing_before`, and in `routing` the `agreement`
        and `saturation` of choices where both number their experts alike.

    Raises:
        SpecError: a model is no decoder, the vocabularies differ in size, a token is outside them, or a prompt is longer
            than a model's positions.
    """
    decoder_of(model)
    check_prompts(prompts)
    report: dict[str, Any] = {"kind": "measure", "tokens": _tokens(prompts)}
    figures = RoutingFigures.of(model, prompts)
    if beside is None:
        report["loss"] = loss_by_domain(model, prompts, watch, _observer(figures))
        if figures is not None:
            report["routing"] = figures.report()
    else:
        _check_vocabulary(decoder_of(beside), model)
        report |= compare_all(beside, model, prompts, watch, figures)
        report["loss"] = report["loss_after"]
    return report if figures is None else report | _by_domain(figures.loads_by_domain(), prompts.codes)


def compare_all(
    before: Decoder,
    after: Decoder,
    prompts: Prompts,
    watch: Watch = unwatched,
    figures: RoutingFigures | None = None,
) -> dict[str, Any]:
    """`compare`, and in the same passes `routing` (of `after`) and `routing_before`, of those that are mixtures.

    `figures` are to hold those of `after`, where the caller has more to ask of them.
    """
    first, figures = RoutingFigures.of(before, prompts), figures or RoutingFigures.of(after, prompts)
    report = compare(before, after, prompts, watch, (_observer(first), _observer(figures)))
    if first is not None:
        report["routing_before"] = first.report()
    if figures is not None:
        alike = first is not None and comparable(before.spec.moe, after.spec.moe)
        report["routing"] = figures.report(first.choices() if first is not None and alike else None)
    return report


def _observer(figures: RoutingFigures | None) -> Observe:
    return unobserved if figures is None else figures.observe


def _check_vocabulary(one: Decoder, other: Decoder) -> None:
    sizes = one.spec.vocab_size, other.spec.vocab_size
    if sizes[0] != sizes[1]:
        raise SpecError.of("vocabularies_differ", one=sizes[0], other=sizes[1])


def _tokens(prompts: Prompts) -> dict[str, int]:
    """How many real tokens each domain has."""
    domain_T = prompts.domain_T[prompts.real_T]
    return {code: int((domain_T == place).sum()) for place, code in enumerate(prompts.codes)}


def _by_domain(loads: dict[int, Tensor], codes: tuple[str, ...]) -> dict[str, Any]:
    """`leading` and `load` of the report."""
    leading = [{"layer": layer, "by_domain": _leading(load_NE, codes)} for layer, load_NE in loads.items()]
    is_small = sum(load_NE.numel() for load_NE in loads.values()) <= MAX_COUNTS
    load = [
        {"layer": layer, "by_domain": dict(zip(codes, load_NE.tolist(), strict=True))}
        for layer, load_NE in loads.items()
    ]
    return {"leading": leading, "load": load if is_small else None}


def _leading(load_NE: Tensor, codes: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """By domain that chose anything: the expert that got most, the lowest number of equals, and its share."""
    return {
        code: {"expert": int(load_E.argmax()), "share": int(load_E.max()) / int(load_E.sum())}
        for code, load_E in zip(codes, load_NE, strict=True)
        if int(load_E.sum())
    }
