"""What an engine process is told when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from moe_core.spec.base import ExpertIndex, Spec
from moe_core.spec.quantisation import WeightsName
from moe_core.spec.routing import (
    DomainSpec,
    FloorShare,
    PriorLayers,
    PriorMode,
    PriorStrength,
    RoutingSpec,
)
from moe_core.spec.served import guessing_misfit, misfit_of

# sun_path holds 108 bytes including the closing NUL.
MAX_SOCKET_PATH_BYTES = 107
# Keys and values are kept in blocks of so many tokens.
BLOCK_TOKENS = 16
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


ExpertUses = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=1 << 63)], ...], Field(min_length=1, max_length=1024)
]


class ServeSpec(Spec):
    """One engine: which model directory, which socket, how much of the machine."""

    model_dir: Path
    """The folder of the model."""
    files: Annotated[dict[FileName, Sha256], Field(max_length=10_000)] = {}
    """sha256 of every file of the model directory; empty for a directory that nobody vouches for."""
    socket_path: Path
    """The unix socket to listen on."""
    panel_dir: Path | None = None
    """Where packed weights are kept from one start to the next and shared by engines of one model; null: nowhere."""
    shares_panels: bool = False
    """Whether they are mapped there in any case; else only where they lie in huge pages, from where products are as fast as
    from huge pages of the engine's own, into which they are read otherwise."""
    version: Annotated[str, Field(max_length=200)] = ""
    """What answers say they come from."""
    epoch: Annotated[int, Field(ge=0)] = 0
    """Which start of the replica this is; requests meant for another one are refused."""
    domains: Annotated[tuple[DomainSpec, ...], Field(max_length=256)] = ()
    """Domains that requests may name, and their experts."""
    general_experts: Annotated[tuple[ExpertIndex, ...], Field(max_length=1024)] = ()
    """Experts of no domain, which a mask leaves to every request."""
    prior_mode: PriorMode = "bias"
    """What a request's domain does in every layer that `prior_layers` does not name."""
    prior_strength: PriorStrength = 1.0
    """Of "bias", as in LayerPrior."""
    prior_floor: FloorShare = 0.5
    """Of "floor", as in LayerPrior."""
    prior_layers: PriorLayers = {}
    """Layers that do otherwise, by their number in the model."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """How numbers are held."""
    weights: WeightsName = "stored"
    """`int8` and `int4` pack experts, attention and head of a version in 16 bits as it is loaded; `stored`: as they lie."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it computes; "auto" is the GPU where there is one."""
    num_threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Threads of the CPU."""
    max_batch_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 512
    """Tokens of one step."""
    max_chunk_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 128
    """Tokens of a step that a prompt advances by at most while others are answering."""
    max_sequences: Annotated[int, Field(ge=1, le=4096)] = 16
    """Requests that are answered at the same time."""
    max_waiting: Annotated[int, Field(ge=0, le=100_000)] = 256
    """Requests that may wait; further ones are turned away."""
    max_wait_s: Annotated[float, Field(gt=0.0, le=3600.0)] = 30.0
    """Seconds after which a waiting request is turned away."""
    kv_tokens: Annotated[int, Field(ge=16, le=1 << 28)] = 16_384
    """Tokens that the cache of keys and values holds."""
    expert_affinity_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Waiting requests that share experts with the running ones, as their tokens and domains say, go first, but nobody is
    overtaken once it has been overtaken so many steps ago; 0: the fair order alone."""
    resident_experts: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """How many experts, over all layers, are held in memory; the others are read from disk when they are used. Null: all.
    By itself it is for the processor; beside `device_experts` it is the memory beside the GPU."""
    device_experts: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """How many experts, over all layers, are held in the memory of the GPU that computes; the others are copied there from
    the machine's memory when they are used. Null: all. Without a GPU the processor has all, and keeps no panels; fewer
    than a layer has are refused with one and without."""
    expert_uses: Annotated[tuple[ExpertUses, ...], Field(max_length=512)] = ()
    """How often each expert was used before, layer by layer in the model's order: the likeliest are read first. Empty: by
    the domain map alone."""
    ngram_tokens: Annotated[int, Field(ge=0, le=16)] | None = None
    """At most so many tokens of an answer are guessed from what it holds already and checked in one step, as many as
    pay; 0: none, as beside `batch_invariant`. Null: up to 15 in the native step, where that changes no bit, else none."""
    batch_invariant: bool = False
    """The same numbers whatever shares the batch: each chunk is computed by itself, prompts in equal pieces. Slower."""
    drain_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 20.0
    """Seconds that running answers are given to end in when the engine is told to stop."""
    golden_prompt: Annotated[str, Field(min_length=1, max_length=2000)] = "The trains run on time because"
    """Answered once before the engine says that it is ready."""
    secret_file: Path | None = None
    """A file whose contents every request must bring as a bearer token; null where the socket's mode is guard enough."""

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
        if self.max_batch_tokens < self.max_sequences:
            raise ValueError(
                f"max_batch_tokens ({self.max_batch_tokens}) must give each of max_sequences "
                f"({self.max_sequences}) one token a step"
            )
        misfit = misfit_of(self.weights, self.dtype, self.resident_experts, self.device_experts)
        if misfit is not None:
            raise ValueError(misfit)
        misfit = guessing_misfit(self.ngram_tokens, self.batch_invariant)
        if misfit is not None:
            raise ValueError(misfit)
        if self.device == "cpu" and self.device_experts is not None:
            raise ValueError(
                f"device_experts ({self.device_experts}) is the memory of a GPU, and device is 'cpu'; leave one of them out"
            )
        if self.batch_invariant and self.fixed_chunk_tokens < BLOCK_TOKENS:
            raise ValueError(
                f"batch_invariant needs max_chunk_tokens ({self.max_chunk_tokens}) and max_batch_tokens "
                f"({self.max_batch_tokens}) less max_sequences ({self.max_sequences}) of {BLOCK_TOKENS} at least"
            )
        return self

    @property
    def fixed_chunk_tokens(self) -> int:
        """The piece in which a batch-invariant engine computes prompts: whole blocks, beside a token for each other."""
        room = min(self.max_chunk_tokens, self.max_batch_tokens - self.max_sequences)
        return room // BLOCK_TOKENS * BLOCK_TOKENS

    def routing(self) -> RoutingSpec:
        """The served domains as a routing policy."""
        return RoutingSpec(
            domains=self.domains,
            general_experts=self.general_experts,
            prior_mode=self.prior_mode,
            prior_strength=self.prior_strength,
            prior_floor=self.prior_floor,
            prior_layers=self.prior_layers,
        )
