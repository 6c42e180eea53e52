"""From a model directory to an engine that has answered once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from moe_core.checkpoint.store import load
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta, Done, Failed
from moe_core.engine.loop import EngineState
from moe_core.engine.residency import load_resident
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.text import TextCodec
from moe_core.errors import EngineError, SpecError
from moe_core.kernels.cpu.attach import attach
from moe_core.kernels.device import chosen_device
from moe_core.spec import ServeSpec

logger = logging.getLogger(__name__)
NUM_GOLDEN_TOKENS = 8


def build_engine(spec: ServeSpec, tell: Callable[[EngineState], None]) -> tuple[Engine, TextCodec]:
    """Check the files against their promised hashes, load them, and answer the golden prompt.

    Raises:
        CheckpointError: for files that are not what was promised, or no model.
        SpecError: when domains name experts that the model has not.
        EngineError: when the model does not answer.
    """
    device, promised, residency = _device_of(spec), spec.files or None, None
    if spec.resident_experts is None:
        model = load(spec.model_dir, spec.dtype, device=device, expected_hashes=promised)
    else:
        held = (spec.model_dir, spec.dtype, spec.resident_experts, spec.routing())
        model, residency = load_resident(*held, expected_hashes=promised)
    codec = Tokenizer(spec.model_dir)
    model.eval()
    if device.type == "cpu":
        # Experts that come and go are read into the places that they have now.
        kernels = attach(model, spec.num_threads, moves_experts=residency is None)
    else:
        kernels = torch.cuda.get_device_name(device)
    logger.info("decode kernels: %s, threads: %d", kernels, spec.num_threads)
    engine = Engine(spec, model, end_tokens=codec.eos_ids, residency=residency)
    tell(EngineState.WARMING)
    warm_up(engine, codec)
    return engine, codec


def _device_of(spec: ServeSpec) -> torch.device:
    """The device that a specification asks for. SpecError where experts are to come and go on a GPU."""
    if spec.resident_experts is None:
        return chosen_device(spec.device)
    if spec.device == "cuda":
        raise SpecError(
            f"resident_experts ({spec.resident_experts}) is known on the CPU alone; give device 'cpu', or leave "
            "resident_experts out"
        )
    return torch.device("cpu")


def warm_up(engine: Engine, codec: TextCodec) -> None:
    """Answer the golden prompt, and leave no trace of it in statistics or cache.

    Raises:
        EngineError: when the answer is not finite or has no token.
    """
    ids = codec.encode(engine.spec.golden_prompt)[: engine.max_tokens - NUM_GOLDEN_TOKENS]
    engine.submit(ids, SamplingParams(max_tokens=NUM_GOLDEN_TOKENS, ignore_eos=True), codec.stream())
    answer = ""
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Failed):
                raise EngineError(f"the golden prompt failed: {event.message}")
            if isinstance(event, Delta):
                answer += event.text
            if isinstance(event, Done):
                logger.info("the golden prompt was answered with %r", answer)
    engine.forget_history()
