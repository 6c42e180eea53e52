"""Our numbers against transformers': logits, routing, files both ways, and the real SmolLM2.

The one file of these tests that imports transformers, which takes ten seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

import moe_core
from moe_core.checkpoint.hf import import_hf
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.errors import CheckpointError
from moe_core.model import Decoder, RoutingContext
from moe_core.routers import Routing
from moe_core.spec import LayoutSpec
from tests.moe_core.tiny import STD, tiny_llama, tiny_mixtral

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 97, (3, 17), generator=torch.Generator().manual_seed(7))
TOLERANCE = 1e-6

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "initializer_range": STD,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "attn_implementation": "eager",
}  # fmt: skip


def reference(family: str, **changes: Any) -> Any:
    """A random transformers model whose norms are random too: at one they would hide a missing weight."""
    torch.manual_seed(11)
    if family == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SHAPE, **changes}))
    else:
        config = transformers.MixtralConfig(
            **{**SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2, **changes}
        )
        model = transformers.MixtralForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def imported(model: Any, tmp_path: Path) -> Decoder:
    model.save_pretrained(tmp_path / "theirs")
    import_hf(tmp_path / "theirs", tmp_path / "ours", dtype="float32")
    return moe_core.load(tmp_path / "ours")


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 6, "head_dim": 8}),
        ("mixtral", {}),
        ("mixtral", {"num_local_experts": 7, "num_experts_per_tok": 3}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("mixtral", {"num_experts_per_tok": 4}),
    ],
    ids=str,
)
def test_logits_equal_those_of_transformers(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(family, **changes)
    ours = imported(theirs, tmp_path)
    assert relative(ours(IDS), theirs(IDS).logits) < TOLERANCE


@torch.no_grad()
def test_every_token_goes_to_the_experts_that_transformers_chooses(tmp_path: Path) -> None:
    theirs = reference("mixtral")
    ours = imported(theirs, tmp_path)
    seen: dict[int, Routing] = {}
    ours(IDS, RoutingContext(observe=lambda layer, routing: seen.update({layer: routing})))
    router_logits = theirs(IDS, output_router_logits=True).router_logits
    assert sorted(seen) == [0, 1, 2]
    for layer, logits_TE in enumerate(router_logits):
        probs_TE = torch.softmax(logits_TE.float(), -1)
        weights_TK, ids_TK = torch.topk(probs_TE, 2)
        assert torch.equal(seen[layer].expert_ids_TK, ids_TK)
        expected_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        assert torch.allclose(seen[layer].weights_TK, expected_TK, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("fault", ["experts", "gate and up", "rotary order", "a norm"])
def test_the_comparison_notices_a_fault(fault: str, tmp_path: Path) -> None:
    theirs = reference("mixtral")
    ours = imported(theirs, tmp_path)
    moe, block = next(iter(ours.moe_layers())), ours.layers[1]
    if fault == "experts":
        moe.experts.down_EDF[[0, 1]] = moe.experts.down_EDF[[1, 0]]
    elif fault == "gate and up":
        moe.experts.gate_up_E2FD.copy_(moe.experts.gate_up_E2FD.roll(64, dims=1))
    elif fault == "rotary order":
        weight = block.attention.qkv_proj.weight
        weight[:16] = weight[:16].view(2, 8, -1).transpose(0, 1).reshape(16, -1)
    else:
        block.mlp_norm.weight.fill_(1.0)
    assert relative(ours(IDS), theirs(IDS).logits) > 1000 * TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("spec", [tiny_llama(), tiny_mixtral()], ids=lambda spec: spec.family)
def test_transformers_loads_what_we_save(spec: Any, tmp_path: Path) -> None:
    from moe_core.model.init import random_decoder

    ours = random_decoder(spec, 3, STD)
    moe_core.save(ours, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert theirs.config.model_type == spec.family
    assert relative(ours(IDS), theirs(IDS).logits) < TOLERANCE


@torch.no_grad()
def test_transformers_loads_an_upcycled_model(tmp_path: Path) -> None:
    from moe_core.model.init import random_decoder
    from moe_core.operations import upcycle
    from moe_core.spec.operations import UpcycleSpec

    dense = random_decoder(tiny_llama(), 3, STD)
    laid = LayoutSpec(moe_layers=(0, 1, 2), num_experts=4)
    mixture, _ = upcycle(dense, UpcycleSpec(layout=laid, noise=0.1, router_std=0.5, seed=1))
    moe_core.save(mixture, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert relative(mixture(IDS), theirs(IDS).logits) < TOLERANCE


@torch.no_grad()
def test_experts_that_are_packed_on_disk_are_read_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = reference("mixtral")
    theirs.save_pretrained(tmp_path / "packed")
    packed = {name: parameter.contiguous() for name, parameter in theirs.state_dict().items()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in packed
    save_file(packed, tmp_path / "packed" / "model.safetensors")
    import_hf(tmp_path / "packed", tmp_path / "ours", dtype="float32")
    assert relative(moe_core.load(tmp_path / "ours")(IDS), theirs(IDS).logits) < TOLERANCE


def test_greedy_text_is_the_same(tmp_path: Path) -> None:
    theirs = reference("mixtral", eos_token_id=None)
    ours = imported(theirs, tmp_path)
    prompt = IDS[:1, :9]
    expected = theirs.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)[0, 9:].tolist()
    assert ours.generate(prompt[0].tolist(), 40) == expected


def test_a_source_that_is_a_link_is_refused(tmp_path: Path) -> None:
    reference("llama").save_pretrained(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for path in (tmp_path / "real").iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match="copy the file instead of linking it"):
        import_hf(tmp_path / "linked", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_of_a_source_but_data_comes_along(tmp_path: Path) -> None:
    reference("llama").save_pretrained(tmp_path / "src")
    (tmp_path / "src" / "modeling_evil.py").write_text("raise SystemExit")
    (tmp_path / "src" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    import_hf(tmp_path / "src", tmp_path / "out")
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".safetensors"}


CORPUS = [
    "The quick brown fox jumps over the lazy dog. It costs $12.50, isn't that 3x more?",
    "您好，我的订单 2024-11-22 还没有发货，请问什么时候能到？谢谢！",
    "混合文本 mixed text：价格 99.5 元，版本 v2.13.0，café、naïve、Ünïcödé。",
    "def route(hidden, k=2):\n    for i in range(10):\n\t\tif i % 2 == 0:\n            yield hidden[i:i+k]  # 注释\n",
    "SELECT id, count(*) FROM orders WHERE total > 1000 GROUP BY 1;\r\n-- done\n\n\n",
    "emoji 😀👩‍👩‍👧‍👦 and symbols ∑∂√∞ ≤≥ → ‘quotes’ “double” …",
    " leading and trailing   spaces   ",
    "",
]
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好"}],
    [
        {"role": "user", "content": "\n\nHi"}, {"role": "assistant", "content": "Hello! How can I help?\n"},
        {"role": "user", "content": "  Write code:\n```python\nx = 1\n```"},
    ],
]  # fmt: skip


@pytest.fixture(scope="module")
def one_reading() -> Iterator[None]:
    """transformers parses the whole file three times in slow Python; here the reference package does it once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        yield


