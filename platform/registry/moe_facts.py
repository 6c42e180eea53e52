"""What a mixture is, in pairs of words: its experts, its gate with what is set on it, room and temperature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.utils.translation import gettext as _

from common import figures
from common.spec_fields import Ask, default_of
from moe_core.spec import ModelSpec
from moe_core.spec.model import MoeSpec
from registry.gate_fields import CAPACITY_ASKS, SCHEDULE_ASKS
from registry.gates import GATES, SCHEMAS
from registry.kinds import experts_of

Facts = Iterator[tuple[str, str]]


def moe_facts(spec: ModelSpec) -> list[tuple[str, str]]:
    """The facts of a mixture; none of a dense model."""
    moe = spec.moe
    if moe is None:
        return []
    parted = "；" if figures.is_chinese() else "; "
    facts = [
        (_("Experts per layer"), parted.join(run.title for run in experts_of(spec))),
        ("top-k", str(moe.top_k)),
        (_("Shared experts"), _shared(moe)),
        (_("Gate"), str(GATES[moe.gate.kind].title)),
        *_own_of_gate(moe),
        *_temperature(moe),
        *_capacity(moe),
    ]
    if moe.quantisation is not None:
        words = {"bits": moe.quantisation.bits, "group": moe.quantisation.group_size}
        facts.append((_("Packed"), _("%(bits)s bits, groups of %(group)s") % words))
    return facts


def _shared(moe: MoeSpec) -> str:
    if not moe.num_shared_experts:
        return _("none")
    return _("%(count)s, %(width)s wide") % {
        "count": moe.num_shared_experts,
        "width": figures.number(moe.shared_intermediate_size),
    }


def _own_of_gate(moe: MoeSpec) -> Facts:
    """What is set on the gate otherwise than usual."""
    words, schema = GATES[moe.gate.kind], SCHEMAS[moe.gate.kind]
    for name, ask in {**words.asks, **words.more}.items():
        value = getattr(moe.gate, name)
        if value != default_of(schema, name):
            yield str(ask.label), said(ask, value)


def _temperature(moe: MoeSpec) -> Facts:
    schedule = moe.temperature_schedule
    if schedule is not None:
        words = {
            "start": f"{schedule.start:g}",
            "end": f"{schedule.end:g}",
            "how": said(SCHEDULE_ASKS["kind"], schedule.kind),
            "step": figures.number(schedule.step),
            "steps": figures.number(schedule.num_steps),
        }
        yield _("Temperature"), _("%(start)s to %(end)s, %(how)s; step %(step)s of %(steps)s") % words
    elif moe.temperature != 1.0:
        yield _("Temperature"), f"{moe.temperature:g}"


def _capacity(moe: MoeSpec) -> Facts:
    if moe.capacity is not None:
        for name, ask in CAPACITY_ASKS.items():
            value = getattr(moe.capacity, name)
            if name == "overflow" or value != default_of(type(moe.capacity), name):
                yield str(ask.label), said(ask, value)


def said(ask: Ask, value: Any) -> str:
    """A value as the page of its form calls it."""
    words: Mapping[Any, Any] = ask.words
    return str(words[value]) if value in words else figures.plain(value)
