"""What a tuning run does: stages, sizes, learning rates, seeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moe_core.spec.base import Spec, Weight
from moe_core.spec.layout import LayoutSpec
from moe_core.spec.routing import RoutingSpec

Steps = Annotated[int, Field(ge=0, le=1_000_000)]
Rate = Annotated[float, Field(gt=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]


class TuneSpec(Spec):
    """Upcycle, specialise the experts, tune the router alone, and the deranged control beside it."""

    layout: LayoutSpec | None = None
    routing: RoutingSpec
    window_tokens: Annotated[int, Field(ge=8, le=8192)] = 128
    tokens_per_batch: Annotated[int, Field(ge=8, le=1 << 20)] = 1024
    specialise_steps: Steps = 16
    route_steps: Steps = 16
    specialise_learning_rate: Rate = 3e-4
    route_learning_rate: Rate = 3e-2
    weight_decay: Weight = 0.0
    clip_norm: Annotated[float, Field(gt=0.0, le=1e3)] = 1.0
    lm_weight: Weight = 1.0
    held_out_windows: Annotated[int, Field(ge=1, le=10_000)] = 24
    control: bool = True
    upcycle_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    router_std: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    seed: Seed = 0
    # "auto" is the quicker of the two on the machine that trains.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # "auto" is the GPU where there is one.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Lanes of the CPU; a GPU has one.
    num_threads: Annotated[int, Field(ge=1, le=256)] = 1
    checkpoint_every_steps: Annotated[int, Field(ge=1, le=100_000)] = 4
    # A checkpoint that is due by its steps still waits until so many seconds have passed since the last one.
    checkpoint_min_seconds: Annotated[float, Field(ge=0.0, le=86_400.0)] = 20.0
