"""From a model directory to an engine that has answered once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from moe_core.checkpoint.hashes import verify_files
from moe_core.checkpoint.layout import CONFIG_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from moe_core.checkpoint.store import load, read_spec
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.engine import late_modules
from moe_core.engine.copy_stream import GpuCopyStream
from moe_core.engine.device_pool import DeviceTier
from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta, Done, Failed
from moe_core.engine.loop import EngineState
from moe_core.engine.mapped_model import keep_tensors, mapped_model
from moe_core.engine.packed_at_load import served_model
from moe_core.engine.panel_cache import PanelCache
from moe_core.engine.residency import load_resident
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.text import TextCodec
from moe_core.errors import EngineError, SpecError
from moe_core.experts.mxfp4 import hold_in_mxfp4
from moe_core.kernels.cpu.attach import attach
from moe_core.kernels.cpu.panel_footer import PanelFileError
from moe_core.kernels.cpu.shelf import on_shelf
from moe_core.kernels.device import chosen_device
from moe_core.spec import ServeSpec
from moe_core.spec.served import check_residency

logger = logging.getLogger(__name__)
# The answer shows that the model speaks, in as many decoding steps as tell so: all who wait for a first token wait for them.
NUM_GOLDEN_TOKENS = 4
# What is read of a model directory when its weights come from a panel file.
READ_BESIDE_PANELS = (CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)


def build_engine(
    spec: ServeSpec, tell: Callable[[EngineState], None], panels: PanelCache | None = None
) -> tuple[Engine, TextCodec]:
    """Check the files against their promised hashes, load them, and answer the golden prompt.

    With a panel file that was made of them, and is as it was written, none is read but the tokenizer's.
    Raises:
        CheckpointError: for files that are not what was promised, or no model.
        SpecError: when domains name experts that the model has not.
        EngineError: when the model does not answer.
    """
    codec = Tokenizer(spec.model_dir)
    engine = None if panels is None else _mapped_engine(spec, codec, panels)
    if engine is None:
        engine = _loaded_engine(spec, codec, panels)
    tell(EngineState.WARMING)
    warm_up(engine, codec)
    if panels is not None:
        panels.finish_later()
    return engine, codec


def _mapped_engine(spec: ServeSpec, codec: Tokenizer, panels: PanelCache) -> Engine | None:
    """The engine from a panel file; None where there is none, or it is no good."""
    reader = panels.reader
    if reader is None or _device_of(spec).type != "cpu":
        return None
    small = {name: digest for name, digest in spec.files.items() if name in READ_BESIDE_PANELS}
    verify_files(spec.model_dir, small)
    try:
        with on_shelf(reader):
            model, isa = mapped_model(spec, reader)
        reader.verify()
    except PanelFileError as error:
        panels.discard(error)
        return None
    logger.info("decode kernels: %s, threads: %d, panels from their file", isa, spec.num_threads)
    return Engine(spec, model, end_tokens=codec.eos_ids)


def _loaded_engine(spec: ServeSpec, codec: Tokenizer, panels: PanelCache | None) -> Engine:
    # What packs, a GPU and torch's own products may use any of it.
    late_modules.read_all()
    writer = None if panels is None else panels.writer
    if panels is None or writer is None:
        return _engine_of_files(spec, codec)
    try:
        with on_shelf(writer):
            engine = _engine_of_files(spec, codec)
        keep_tensors(engine.runner.model, writer)
    except BaseException:
        panels.give_up()
        raise
    return engine


def _engine_of_files(spec: ServeSpec, codec: Tokenizer) -> Engine:
    if spec.resident_experts is not None or spec.device_experts is not None:
        # Whatever device it comes to: what is refused with a GPU is refused without.
        check_residency(read_spec(spec.model_dir), spec.resident_experts, spec.device_experts)
    device, promised, residency = _device_of(spec), spec.files or None, None
    tier = _tier_of(spec, device)
    if spec.resident_experts is None and tier is None:
        model = served_model(load(spec.model_dir, spec.dtype, device=device, expected_hashes=promised), spec)
    else:
        held = (spec.model_dir, spec.dtype, spec.resident_experts, spec.routing())
        model, residency = load_resident(*held, device=tier, expected_hashes=promised, uses=spec.expert_uses)
    model.eval()
    if device.type == "cpu":
        # Experts that come and go are read into the places that they have now.
        kernels = attach(model, spec.num_threads, moves_experts=residency is None)
    else:
        kernels = torch.cuda.get_device_name(device)
        # What lies in a pool is other experts from one moment to the next.
        if residency is None and (num_layers := hold_in_mxfp4(model)) > 0:
            logger.info("experts of %d layers are held in mxfp4, as they were released", num_layers)
    logger.info("decode kernels: %s, threads: %d", kernels, spec.num_threads)
    return Engine(spec, model, end_tokens=codec.eos_ids, residency=residency)


def _device_of(spec: ServeSpec) -> torch.device:
    """The device that a specification asks for. SpecError where a GPU is to do with what is the processor's alone."""
    if spec.resident_experts is None or spec.device_experts is not None:
        return chosen_device(spec.device)
    if spec.device == "cuda":
        raise SpecError(
            f"resident_experts ({spec.resident_experts}) alone is for the CPU; give device 'cpu', say with device_experts "
            "how many the GPU holds, or leave resident_experts out"
        )
    return torch.device("cpu")


def _tier_of(spec: ServeSpec, device: torch.device) -> DeviceTier | None:
    """The GPU's part of the experts; None where it holds all, and where there is none."""
    if spec.device_experts is None or device.type == "cpu":
        return None
    return DeviceTier(GpuCopyStream(device), spec.device_experts)


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
