"""What a tuning run works on: the mixture, the windows that it will look at, and what the trunk says about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_core.checkpoint.hashes import hashes_of, sha256_of
from moe_core.checkpoint.store import load, stored_dtype
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.errors import SpecError, TrainingError
from moe_core.kernels.device import chosen_device
from moe_core.kernels.precision import training_dtype
from moe_core.model.decoder import Decoder
from moe_core.model.families import config_of
from moe_core.operations import upcycle
from moe_core.operations.parts import spec_with
from moe_core.spec import LayoutSpec, TuneSpec
from moe_core.spec.demands import check_tunable
from moe_core.spec.gate import Hash
from moe_core.spec.operations import UpcycleSpec
from moe_core.spec.twins import TwinsSpec
from moe_core.training.data import Windows, read_conversations, spread, token_counts, windows_of
from moe_core.training.recipes.evaluate import held_out_places
from moe_core.training.trunk import CutDecoder, TrunkCache

MODEL, TRAIN, HELD_OUT = "model", "train.jsonl", "held_out.jsonl"


@dataclass(slots=True)
class Workbench:
    """A mixture cut where learning begins, and its two sets of windows."""

    cut: CutDecoder
    train: TrunkCache
    held_out: TrunkCache
    # Where the schedule of the gates' temperature stood when the run began.
    first_step: int | None = None
    # How twins were held when the run began, where the run releases them.
    first_twins: TwinsSpec | None = None
    # The model has no chat format: its logs are plain paragraphs.
    reads_plainly: bool = False

    @property
    def model(self) -> Decoder:
        """The mixture."""
        return self.cut.model

    def gates(self) -> dict[str, Tensor]:
        """A copy of every tensor of every router."""
        return {name: tensor.detach().clone() for name, tensor in gate_tensors_of(self.model).items()}

    @torch.no_grad()
    def set_gates(self, gates: Mapping[str, Tensor]) -> None:
        """Put routers back."""
        for name, tensor in gate_tensors_of(self.model).items():
            tensor.copy_(gates[name])

    def advance(self, steps: int) -> None:
        """Put the schedule of the gates' temperature so many steps beyond where the run found it.

        Twins that the run releases are held as at first at step 0, and chosen by the gate alone after any.
        """
        if self.first_twins is not None:
            twins = self.first_twins if steps == 0 else self.first_twins.model_copy(update={"hold": 0.0})
            with_moe(self.model, twins=twins.model_dump())
        moe = self.model.spec.moe
        assert moe is not None
        if moe.temperature_schedule is None:
            return
        if self.first_step is None:
            self.first_step = moe.temperature_schedule.step
        with_moe(
            self.model, temperature_schedule=moe.temperature_schedule.advanced_to(self.first_step + steps)
        )


def gate_tensors_of(model: Decoder) -> dict[str, Tensor]:
    """Every tensor of every gate by layer; the map itself is called after the router alone."""
    return {
        f"{mlp.layer}.router" + ("" if name == "weight" else f".{name}"): tensor
        for mlp in model.moe_layers()
        for name, tensor in mlp.router.tensors.items()
    }


def with_moe(model: Decoder, **changes: Any) -> None:
    """Say something else about how a model's gates work, in place; no tensor changes its shape by it."""
    model.spec = spec_with(model.spec, **changes)
    assert model.spec.moe is not None
    for mlp in model.moe_layers():
        mlp.moe = mlp.router.moe = model.spec.moe


def build(spec: TuneSpec, inputs: Mapping[str, Path]) -> Workbench:
    """Read model and logs; raises SpecError or TrainingError for what does not fit."""
    tokenizer = Tokenizer(inputs[MODEL])
    model = _mixture(spec, inputs, tokenizer)
    train, held_out = (
        windows_of(read_conversations(inputs[name]), tokenizer, spec.routing.codes, spec.window_tokens)
        for name in (TRAIN, HELD_OUT)
    )
    places = held_out_places(held_out, spec.routing, spec.held_out_windows)
    if not places:
        raise TrainingError.of("no_held_out_window")
    cut = CutDecoder(model)
    needed = _needed(train, spec)
    return Workbench(
        cut,
        TrunkCache(cut, train.take(needed).to(cut.device)),
        TrunkCache(cut, held_out.take(places).to(cut.device)),
        first_twins=model.spec.moe.twins if model.spec.moe and spec.twin_hold is not None else None,
        reads_plainly=tokenizer.chat_format is None,
    )


def _mixture(spec: TuneSpec, inputs: Mapping[str, Path], tokenizer: Tokenizer) -> Decoder:
    """The dense model with experts laid over it, or the mixture that it is."""
    source = inputs[MODEL]
    model = load(source, training_dtype(spec.dtype, stored_dtype(source)))
    if spec.layout is not None:
        laid = UpcycleSpec(
            layout=spec.layout, noise=spec.upcycle_noise, router_std=spec.router_std, seed=spec.seed
        )
        model, _ = upcycle(
            model, laid, counts_V=counts_for(spec.layout, inputs, tokenizer, model.spec.vocab_size)
        )
    if model.spec.moe is None:
        raise SpecError.of("needs_a_layout")
    check_tunable(model.spec.moe)
    spec.routing.check_fits(model.spec.moe.num_experts, model.spec.moe.moe_layers)
    spec.check_gates(model.spec.moe)
    if spec.temperature_schedule is not None:
        with_moe(model, temperature=1.0, temperature_schedule=spec.temperature_schedule)
    # Whether it can be saved is better known now than after the last step.
    config_of(model.spec, "float32")
    # Upcycling draws its noise on the CPU, so that a seed means the same everywhere.
    return model.requires_grad_(False).to(chosen_device(spec.device))


def counts_for(
    layout: LayoutSpec, inputs: Mapping[str, Path], tokenizer: Tokenizer, vocab_size: int
) -> Tensor | None:
    """(V,): how often each token occurs in the training logs, where a layout's gate asks for it and there are logs."""
    if TRAIN not in inputs or not (isinstance(layout.gate, Hash) and layout.gate.counts_tokens):
        return None
    return token_counts(inputs[TRAIN], tokenizer, vocab_size)


def _needed(windows: Windows, spec: TuneSpec) -> list[int]:
    """No more windows of each domain than the run will look at: what is not seen is not computed."""
    per_batch = max(1, spec.tokens_per_batch // spec.window_tokens)
    most = per_batch * max(1, spec.specialise_steps, spec.route_steps)
    domains = [*range(len(spec.routing.codes)), -1]
    return [place for domain in domains for place in spread(windows.of_domain(domain), most)]


def config_hash(spec: TuneSpec, inputs: Mapping[str, Path]) -> str:
    """What ties a checkpoint to its run: every setting and the bytes of every input."""
    files = {
        name: hashes_of(path) if path.is_dir() else sha256_of(path) for name, path in sorted(inputs.items())
    }
    text = json.dumps({"spec": spec.model_dump(mode="json"), "inputs": files}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
