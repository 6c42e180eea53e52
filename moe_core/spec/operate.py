"""What an operation on experts runs with: the operation, and how much of the logs it may look at."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moe_core.errors import SpecError
from moe_core.spec.base import Spec
from moe_core.spec.operations import MeasureSpec, MergeExpertsSpec, OperationSpec, RemoveExpertSpec

# They change weights by what they see; the others only measure on logs.
LEARNING = ("compose", "specialise_clone", "wake_expert", "distil")
# Without logs there is nothing that they could do.
NEED_LOGS = (*LEARNING, "measure")


class OperateSpec(Spec):
    """One operation on the experts of a model, measured on held-out logs where there are any."""

    operation: OperationSpec
    """What is done."""
    # Few enough that an operation on a small model takes a minute or two on two cores.
    prompts_per_domain: Annotated[int, Field(ge=1, le=4096)] = 16
    """Prompts of each domain that are learnt from, and as many held-out ones that are measured on."""
    prompt_tokens: Annotated[int, Field(ge=8, le=4096)] = 64
    """What is longer than so many tokens is cut."""
    preview: bool = False
    """Do it and measure it, but keep nothing: what the operation would do, told by the held-out logs."""
    num_threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Threads of the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """How the model's numbers are held; auto: as they are stored, or in float32 where that is quicker."""

    @property
    def needs_logs(self) -> bool:
        """Whether nothing can be done without logs."""
        return self.operation.kind in NEED_LOGS

    @property
    def is_measured_only(self) -> bool:
        """Whether the model is looked at as it is, and nothing is done to it."""
        return isinstance(self.operation, MeasureSpec)

    def check_without_logs(self) -> None:
        """Raise SpecError for what logs alone can tell; asked where there are none."""
        operation = self.operation
        if self.preview:
            raise SpecError.of("preview_without_logs")
        if isinstance(operation, RemoveExpertSpec) and operation.expert is None:
            raise SpecError.of("least_used_unknown")
        if isinstance(operation, MergeExpertsSpec) and operation.weights == "usage":
            raise SpecError.of("usage_unmeasured")
        if getattr(operation, "max_loss_increase", None) is not None:
            raise SpecError.of("loss_unmeasured")
