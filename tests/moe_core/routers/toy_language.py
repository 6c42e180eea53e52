"""A toy language and a toy model of it: topics of unequal popularity, so that a gate left alone has favourites.

Shapes: B sequences, S tokens of each, V vocabulary, L expert layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.model import Decoder, RoutingContext
from moe_core.model.init import random_decoder
from moe_core.routers import Routing, load_of
from moe_core.routers.loss_free import moved_bias
from moe_core.routers.losses import balance_loss
from moe_core.routers.param_groups import clip_gradients, parameter_groups
from moe_core.spec import ModelSpec
from moe_core.spec.gate import SigmoidGroups

VOCAB, SEQUENCE, BATCH = 48, 32, 16
NUM_EXPERTS, TOP_K = 8, 2


def spec() -> ModelSpec:
    """Two layers of eight small experts behind a sigmoid gate with a balancing bias."""
    return ModelSpec.parse(
        {
            "family": "turnout_moe", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 64, "tie_word_embeddings": True,
            "moe": {
                "moe_layers": (0, 1), "num_experts": NUM_EXPERTS, "top_k": TOP_K, "moe_intermediate_size": 24,
                "gate": SigmoidGroups(),
            },
        }
    )  # fmt: skip


class Language:
    """Sentences that stay in one topic; a topic is a table of which word follows which."""

    def __init__(self, seed: int, num_topics: int = 6) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        tables = torch.randn(num_topics, VOCAB, VOCAB, generator=torch.Generator().manual_seed(99))
        self.next_NVV = torch.softmax(2.5 * tables, -1)
        self.popularity_N = 1.0 / torch.arange(1, num_topics + 1)

    def batch(self, num_sequences: int = BATCH) -> Tensor:
        """(B, S) words."""
        topic_B = torch.multinomial(
            self.popularity_N, num_sequences, replacement=True, generator=self.generator
        )
        word_B = torch.randint(VOCAB, (num_sequences,), generator=self.generator)
        words = [word_B]
        for _ in range(SEQUENCE - 1):
            word_B = torch.multinomial(self.next_NVV[topic_B, word_B], 1, generator=self.generator)[:, 0]
            words.append(word_B)
        return torch.stack(words, 1)


@dataclass(slots=True)
class Outcome:
    """What a trained model is worth on sentences that it has not seen."""

    loss: float
    load_LE: Tensor

    @property
    def max_vio(self) -> float:
        """MaxVio of the summed loads, mean over layers."""
        return float((self.load_LE.max(-1).values / self.load_LE.mean(-1) - 1.0).mean())


def train(num_steps: int, *, aux_weight: float = 0.0, bias_rate: float = 0.0, seed: int = 0) -> Outcome:
    """Train from scratch with an auxiliary loss, a balancing bias, or neither; equal seeds see equal sentences."""
    model, language = random_decoder(spec(), seed, std=0.1), Language(seed + 1)
    adam = torch.optim.AdamW(parameter_groups(model, 1e-2, 1e-2), betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(num_steps):
        for group in adam.param_groups:
            group["lr"] = 1e-2 * min(
                1.0, (step + 1) / 20, max(0.02, (0.8 * num_steps - step) / (0.3 * num_steps))
            )
        loss, routings = _pass(model, language.batch())
        real_T = torch.ones(BATCH * SEQUENCE, dtype=torch.bool)
        aux = sum(balance_loss(routing, real_T) for routing in routings) / len(routings)
        (loss + aux_weight * aux).backward()
        clip_gradients(model, 1.0, 1.0)
        adam.step()
        adam.zero_grad()
        if bias_rate:
            # The rate sinks, as in DeepSeek-V3: a bias that goes on stepping goes on swinging.
            rate = bias_rate * 0.05 ** max(0.0, 2.0 * step / num_steps - 1.0)
            for mlp, routing in zip(model.moe_layers(), routings, strict=True):
                bias_E = mlp.router.tensors["selection_bias"]
                bias_E.data.copy_(moved_bias(bias_E[None], load_of(routing)[None], rate)[0])
    return evaluate(model, Language(1234))


@torch.no_grad()
def evaluate(model: Decoder, language: Language, num_batches: int = 16) -> Outcome:
    """Held-out loss and loads of 32,768 words."""
    losses, load_LE = [], torch.zeros(2, NUM_EXPERTS)
    for _ in range(num_batches):
        loss, routings = _pass(model, language.batch(64))
        losses.append(float(loss))
        load_LE += torch.stack([load_of(routing) for routing in routings])
    return Outcome(sum(losses) / len(losses), load_LE)


def _pass(model: Decoder, words_BS: Tensor) -> tuple[Tensor, list[Routing]]:
    seen: dict[int, Routing] = {}
    logits_BSV = model(words_BS, RoutingContext(observe=seen.__setitem__, training=model.training))
    loss = torch.nn.functional.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), words_BS[:, 1:].flatten())
    return loss, list(seen.values())
