"""Tiny random models and engines over them; weights large enough that a wrong expert changes the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta, Done, Event, Failed
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.sequence import Sequence
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec, ServeSpec

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
MOE = {"moe_layers": [0, 1, 2], "num_experts": 4, "top_k": 2, "moe_intermediate_size": 48}


class PlainStream:
    """Writes each token as a word, so that text and tokens can be told apart and compared."""

    def step(self, token_id: int) -> str:
        return f"{token_id} "

    def finish(self) -> str:
        return ""


class Run:
    """Drives an engine to the end and gathers what it said about each sequence."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[int, list[int]] = {}
        self.texts: dict[int, str] = {}
        self.ends: dict[int, Done | Failed] = {}

    def submit(self, ids: list[int], max_tokens: int = 8, **options: Any) -> Sequence:
        fields = {"domain", "cache_salt", "record_routing", "request_id"}
        extra = {key: options.pop(key) for key in list(options) if key in fields}
        return self.engine.submit(
            ids, SamplingParams(max_tokens=max_tokens, **options), PlainStream(), **extra
        )

    def step(self) -> list[Event]:
        events = self.engine.step()
        for event in events:
            if isinstance(event, Delta):
                self.tokens.setdefault(event.sequence_id, []).extend(event.token_ids)
                self.texts[event.sequence_id] = self.texts.get(event.sequence_id, "") + event.text
            elif isinstance(event, Done | Failed):
                self.ends[event.sequence_id] = event
        return events

    def until_done(self, limit: int = 2000) -> None:
        for _ in range(limit):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError(f"the engine still works after {limit} steps")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Waiting at a barrier for a second thread costs more than these models do."""
    torch.set_num_threads(1)


# The engine's tests run where the engine would: on the GPU, if there is one.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def serve_spec(**changes: Any) -> ServeSpec:
    return ServeSpec(model_dir=Path("model"), socket_path=Path("engine.sock"), dtype="float32", **changes)


@pytest.fixture(scope="session")
def llama() -> Decoder:
    return random_decoder(ModelSpec(family="llama", **TINY), seed=1, std=0.3).to(DEVICE)


@pytest.fixture(scope="session")
def mixtral() -> Decoder:
    return random_decoder(ModelSpec(family="mixtral", moe=MOE, **TINY), seed=2, std=0.3).to(DEVICE)
