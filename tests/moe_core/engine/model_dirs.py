"""Model directories small enough to be written for one test, with a tokenizer in which each byte is a token."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import moe_core
from moe_core.checkpoint.hashes import hashes_of
from moe_core.checkpoint.stream import byte_of_character
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
NUM_TOKENS = 259


def tiny_spec(**changes: object) -> ModelSpec:
    """A Mixtral of three layers and four experts over bytes."""
    fields = {
        "family": "mixtral",
        "vocab_size": NUM_TOKENS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "eos_token_ids": [256],
        "moe": {"moe_layers": [0, 1, 2], "num_experts": 4, "top_k": 2, "moe_intermediate_size": 48},
    }
    return ModelSpec.parse(fields | changes)


def tiny_model(seed: int = 3, **changes: object) -> Decoder:
    """Random weights, large enough that routing matters."""
    return random_decoder(tiny_spec(**changes), seed=seed, std=0.3)


def write_model_dir(path: Path, model: Decoder) -> dict[str, str]:
    """Write `model` with the byte tokenizer; the sha256 of each file."""
    moe_core.save(model, path, dtype="float32")
    write_byte_tokenizer(path)
    return hashes_of(path)


def write_byte_tokenizer(path: Path) -> None:
    """Tokens 0 to 255 are the bytes in value order; then the three control tokens."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_of_character(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (END, START, STOP)])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"eos_token": END, "more_eos_tokens": [STOP], "chat_format": {"name": "chatml"}}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


@torch.no_grad()
def route_by_token(model: Decoder) -> None:
    """Make routing known: every layer sends byte b to expert b % 4 first and (b + 1) % 4 second.

    Embeddings are zero but for four planes that say b % 4, attention and experts add nothing, and each router reads
    the planes; the head prefers the next byte, so that answers are known too.
    """
    model.embed_tokens.weight.zero_()
    for byte in range(256):
        model.embed_tokens.weight[byte, byte % 4] = 1.0
    for layer in model.moe_layers():
        layer.experts.down_EDF.zero_()
        layer.router.weight.zero_()
        for expert in range(4):
            layer.router.weight[expert, expert] = 2.0
            layer.router.weight[expert, (expert - 1) % 4] = 1.0
    for block in model.layers:
        block.attention.o_proj.weight.zero_()
    assert model.lm_head is not None
    model.lm_head.weight.zero_()
    # The answer to a byte b is always byte (b + 1) % 4: its plane points at one token of the next class.
    for plane in range(4):
        model.lm_head.weight[(plane + 1) % 4, plane] = 1.0
