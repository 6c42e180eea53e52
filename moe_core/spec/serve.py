"""What an engine process is told when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from moe_core.spec.base import Spec
from moe_core.spec.routing import DomainSpec, PriorMode, RoutingSpec

# sun_path holds 108 bytes including the closing NUL.
MAX_SOCKET_PATH_BYTES = 107


class ServeSpec(Spec):
    """One engine: which model directory, which socket, how much of the machine."""

    model_dir: Path
    socket_path: Path
    version: Annotated[str, Field(max_length=200)] = ""
    epoch: Annotated[int, Field(ge=0)] = 0
    domains: Annotated[tuple[DomainSpec, ...], Field(max_length=256)] = ()
    prior_mode: PriorMode = "bias"
    prior_strength: Annotated[float, Field(ge=0.0, le=50.0)] = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    num_threads: Annotated[int, Field(ge=1, le=256)] = 1
    max_batch_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 512
    max_sequences: Annotated[int, Field(ge=1, le=4096)] = 16
    max_waiting: Annotated[int, Field(ge=0, le=100_000)] = 256
    kv_tokens: Annotated[int, Field(ge=16, le=1 << 28)] = 16_384
    block_tokens: Annotated[int, Field(ge=1, le=1024)] = 16
    drain_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 20.0
    secret_file: Path | None = None

    @field_validator("socket_path")
    @classmethod
    def _short_enough(cls, value: Path) -> Path:
        length = len(str(value).encode())
        if length > MAX_SOCKET_PATH_BYTES:
            raise ValueError(
                f"socket_path has {length} bytes; a unix socket takes {MAX_SOCKET_PATH_BYTES}: "
                "use a shorter directory"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kv_tokens < self.block_tokens:
            raise ValueError(f"kv_tokens ({self.kv_tokens}) must hold one block ({self.block_tokens})")
        return self

    def routing(self) -> RoutingSpec:
        """The served domains as a routing policy."""
        return RoutingSpec(
            domains=self.domains, prior_mode=self.prior_mode, prior_strength=self.prior_strength
        )
