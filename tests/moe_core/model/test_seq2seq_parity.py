"""Encoder–decoders against transformers: logits, routing, greedy text, files both ways; and each comparison can fail."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_core
from moe_core import EncoderDecoder
from moe_core.checkpoint.hashes import hashes_of
from moe_core.errors import FormatError, HashMismatch
from moe_core.model.context import RoutingContext
from moe_core.routers import Routing

transformers = pytest.importorskip("transformers")

from transformers.models.nllb_moe import modeling_nllb_moe  # noqa: E402

GENERATOR = torch.Generator().manual_seed(7)
IDS = torch.randint(3, 97, (3, 17), generator=GENERATOR)
TARGET = torch.randint(3, 97, (3, 11), generator=GENERATOR)
TOLERANCE = 1e-6
NUM_GREEDY = 64

SWITCH: dict[str, Any] = {
    "vocab_size": 97, "d_model": 48, "d_kv": 10, "d_ff": 40, "num_layers": 4, "num_sparse_encoder_layers": 2,
    "num_decoder_layers": 4, "num_sparse_decoder_layers": 2, "num_heads": 4, "num_experts": 4, "eos_token_id": None,
    "decoder_start_token_id": 0, "relative_attention_num_buckets": 12, "relative_attention_max_distance": 14,
}  # fmt: skip
NLLB: dict[str, Any] = {
    "vocab_size": 97, "d_model": 48, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_experts": 5,
    "encoder_sparse_step": 2, "decoder_sparse_step": 2, "eos_token_id": None,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "switch": ("SwitchTransformersConfig", SWITCH),
    "switch, experts that are full": ("SwitchTransformersConfig", {**SWITCH, "expert_capacity": 3}),
    "switch, untied, router biases, gelu": (
        "SwitchTransformersConfig",
        {**SWITCH, "tie_word_embeddings": False, "router_bias": True, "dense_act_fn": "gelu"},
    ),
    "nllb": ("NllbMoeConfig", NLLB),
    "nllb, experts that are full": (
        "NllbMoeConfig",
        {**NLLB, "moe_eval_capacity_token_fraction": 0.3, "normalize_router_prob_before_dropping": True},
    ),
    "nllb, nothing left out": (
        "NllbMoeConfig",
        {**NLLB, "moe_token_dropout": 0.0, "scale_embedding": False, "tie_word_embeddings": False, "router_bias": True},
    ),
}  # fmt: skip


def right_experts(self: Any, hidden_states: Tensor, router_mask: Tensor, router_probs: Tensor) -> Tensor:
    """What transformers 4 did: every expert on the tokens that have a weight for it."""
    out_TD = torch.zeros_like(hidden_states)
    for expert in range(self.num_experts):
        mine_T = router_probs[:, expert] > 0
        given = self[f"expert_{expert}"](hidden_states[mine_T]) * (1.0 - self.moe_token_dropout)
        out_TD[mine_T] += given * router_probs[mine_T, expert, None]
    return out_TD


RELEASED = modeling_nllb_moe.NllbMoeExperts.forward


@pytest.fixture(scope="module", autouse=True)
def _experts_put_right() -> Any:
    modeling_nllb_moe.NllbMoeExperts.forward = right_experts
    yield
    modeling_nllb_moe.NllbMoeExperts.forward = RELEASED


def reference(case: str) -> Any:
    """Random weights, nothing left at zero or one that could hide a missing tensor."""
    config_class, fields = CASES[case]
    torch.manual_seed(11)
    config = getattr(transformers, config_class)(**fields)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                tensor.uniform_(0.5, 1.5)
            else:
                # T5's scores are not scaled: its queries are small instead, or rounding would be all that is seen.
                is_query = name.endswith((".q.weight", "q_proj.weight"))
                tensor.normal_(0.0, 0.04 if is_query else 0.2)
        if not config.tie_word_embeddings:
            embedding = model.get_input_embeddings().weight
            for stack in (model.get_encoder(), model.get_decoder()):
                stack.embed_tokens.weight.copy_(embedding)
    return model.eval()


@dataclass(frozen=True, slots=True)
class Pair:
    theirs: Any
    directory: Path
    ours: EncoderDecoder
    logits: Tensor


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    theirs = reference(request.param)
    directory = tmp_path_factory.mktemp("seq2seq")
    theirs.save_pretrained(directory)
    ours = moe_core.load(directory)
    assert isinstance(ours, EncoderDecoder)
    with torch.no_grad():
        return Pair(theirs, directory, ours, theirs(input_ids=IDS, decoder_input_ids=TARGET).logits)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def test_logits_equal_and_a_swapped_expert_shows(pair: Pair) -> None:
    assert relative(pair.ours(IDS, TARGET), pair.logits) <= TOLERANCE
    layers = list(pair.ours.moe_layers())
    assert len(layers) >= 3
    for layer in layers:
        experts = layer.experts
        kept = experts.weights_N.clone()
        experts.weights_N.copy_(kept.view(experts.num_experts, -1).roll(1, 0).flatten())
        assert relative(pair.ours(IDS, TARGET), pair.logits) > 1000 * TOLERANCE
        experts.weights_N.copy_(kept)


def is_ever_full(pair: Pair) -> bool:
    """Whether an expert may have no room for a token of IDS."""
    spec = pair.ours.spec
    return spec.capacity is not None and (
        not spec.capacity_per_sequence or spec.expert_capacity < IDS.shape[1]
    )


@torch.no_grad()
def test_a_padded_source_says_the_same(pair: Pair) -> None:
    real_BS = torch.ones_like(IDS, dtype=torch.bool)
    real_BS[1, 12:] = False
    ids = torch.where(real_BS, IDS, pair.ours.spec.pad_token_id)
    ours = pair.ours(ids, TARGET, real_BS)
    if is_ever_full(pair):
        # Who finds room hangs on padding in transformers; here padding takes no place of an expert.
        if pair.ours.spec.capacity_per_sequence:
            assert relative(ours[1:2], pair.ours(IDS[1:2, :12], TARGET[1:2])) <= 1e-5
        return
    theirs = pair.theirs(input_ids=ids, attention_mask=real_BS.long(), decoder_input_ids=TARGET).logits
    assert relative(ours, theirs) <= TOLERANCE
    assert relative(pair.ours(ids, TARGET), theirs) > 1000 * TOLERANCE


@torch.no_grad()
def test_every_token_goes_to_the_experts_that_transformers_chooses(pair: Pair) -> None:
    seen: dict[int, Routing] = {}
    pair.ours(
        IDS, TARGET, routing=RoutingContext(observe=lambda layer, routing: seen.update({layer: routing}))
    )
    told: list[Tensor] = []
    routers = [m for m in pair.theirs.modules() if type(m).__name__.endswith(("Top1Router", "Top2Router"))]
    hooks = [r.register_forward_hook(lambda module, args, out: told.append(weights_of(out))) for r in routers]
    pair.theirs(input_ids=IDS, decoder_input_ids=TARGET)
    for hook in hooks:
        hook.remove()
    assert len(told) == len(seen) == len(list(pair.ours.moe_layers()))
    for weights_TE, layer in zip(told, sorted(seen), strict=True):
        routing = seen[layer]
        ours_TE = torch.zeros_like(weights_TE)
        for place in range(routing.expert_ids_TK.shape[1]):
            kept_T = routing.expert_ids_TK[:, place] >= 0
            ours_TE[kept_T, routing.expert_ids_TK[kept_T, place]] += routing.weights_TK[kept_T, place]
        assert torch.equal(ours_TE > 0, weights_TE > 0)
        assert torch.allclose(ours_TE, weights_TE, rtol=1e-5, atol=1e-6)


def weights_of(out: Any) -> Tensor:
    """(T, E): what each expert's output is multiplied by."""
    first, probs, logits = out
    if logits.ndim == 3:
        return (first * probs).flatten(0, 1)
    return probs


