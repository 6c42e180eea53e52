"""A whole tuning run in miniature: a random model of a few thousand weights, a byte tokenizer, logs of two domains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from moe_core.checkpoint.store import save
from moe_core.model.init import random_decoder
from moe_core.training import Paused, run_job
from tests.moe_core.tiny import tiny_llama

CONTROL = ("<pad>", "<|im_start|>", "<|im_end|>")
DOMAINS = {"sums": "1 + 2 = 3", "words": "a quiet lane"}


def make_world(folder: Path, *, chats: bool = True) -> Path:
    """`model`, which may have no chat format, `train.jsonl` and `held_out.jsonl` in a folder."""
    tokenizer = byte_tokenizer()
    spec = tiny_llama(vocab_size=tokenizer.get_vocab_size(), num_hidden_layers=4, eos_token_ids=(2,))
    save(random_decoder(spec, seed=3, std=0.1), folder / "model")
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    config = {
        "bos_token": CONTROL[1],
        "eos_token": CONTROL[2],
        "pad_token": CONTROL[0],
        "chat_format": {"name": "chatml"} if chats else None,
    }
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    write_logs(folder / "train.jsonl", 24)
    write_logs(folder / "held_out.jsonl", 6)
    return folder


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the control tokens of chatml."""
    vocabulary = {
        token: number for number, token in enumerate([*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    return tokenizer


def write_logs(path: Path, rows: int) -> None:
    """So many conversations of each domain."""
    with path.open("w") as handle:
        for row in range(rows):
            for domain, text in DOMAINS.items():
                messages = [
                    {"role": "user", "content": f"{text} {row}?"},
                    {"role": "assistant", "content": f"{text}, {text} {row}."},
                ]
                handle.write(json.dumps({"messages": messages, "domain": domain}) + "\n")


def tune_spec(**changes: Any) -> dict[str, Any]:
    """Seconds of work that still passes through every stage."""
    domains = [
        {"code": code, "name_en": code, "name_zh": code, "experts": [expert]}
        for expert, code in enumerate(DOMAINS)
    ]
    spec = {
        "layout": {"moe_layers": [1, 3], "num_experts": 4, "top_k": 2},
        "routing": {"domains": domains, "general_experts": [2, 3]},
        "window_tokens": 32,
        "tokens_per_batch": 128,
        "specialise_steps": 4,
        "route_steps": 4,
        "held_out_windows": 6,
        "num_threads": 2,
        "dtype": "float32",
        "checkpoint_every_steps": 1,
        "checkpoint_min_seconds": 0.0,
    }
    return {**spec, **changes}


class RecordingIO:
    """Surroundings that write down everything and can be told to stop: `stop_at` is a stage, the steps learnt in it, and how.

    At step 0 it stops as soon as the stage has begun.
    """

    def __init__(self, world: Path, folder: Path) -> None:
        self.inputs: Mapping[str, Path] = {
            name: world / name for name in ("model", "train.jsonl", "held_out.jsonl")
        }
        self.out_dir = folder / "out"
        self.checkpoint_dir = folder / "checkpoints"
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.checkpoints: list[tuple[Path, int, str, str]] = []
        self.stop_at: tuple[str, int, str] | None = None

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        # What cannot be written as JSON could not leave the process.
        self.events.append((kind, json.loads(json.dumps(payload, allow_nan=False))))

    def saved_checkpoint(self, path: Path, step: int, stage: str, sha256: str) -> None:
        self.checkpoints.append((path, step, stage, sha256))

    def should_stop(self) -> Any:
        if self.stop_at is None:
            return None
        stage, step, how = self.stop_at
        seen = [(kind, payload) for kind, payload in self.events if payload.get("stage") == stage]
        # Computing the trunk counts windows as "step" too; only steps that learn have a loss.
        learnt = [payload["step"] for kind, payload in seen if kind == "step" and "loss" in payload]
        return how if seen and max(learnt, default=0) >= step else None

    @property
    def paused_at(self) -> tuple[str, int]:
        """The stage and the step of the last checkpoint."""
        _, step, stage, _ = self.checkpoints[-1]
        return stage, step

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The payloads of one kind of event."""
        return [payload for name, payload in self.events if name == kind]


def pause(io: RecordingIO, spec: Mapping[str, Any], stage: str, step: int) -> None:
    """Run a tuning job until so many steps of a stage are learnt, and see that it stopped there and not elsewhere."""
    io.stop_at = (stage, step, "pause")
    with pytest.raises(Paused):
        run_job("tune", spec, io)
    assert io.paused_at == (stage, step)
    assert not io.out_dir.exists()
    io.stop_at = None
