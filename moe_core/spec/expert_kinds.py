"""Kinds of experts that one layer may hold side by side, each with a width of its own.

D model width, F width of an expert, E experts.
Source: Jin et al. 2024, "MoE++: Accelerating Mixture-of-Experts Methods with Zero-Computation Experts", arXiv 2410.07348,
section 3.1 (zero, copy, constant); Meituan 2025, "LongCat-Flash Technical Report", arXiv 2509.01322, section 2.1 (identity);
Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202 (swiglu); Vaswani et al. 2017, "Attention Is All You
Need", arXiv 1706.03762, section 3.3 (mlp); So et al. 2021, "Primer", arXiv 2109.08668 (relu2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from moe_core.sentences import CORE
from moe_core.spec.base import Spec

Width = Annotated[int, Field(ge=1, le=1 << 18)]
PlainActivation = Literal["silu", "gelu", "relu", "relu2"]


class Matrix(NamedTuple):
    """One tensor of an expert: (rows, length), or (rows,) where the length is 0."""

    name: str
    rows: int
    length: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """As a checkpoint has it."""
        return (self.rows, self.length) if self.length else (self.rows,)

    @property
    def numel(self) -> int:
        """Its values."""
        return self.rows * (self.length or 1)


class SwigluExpert(Spec):
    """down(act(gate(x)) · up(x)), three maps."""

    kind: Literal["swiglu"] = "swiglu"
    """The name of this kind of expert."""
    width: Width
    """Its neurons."""
    activation: Literal["silu", "gelu"] = "silu"
    """What stands between its maps."""

    def matrices(self, hidden_size: int) -> tuple[Matrix, ...]:
        """Gate, up and down, in the order in which they are packed; named as Mixtral does."""
        up = [Matrix(name, self.width, hidden_size) for name in ("w1.weight", "w3.weight")]
        return (*up, Matrix("w2.weight", hidden_size, self.width))


class MlpExpert(Spec):
    """down(act(up(x))), two maps, perhaps with biases."""

    kind: Literal["mlp"] = "mlp"
    """The name of this kind of expert."""
    width: Width
    """Its neurons."""
    activation: PlainActivation = "gelu"
    """What stands between its maps."""
    bias: bool = False
    """Whether its maps have biases."""

    def matrices(self, hidden_size: int) -> tuple[Matrix, ...]:
        """Up and down; biases come after them."""
        maps = (Matrix("w3.weight", self.width, hidden_size), Matrix("w2.weight", hidden_size, self.width))
        return (*maps, Matrix("w3.bias", self.width), Matrix("w2.bias", hidden_size)) if self.bias else maps


class IdentityExpert(Spec):
    """x itself (MoE++ calls it copy)."""

    kind: Literal["identity"] = "identity"
    """The name of this kind of expert."""

    def matrices(self, hidden_size: int) -> tuple[Matrix, ...]:
        """None."""
        return ()


class ZeroExpert(Spec):
    """Nothing: the token passes by on the residual alone."""

    kind: Literal["zero"] = "zero"
    """The name of this kind of expert."""

    def matrices(self, hidden_size: int) -> tuple[Matrix, ...]:
        """None."""
        return ()


class ConstantExpert(Spec):
    """a · x + b · v with (a, b) = softmax(W x) and a learnt v: W (2, D), v (D,)."""

    kind: Literal["constant"] = "constant"
    """The name of this kind of expert."""

    def matrices(self, hidden_size: int) -> tuple[Matrix, ...]:
        """W and v."""
        return (Matrix("mix.weight", 2, hidden_size), Matrix("constant", hidden_size))


ExpertKind = Annotated[
    SwigluExpert | MlpExpert | IdentityExpert | ZeroExpert | ConstantExpert, Field(discriminator="kind")
]
ExpertKinds = Annotated[tuple[ExpertKind, ...], Field(min_length=1, max_length=1024)]


def flops_of(kind: ExpertKind, hidden_size: int) -> int:
    """Floating-point operations of an expert's maps for one token."""
    return sum(2 * matrix.numel for matrix in kind.matrices(hidden_size) if matrix.length)


def widest(kinds: Sequence[ExpertKind]) -> int | None:
    """The width of the widest feed-forward among them; None where there is none."""
    widths = [kind.width for kind in kinds if isinstance(kind, SwigluExpert | MlpExpert)]
    return max(widths, default=None)


def complaint_of(kinds: Sequence[ExpertKind], num_experts: int) -> str | None:
    """Why these kinds are not the experts of a layer; None when they are."""
    if len(kinds) != num_experts:
        return CORE.say("kinds_counted", kinds=len(kinds), num_experts=num_experts)
    if widest(kinds) is None:
        return CORE.say("kinds_without_feed_forward")
    return None


def balance_costs(kinds: Sequence[ExpertKind], hidden_size: int, free_cost: float) -> tuple[float, ...]:
    """What a token on each expert counts for when loads are evened: its FLOPs over the mean of those that compute.

    Identity, zero and constant experts count for `free_cost` (MoE++'s τ): by their FLOPs they would take every token.
    """
    flops = [flops_of(kind, hidden_size) for kind in kinds]
    computing = [
        n for n, kind in zip(flops, kinds, strict=True) if isinstance(kind, SwigluExpert | MlpExpert)
    ]
    mean = sum(computing) / len(computing)
    return tuple(
        n / mean if isinstance(kind, SwigluExpert | MlpExpert) else free_cost
        for n, kind in zip(flops, kinds, strict=True)
    )
