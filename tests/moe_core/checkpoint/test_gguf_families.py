"""GGUF files of every architecture: written as llama.cpp's converter does, equal to transformers when read here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize

from moe_core.checkpoint import gguf_parts
from moe_core.checkpoint.gguf import decoder_from, import_gguf, read_gguf
from moe_core.checkpoint.gguf_architectures import ARCHITECTURES, FAMILIES_OF
from moe_core.checkpoint.gguf_header import GgufHead, read_head
from moe_core.checkpoint.gguf_step import RELEASED
from moe_core.checkpoint.gguf_tokenizer import _splitter
from moe_core.checkpoint.store import load
from moe_core.errors import CheckpointError, FormatError
from moe_core.model import Decoder
from moe_core.model.families.rope import RopeParameters
from moe_core.model.rotary import frequencies
from moe_core.spec.attention import RopeSpec

transformers = pytest.importorskip("transformers")

from tests.moe_core.checkpoint.gguf_models import ARCHITECTURES as WRITTEN  # noqa: E402
from tests.moe_core.checkpoint.gguf_models import Storing, Tensors, widened, write_gguf  # noqa: E402
from tests.moe_core.model.hf_families import CASES, DEEPSEEK, LLAMA3, STEP, YARN, model_of  # noqa: E402
from tests.moe_core.model.test_family_parity import IDS, TOLERANCE, relative  # noqa: E402

Q = gguf.GGMLQuantizationType
# All of a head turns in layers with a window, half of it in others.
SLIDING = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0}
# The file does not say: mscale (equal to mscale_all_dim in released models), the limits of gpt-oss's gating, and whether
# Qwen2-MoE renormalises (it does not).
CASE: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: CASES[name] for name in ("llama", "mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "deepseek_v2")
    },
    "qwen2_moe": ("Qwen2MoeConfig", {**CASES["qwen2_moe"][1], "norm_topk_prob": False}),
    "qwen3_moe, biases": ("Qwen3MoeConfig", {**CASES["qwen3_moe"][1], "attention_bias": True}),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama, yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "deepseek_v3, yarn, no low rank of queries": (
        "DeepseekV3Config",
        {**DEEPSEEK, "q_lora_rank": None, "rope_parameters": {**YARN, "mscale": 1.2, "mscale_all_dim": 1.2}},
    ),
    "deepseek_v2, groups, yarn": CASES["deepseek_v2, groups, yarn"],
    "gpt_oss": ("GptOssConfig", {**CASES["gpt_oss"][1], "swiglu_limit": 7.0}),
    "step3p5": (
        "Step3p7Config",
        {**STEP, "rope_parameters": {**STEP["rope_parameters"], "sliding_attention": SLIDING}},
    ),
}


def read(path: Path) -> Decoder:
    with read_gguf(path) as file:
        return decoder_from(file, file.spec(), "float32")


def test_every_architecture_and_each_of_its_families_has_a_case() -> None:
    families = {case.split(",")[0] for case in CASE}
    told = {(gguf.MODEL_ARCH_NAMES[WRITTEN[family]], family) for family in families}
    assert told == {(name, family) for name, families in FAMILIES_OF.items() for family in families}
    assert FAMILIES_OF.keys() == ARCHITECTURES.keys()


@torch.no_grad()
@pytest.mark.parametrize("case", CASE)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    theirs = model_of(*CASE[case])
    path = write_gguf(tmp_path / "m.gguf", theirs)
    ours = read(path)
    assert ours.spec.family == case.split(",")[0]
    assert relative(ours(IDS), theirs(IDS).logits) <= TOLERANCE
    for moe in ours.moe_layers():
        moe.experts.down_EDF[[0, 1]] = moe.experts.down_EDF[[1, 0]]
        assert relative(ours(IDS), theirs(IDS).logits) > 1000 * TOLERANCE
        moe.experts.down_EDF[[0, 1]] = moe.experts.down_EDF[[1, 0]]
    # The directory that an import writes is a model of the family, read back as any other.
    import_gguf(path, tmp_path / "out", dtype="float32")
    assert torch.equal(load(tmp_path / "out")(IDS), ours(IDS))


@torch.no_grad()
def test_llamas_stretched_positions_are_known_by_their_divisors(tmp_path: Path) -> None:
    # A theta that makes pairs of all three kinds in the context that converters take for granted.
    rope = {**LLAMA3, "original_max_position_embeddings": 8192, "rope_theta": 500_000.0}
    theirs = model_of("LlamaConfig", {"rope_parameters": rope, "head_dim": 16})
    frequency_h = theirs.model.rotary_emb.inv_freq.double()
    plain_h = 500_000.0 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    divisors = (plain_h / frequency_h).float().numpy()

    def stretched(tensors: Tensors) -> Tensors:
        return {**tensors, "rope_freqs.weight": divisors}

    ours = read(write_gguf(tmp_path / "m.gguf", theirs, change=stretched))
    assert ours.spec.rope.kind == "llama3"
    assert len({1.0, 8.0} & set(divisors.round(5).tolist())) == 2
    assert relative(ours(IDS), theirs(IDS).logits) <= TOLERANCE
    divisors[3] *= 1.1
    with pytest.raises(FormatError, match="does not follow Llama 3.1's rule"):
        read(write_gguf(tmp_path / "n.gguf", theirs, change=stretched))


@torch.no_grad()
@pytest.mark.parametrize("rule", [LLAMA3 | {"original_max_position_embeddings": 8192}, LLAMA3 | RELEASED])
def test_steps_divisors_are_those_of_the_pairs_that_turn(rule: dict[str, Any], tmp_path: Path) -> None:
    # Eight pairs turn in the layers that see everything; the divisors of the other eight are 1.
    full = {**rule, "rope_theta": 5_000_000.0, "partial_rotary_factor": 0.5, "factor": 2.0}
    rope = {"full_attention": full, "sliding_attention": SLIDING}
    theirs = model_of("Step3p7Config", {**STEP, "head_dim": 32, "rope_parameters": rope})
    parsed = RopeParameters.parse({key: full[key] for key in full if key != "partial_rotary_factor"})
    spec = parsed.to_rope(1, interleaved=False)
    cpu = torch.device("cpu")
    plain_h, stretched_h = (frequencies(16, 5e6, one, cpu) for one in (RopeSpec(), spec))
    divisors = np.concatenate([(plain_h / stretched_h).numpy(), np.ones(8, np.float32)])
    assert {1.0, 2.0} <= set(divisors[:8].round(5).tolist())

    def stretched(tensors: Tensors) -> Tensors:
        return {**tensors, "rope_freqs.weight": divisors}

    ours = read(write_gguf(tmp_path / "m.gguf", theirs, change=stretched))
    assert ours.spec.rope.high_freq_factor == rule["high_freq_factor"]
    assert relative(ours(IDS), theirs(IDS).logits) <= TOLERANCE
    divisors[-1] = 2.0
    with pytest.raises(FormatError, match="does not follow Llama 3.1's rule"):
        read(write_gguf(tmp_path / "n.gguf", theirs, change=stretched))


@torch.no_grad()
def test_steps_further_layers_are_not_read_and_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", model_of(*CASE["step3p5"]))
    with read_gguf(path) as file:
        plain = decoder_from(file, file.spec(), "float32")
        head, one = file.head, file.head.tensors["blk.0.attn_norm.weight"]

        def said(**changes: Any) -> None:
            metadata = {**head.metadata, **{f"step35.{key}": value for key, value in changes.items()}}
            further = {"blk.4.attn_norm.weight": one, "blk.4.nextn.eh_proj.weight": one}
            file.head = dataclasses.replace(head, metadata=metadata, tensors={**head.tensors, **further})

        longer = np.array([*head.metadata["step35.attention.head_count"], 6])
        said(block_count=5, nextn_predict_layers=1, **{"attention.head_count": longer})
        assert torch.equal(decoder_from(file, file.spec(), "float32")(IDS), plain(IDS))
        said(block_count=4, nextn_predict_layers=4)
        with pytest.raises(FormatError, match=r"nextn_predict_layers \(4\) must be below block_count \(4\)"):
            file.spec()
        said(**{"attention.head_count": np.array([6, 8, 6, 6])})
        with pytest.raises(FormatError, match="head_count must be the same in all layers of one kind"):
            file.spec()
        said(**{"attention.head_count": np.array([6, 8])})
        with pytest.raises(FormatError, match="head_count has 2 values for 4 layers"):
            file.spec()
        said(expert_weights_norm=False)
        with pytest.raises(FormatError, match="expert_weights_norm must be true"):
            file.spec()


def test_bounds_of_each_layer_have_the_digits_that_were_written(tmp_path: Path) -> None:
    """The file holds them as float32, of which 1.2 is 1.2000000476837158."""
    with read_gguf(write_gguf(tmp_path / "m.gguf", model_of(*CASE["step3p5"]))) as file:
        assert file.head.metadata["step35.swiglu_clamp_exp"].dtype == np.float32
        assert file.spec().expert_clamps == (0.0, 1.2, 0.0, 0.8)
        assert file.spec().dense_clamps == (0.4, 0.3, 0.2, 0.0)


def as_kind(kind: Q) -> Storing:
    """Matrices as one kind where their rows are long enough for its blocks, else in float16, as llama.cpp does."""

    def stored(name: str, value: np.ndarray) -> tuple[np.ndarray, Q]:
        elements, num_bytes = gguf.GGML_QUANT_SIZES[kind]
        if value.shape[-1] % elements:
            return value.astype(np.float16), Q.F16
        if kind == Q.F16:
            return value.astype(np.float16), kind
        if kind not in (Q.Q4_K, Q.Q5_K, Q.Q6_K):
            return quantize(value, kind), kind
        # The reference package packs no K blocks: random ones, with scales that keep the logits finite.
        blocks = (*value.shape[:-1], value.shape[-1] // elements)
        raw = np.random.default_rng(len(name)).integers(0, 256, (*blocks, num_bytes), dtype=np.uint8)
        halves = np.full((*blocks, 1), 1e-4, np.float16).view(np.uint8)
        if kind == Q.Q6_K:
            raw[..., 208:210] = halves
        else:
            raw[..., 0:2] = raw[..., 2:4] = halves
        return raw.reshape(*value.shape[:-1], -1), kind

    return stored


WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
QUANTS = [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q4_K, Q.Q5_K, Q.Q6_K]


@torch.no_grad()
@pytest.mark.parametrize("kind", QUANTS, ids=lambda kind: kind.name)
def test_a_quantised_file_is_what_the_reference_makes_of_it(kind: Q, tmp_path: Path) -> None:
    theirs = model_of("MixtralConfig", {**CASES["mixtral"][1], **WIDE})
    same(theirs, kind, tmp_path)


@torch.no_grad()
def test_gpt_oss_in_mxfp4_is_what_the_reference_makes_of_it(tmp_path: Path) -> None:
    theirs = model_of("GptOssConfig", {**CASE["gpt_oss"][1], "hidden_size": 64, "intermediate_size": 32})
    same(theirs, Q.MXFP4, tmp_path)


def same(theirs: Any, kind: Q, tmp_path: Path) -> None:
    stored = read(write_gguf(tmp_path / "stored.gguf", theirs, as_kind(kind)))
    wide = read(write_gguf(tmp_path / "wide.gguf", theirs, widened(as_kind(kind))))
    with read_gguf(tmp_path / "stored.gguf") as file:
        kinds = {tensor.quant.name for name, tensor in file.tensors.items() if "_exps.weight" in name}
    assert kinds == {kind.name}
    assert stored(IDS).isfinite().all()
    for (name, ours), other in zip(stored.named_parameters(), wide.parameters(), strict=True):
        assert torch.equal(ours, other), name


@torch.no_grad()
def test_forms_of_other_writers_are_read_too(tmp_path: Path) -> None:
    """Gate and up in one tensor; the map out of the latent whole, as before llama.cpp split it."""
    mixtral = model_of(*CASE["mixtral"])
    path = write_gguf(tmp_path / "a.gguf", mixtral, change=fused)
    assert relative(read(path)(IDS), mixtral(IDS).logits) <= TOLERANCE
    deepseek = model_of(*CASE["deepseek_v3"])
    path = write_gguf(tmp_path / "b.gguf", deepseek, change=whole_latent)
    assert relative(read(path)(IDS), deepseek(IDS).logits) <= TOLERANCE


def fused(tensors: Tensors) -> Tensors:
    for name in [name for name in tensors if "ffn_gate_exps" in name]:
        both = [tensors.pop(name), tensors.pop(name.replace("gate", "up"))]
        tensors[name.replace("gate", "gate_up")] = np.concatenate(both, axis=1)
    return tensors


def whole_latent(tensors: Tensors) -> Tensors:
    for name in [name for name in tensors if "attn_k_b" in name]:
        keys, values = tensors.pop(name).swapaxes(1, 2), tensors.pop(name.replace("k_b", "v_b"))
        both = np.concatenate([keys, values], axis=1)
        tensors[name.replace("k_b", "kv_b")] = both.reshape(-1, both.shape[-1])
    return tensors


TEXTS = [
    "It's 12345 o'clock, ISN'T it?\r\n\n  Straße-CamelCaseWORD $x_1 = 3.14;",
    "你好，世界 2024年 カタカナ ひらがな café ﾊﾝｶｸ",
    "\tdef f(x):\n        return x//2  # done   ",
]


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "gpt-4o"])
def test_text_is_split_as_transformers_splits_it_for_the_same_name(pre: str) -> None:
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    theirs = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    both = pre_tokenizers.Sequence([theirs, bytes_of])
    for text in TEXTS:
        assert _splitter(pre, "x").pre_tokenize_str(text) == both.pre_tokenize_str(text)


def test_deepseeks_splitter_keeps_numbers_scripts_and_words_apart() -> None:
    pieces = [text for text, _ in split_without_bytes("deepseek-v3", "2024年 x=12345 don't 世界カナ!ok\n")]
    assert pieces == ["202", "4", "年", " x", "=", "123", "45", " don", "'t", " ", "世界カナ", "!ok", "\n"]


def split_without_bytes(pre: str, text: str) -> list[tuple[str, tuple[int, int]]]:
    offsets = [span for _, span in _splitter(pre, "x").pre_tokenize_str(text)]
    return [(text[start:end], (start, end)) for start, end in offsets]


@pytest.mark.parametrize(
    ("case", "change", "sentence"),
    [
        ("deepseek_v3", {"deepseek2.expert_gating_func": 3}, "1 .softmax, DeepSeek-V2. and 2"),
        ("deepseek_v2", {"deepseek2.expert_weights_norm": True}, "norm_topk_prob"),
        ("deepseek_v2", {"deepseek2.expert_gating_func": 2}, "lacks .* first blk.1.exp_probs_b.bias"),
        ("deepseek_v3", {"deepseek2.expert_shared_count": 0}, "n_shared_experts"),
        ("deepseek_v3", {"deepseek2.attention.kv_lora_rank": 1 << 40}, "kv_lora_rank"),
        ("deepseek_v3", {"deepseek2.leading_dense_block_count": 0}, "lacks .* first blk.0.exp_probs_b.bias"),
        ("qwen3_moe", {"qwen3moe.expert_count": 1 << 40}, "num_experts"),
        ("qwen3_moe", {"qwen3moe.expert_weights_norm": 3}, "must be true or false"),
        ("qwen3_moe", {"qwen3moe.expert_feed_forward_length": 25}, "blk.0.ffn_.*the metadata demands"),
        ("qwen3_moe", {"qwen3moe.attention.value_length": 8}, "must equal the key length 16"),
        ("gpt_oss", {"gpt-oss.rope.scaling.factor": "x"}, "rope.scaling.factor must be a number"),
        ("gpt_oss", {"gpt-oss.rope.scaling.yarn_attn_factor": 2.0}, "only its default is computed"),
        ("gpt_oss", {"gpt-oss.attention.sliding_window": -1}, "sliding_window"),
        ("olmoe", {"olmoe.expert_used_count": 99}, "top_k"),
        ("mixtral", {"llama.expert_count": 3}, "blk.0.ffn_"),
    ],
)
def test_what_cannot_be_served_is_named(
    case: str, change: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf", model_of(*CASE[case]))

    def changed(file: Any, name: str) -> GgufHead:
        head = read_head(file, name)
        return dataclasses.replace(head, metadata={**head.metadata, **change})

    monkeypatch.setattr(gguf_parts, "read_head", changed)
    with pytest.raises(FormatError, match=sentence):
        import_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["deepseek_v3", "gpt_oss"])
def test_flipped_heads_are_accepted_or_refused_cleanly(case: str, tmp_path: Path) -> None:
    config_class, changes = CASE[case]
    small = {**changes, "num_hidden_layers": 2, "hidden_size": 16}
    path = write_gguf(tmp_path / "m.gguf", model_of(config_class, small))
    honest = path.read_bytes()
    with read_gguf(path) as file:
        end = min(tensor.begin for tensor in file.tensors.values())
    verdicts = {"accepted": 0, "refused": 0}
    for number, place in enumerate(range(0, end, 29)):
        content = bytearray(honest)
        content[place] ^= (0x80, 0x01, 0x04, 0x40)[number % 4]
        path.write_bytes(content)
        try:
            import_gguf(path, tmp_path / f"out-{place}")
            verdicts["accepted"] += 1
        except CheckpointError as error:
            assert len(str(error)) < 900
            assert not (tmp_path / f"out-{place}").exists()
            verdicts["refused"] += 1
    assert verdicts["refused"] > 5 * verdicts["accepted"] > 0
