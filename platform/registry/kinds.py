"""What the kinds of experts are called, and the experts of a layer as runs of equal ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy

from common import figures
from moe_core.spec import ModelSpec
from moe_core.spec.expert_kinds import ExpertKind, SwigluExpert, flops_of

KINDS: dict[str, Any] = {
    "swiglu": gettext_lazy("SwiGLU, gated"),
    "mlp": gettext_lazy("MLP, plain"),
    "identity": gettext_lazy("identity: handed back"),
    "zero": gettext_lazy("zero: nothing added"),
    "constant": gettext_lazy("constant: a learnt vector"),
}
SHORT: dict[str, Any] = {
    "swiglu": "SwiGLU",
    "mlp": "MLP",
    "identity": pgettext_lazy("kind of expert", "identity"),
    "zero": pgettext_lazy("kind of expert", "zero"),
    "constant": pgettext_lazy("kind of expert", "constant"),
}


@dataclass(frozen=True, slots=True)
class Run:
    """Experts of one kind that stand side by side."""

    count: int
    kind: str
    width: int | None
    activation: str
    # Of one of them.
    params: int
    flops: int

    @property
    def title(self) -> str:
        """4 × SwiGLU 1,536, silu."""
        words = {
            "count": figures.number(self.count),
            "kind": str(SHORT[self.kind]),
            "width": figures.number(self.width),
            "activation": self.activation,
        }
        sentence = (
            _("%(count)s × %(kind)s, %(width)s wide, %(activation)s")
            if self.width
            else _("%(count)s × %(kind)s")
        )
        return sentence % words

    @property
    def total(self) -> int:
        """Parameters of all of them in one layer."""
        return self.count * self.params


def runs_of(kinds: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Experts as plain data, equal ones that stand side by side as one with their `count`."""
    return [{"count": len(list(run)), **kind} for kind, run in groupby(kinds)]


def experts_of(spec: ModelSpec) -> list[Run]:
    """The routed experts of one layer; none for a dense model."""
    moe = spec.moe
    if moe is None:
        return []
    alike = SwigluExpert.model_construct(
        kind="swiglu", width=moe.moe_intermediate_size, activation=spec.activation
    )
    kinds: Iterable[ExpertKind] = moe.expert_kinds or [alike] * moe.num_experts
    return [_run(kind, len(list(run)), spec.hidden_size) for kind, run in groupby(kinds)]


def _run(kind: ExpertKind, count: int, hidden_size: int) -> Run:
    return Run(
        count=count,
        kind=kind.kind,
        width=getattr(kind, "width", None),
        activation=getattr(kind, "activation", ""),
        params=sum(matrix.numel for matrix in kind.matrices(hidden_size)),
        flops=flops_of(kind, hidden_size),
    )