@pytest.fixture(scope="module")
def their_tokenizer(smollm_gguf: Path, one_reading: None) -> Any:
    return transformers.AutoTokenizer.from_pretrained(smollm_gguf.parent, gguf_file=smollm_gguf.name)


@pytest.mark.slow
def test_the_tokenizer_equals_that_of_transformers(smollm_dir: Path, their_tokenizer: Any) -> None:
    ours = Tokenizer(smollm_dir)
    texts = [*CORPUS, Path(json.__file__).read_text(), *(part for text in CORPUS for part in text.split(" "))]
    for text in texts:
        ids = their_tokenizer.encode(text, add_special_tokens=False)
        # transformers leaves out the rule that digits are split off first, which this file names and the model
        # was trained with: the tokenizer's own tests hold it. It shows where several spaces precede a digit.
        if "  1" not in text:
            assert ours.encode(text) == ids
        assert ours.decode(ids) == their_tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.slow
def test_a_tokenizer_that_transformers_saved_is_imported(
    smollm_dir: Path, their_tokenizer: Any, tmp_path: Path
) -> None:
    narrow = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    reference("llama", **narrow, vocab_size=49152).save_pretrained(tmp_path / "src")
    their_tokenizer.save_pretrained(tmp_path / "src")
    import_hf(tmp_path / "src", tmp_path / "out")
    ours, from_gguf = Tokenizer(tmp_path / "out"), Tokenizer(smollm_dir)
    assert ours.config == from_gguf.config
    assert ours.format_chat(CHATS[2]) == from_gguf.format_chat(CHATS[2])
    reference("llama", **narrow, vocab_size=49151).save_pretrained(tmp_path / "src")
    with pytest.raises(CheckpointError, match="has 49152 tokens, but the model embeds 49151"):
        import_hf(tmp_path / "src", tmp_path / "small")


@pytest.mark.slow
def test_the_chat_format_equals_the_models_template(smollm_dir: Path, their_tokenizer: Any) -> None:
    ours = Tokenizer(smollm_dir)
    for chat in CHATS:
        for prompt in (True, False):
            text = their_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
            ids = their_tokenizer.encode(text, add_special_tokens=False)
            assert ours.format_chat(chat, add_generation_prompt=prompt) == ids
            assert ours.encode(text, control_tokens=True) == ids


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_itself_equals_transformers(
    smollm_dir: Path, smollm_gguf: Path, one_reading: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers asks whether accelerate is installed before it reads GGUF, and then does not need it.
    monkeypatch.setattr(transformers.modeling_utils, "is_accelerate_available", lambda *version: True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm_gguf.parent, gguf_file=smollm_gguf.name, dtype=torch.float32
    )
    ours = moe_core.load(smollm_dir)
    ids = torch.tensor([Tokenizer(smollm_dir).format_chat(CHATS[0])])
    our_logits, their_logits = ours(ids), theirs(ids).logits
    assert relative(our_logits, their_logits) < 5 * TOLERANCE
    assert torch.equal(our_logits.argmax(-1), their_logits.argmax(-1))