def test_some_experts_were_full(pair: Pair) -> None:
    """The cases that say so do drop tokens: without the limit the logits differ."""
    if not is_ever_full(pair):
        pytest.skip("no expert is ever full in this case")
    free = EncoderDecoder(pair.ours.spec.model_copy(update={"capacity": None}))
    free.load_state_dict(pair.ours.state_dict())
    with torch.no_grad():
        assert relative(free(IDS, TARGET), pair.logits) > 1000 * TOLERANCE


def test_greedy_text_is_the_same(pair: Pair) -> None:
    texts = []
    for source in (IDS[:1], IDS[1:2, :5]):
        told = pair.theirs.generate(source, max_new_tokens=NUM_GREEDY, do_sample=False, num_beams=1)
        texts.append(pair.ours.generate(source[0].tolist(), NUM_GREEDY))
        assert len(texts[-1]) == NUM_GREEDY
        assert texts[-1] == told[0, 1:].tolist()
    # What is said hangs on what was read.
    assert texts[0] != texts[1]


@torch.no_grad()
def test_tokens_one_by_one_and_all_at_once_agree(pair: Pair) -> None:
    if is_ever_full(pair):
        pytest.skip("alone, a token always finds room")
    new = pair.ours.generate(IDS[0].tolist(), 12)
    start = pair.ours.spec.decoder_start_token_id
    logits = pair.ours(IDS[:1], torch.tensor([[start, *new[:-1]]]))
    assert logits[0].argmax(-1).tolist() == new


@torch.no_grad()
def test_files_go_both_ways(pair: Pair, tmp_path: Path) -> None:
    moe_core.save(pair.ours, tmp_path / "ours")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, attn_implementation="eager"
    )
    state, before = again.state_dict(), pair.theirs.state_dict()
    assert state.keys() == before.keys()
    assert [name for name in state if not torch.equal(state[name], before[name])] == []
    assert relative(again(input_ids=IDS, decoder_input_ids=TARGET).logits, pair.logits) <= TOLERANCE
    mine = moe_core.load(tmp_path / "ours", expected_hashes=hashes_of(tmp_path / "ours"))
    assert isinstance(mine, EncoderDecoder)
    assert mine.spec == pair.ours.spec
    assert torch.equal(mine(IDS, TARGET), pair.ours(IDS, TARGET))
    moe_core.save(mine, tmp_path / "twice")
    assert hashes_of(tmp_path / "twice") == hashes_of(tmp_path / "ours")


@torch.no_grad()
def test_sixteen_bits_rank_alike(pair: Pair) -> None:
    ours = moe_core.load(pair.directory, "bfloat16")
    assert isinstance(ours, EncoderDecoder)
    assert all(layer.router.weight.dtype == torch.float32 for layer in ours.moe_layers())
    p = torch.log_softmax(pair.logits.float(), -1).flatten(0, 1)
    q = torch.log_softmax(ours(IDS, TARGET).float(), -1).flatten(0, 1)
    assert float((p.argmax(-1) == q.argmax(-1)).float().mean()) > 0.7


def test_gradients_reach_every_tensor(pair: Pair) -> None:
    pair.ours.zero_grad()
    pair.ours(IDS, TARGET).square().mean().backward()
    without = {name for name, p in pair.ours.named_parameters() if p.grad is None or not p.grad.any()}
    pair.ours.zero_grad()
    assert not without


def test_what_would_change_the_computation_is_refused(tmp_path: Path) -> None:
    for case, changes, complaint in (
        ("switch", {"feed_forward_proj": "gated-gelu"}, "feed_forward_proj"),
        ("switch", {"warp": 9}, "warp"),
        ("nllb", {"second_expert_policy": "random"}, "second_expert_policy"),
        ("nllb", {"moe_eval_capacity_token_fraction": 0.5}, "normalize_router_prob_before_dropping"),
        ("nllb", {"d_model": 50}, "must be divisible by encoder_attention_heads"),
        ("switch", {"decoder_start_token_id": 97}, "outside the vocabulary"),
    ):
        directory = tmp_path / f"{case}-{next(iter(changes))}"
        reference(case).save_pretrained(directory)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(FormatError, match=complaint):
            moe_core.load(directory)


def test_files_that_do_not_fit_are_refused(pair: Pair, tmp_path: Path) -> None:
    moe_core.save(pair.ours, tmp_path / "model")
    hashes = hashes_of(tmp_path / "model")
    with pytest.raises(HashMismatch):
        moe_core.load(tmp_path / "model", expected_hashes={**hashes, "trunk.safetensors": "0" * 64})
    index = tmp_path / "model" / "model.safetensors.index.json"
    (tmp_path / "model" / "router.safetensors").unlink()
    said = json.loads(index.read_text())
    said["weight_map"] = {k: v for k, v in said["weight_map"].items() if v != "router.safetensors"}
    index.chmod(0o644)
    index.write_text(json.dumps(said))
    with pytest.raises(FormatError, match="lack .* tensors, first .*router.classifier"):
        moe_core.load(tmp_path / "model")


@torch.no_grad()
def test_a_decoder_may_be_longer_than_its_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Logits alone: transformers' own cache counts the encoder's layers."""
    monkeypatch.setitem(CASES, "longer", ("SwitchTransformersConfig", {**SWITCH, "num_decoder_layers": 5}))
    theirs = reference("longer")
    theirs.save_pretrained(tmp_path)
    ours = moe_core.load(tmp_path)
    assert isinstance(ours, EncoderDecoder)
    assert [layer.layer for layer in ours.moe_layers()] == [1, 3, 5, 7]
    told = theirs(input_ids=IDS, decoder_input_ids=TARGET, use_cache=False).logits
    assert relative(ours(IDS, TARGET), told) <= TOLERANCE


@torch.no_grad()
def test_transformers_itself_runs_two_experts_of_nllb_alone() -> None:
    """Why its function is put right above; when this fails, it was put right there, and the patch can go."""
    theirs = reference("nllb")
    experts = next(m for m in theirs.modules() if type(m).__name__ == "NllbMoeExperts")
    x_TD, probs_TE = torch.randn(20, 48), torch.zeros(20, 5)
    probs_TE[:, 3], probs_TE[:, 4] = 0.6, 0.4
    first_TE = (probs_TE == 0.6).long()
    before = RELEASED(experts, x_TD, first_TE, probs_TE)
    for expert in (2, 3, 4):
        experts[f"expert_{expert}"].fc1.weight.zero_()
    assert torch.equal(RELEASED(experts, x_TD, first_TE, probs_TE), before)
