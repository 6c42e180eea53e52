"""The figures of docs/reference/operations.md: how well composed gates find domains, and what distillation keeps.

    PYTHONPATH=. python -m benchmarks.operations compose
    PYTHONPATH=. python -m benchmarks.operations distil

Random tiny models and toy languages, all from fixed seeds: minutes on one core, and nothing to download.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations import Prompts, compose, distil
from moe_core.operations.learning import mean_loss, train
from moe_core.operations.parts import rebuilt
from moe_core.operations.passes import loss_by_domain
from moe_core.spec import ModelSpec
from moe_core.spec.operations import ComposeSpec, DistilSpec

DOMAINS = ("law", "code")
NUM_WORDS, WIDTH = 96, 48
DENSE: dict[str, Any] = {
    "family": "llama", "vocab_size": NUM_WORDS + 1, "hidden_size": WIDTH, "intermediate_size": 64,
    "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 128, "rope_theta": 5000.0, "tie_word_embeddings": True, "eos_token_ids": (2,),
}  # fmt: skip
EXPERTS = {"moe_layers": (0, 2), "num_experts": 8, "top_k": 2, "moe_intermediate_size": 32}
STD = 0.2
PROMPTS_PER_DOMAIN, WORDS_A_PROMPT, KNOWN_WORDS = 160, 8, 32
STEPS, TEACHER_STEPS = 60, 160


def row(title: str, *figures: float) -> None:
    """One row of a Markdown table."""
    print("|", title, "|", " | ".join(f"{figure:.3f}" for figure in figures), "|")


def kin(share: float) -> list[Decoder]:
    """Two dense models that differ in their feed-forwards; words of a domain have so much of a direction in common."""
    models = [random_decoder(ModelSpec.parse(DENSE), 6, STD) for _ in DOMAINS]
    towards_D = torch.randn(WIDTH, generator=torch.Generator().manual_seed(8))
    half = NUM_WORDS // 2
    with torch.no_grad():
        for place, model in enumerate(models):
            generator = torch.Generator().manual_seed(place)
            for name, weight in model.named_parameters():
                if ".mlp." in name:
                    weight.normal_(0.0, STD, generator=generator)
            words = model.embed_tokens.weight
            step_D = share * float(words.std()) * towards_D
            words[1 : half + 1] += step_D
            words[half + 1 :] -= step_D
    return models


def domain_prompts(split_by_words: bool) -> Prompts:
    """Prompts of the words of their domain; split by words, the held-out fourth has words that the others never have."""
    generator, half = torch.Generator().manual_seed(4), NUM_WORDS // 2

    def prompt(domain: int, number: int) -> list[int]:
        start, is_held_out = 1 + half * domain, number % 4 == 3
        known, new = (start, start + KNOWN_WORDS), (start + KNOWN_WORDS, start + half)
        low, high = new if is_held_out and split_by_words else known
        return torch.randint(low, high, (WORDS_A_PROMPT,), generator=generator).tolist()

    return Prompts.of(
        {
            code: [prompt(place, number) for number in range(PROMPTS_PER_DOMAIN)]
            for place, code in enumerate(DOMAINS)
        }
    )


def composed_gates() -> None:
    """Held-out token accuracy of each layer: on known words, and on words that no fitted prompt has."""
    print(
        "| words of a domain have in common | held out | gate | layer 0 | 1 | 2 |\n|---|---|---|---|---|---|"
    )
    for share in (0.0, 0.25, 1.0):
        for split_by_words in (False, True):
            for gate in ("ridge", "logistic", "mean"):
                spec = ComposeSpec.parse({"domains": DOMAINS, "gate": gate})
                _, report = compose(kin(share), spec, domain_prompts(split_by_words))
                name = "new_token_accuracy" if split_by_words else "token_accuracy"
                words = "new words" if split_by_words else "new prompts of known words"
                row(f"{share} | {words} | {gate}", *(layer[name] for layer in report["layers"]))


def toy_text(seed: int, per_domain: int, length: int = 24) -> Prompts:
    """Two languages over one alphabet: after each token four others may come, not equally often."""
    languages = torch.Generator().manual_seed(77)
    shape = (NUM_WORDS + 1, 4)
    follow = {code: torch.randint(1, NUM_WORDS + 1, shape, generator=languages) for code in DOMAINS}
    generator = torch.Generator().manual_seed(seed)

    def told(table: torch.Tensor) -> list[int]:
        tokens = [int(torch.randint(1, NUM_WORDS + 1, (1,), generator=generator))]
        often = torch.tensor([0.6, 0.25, 0.1, 0.05])
        for at in torch.multinomial(often, length, True, generator=generator).tolist():
            tokens.append(int(table[tokens[-1], at]))
        return tokens

    return Prompts.of({code: [told(table) for _ in range(per_domain)] for code, table in follow.items()})


def distilled() -> None:
    """A teacher, students of it, and models of the same size that had no teacher, at equal steps."""
    learnt, held_out = toy_text(1, 192), toy_text(2, 32)
    spec = ModelSpec.parse({**DENSE, "family": "turnout_moe", "moe": EXPERTS})
    same: dict[str, Any] = {"learning_rate": 5e-3, "batch_prompts": 24, "seed": 3}
    teacher = random_decoder(spec, 1, 0.05)
    teach = {**same, "learning_rate": 1e-2}
    train(teacher, learnt, lambda batch: mean_loss(teacher, batch), steps=TEACHER_STEPS, **teach)
    print("| model | parameters | law | code |\n|---|---|---|---|")

    def tell(title: str, model: Decoder, losses: dict[str, float]) -> None:
        row(f"{title} | {sum(p.numel() for p in model.parameters()):,}", *(losses[code] for code in DOMAINS))

    tell("teacher", teacher, loss_by_domain(teacher, held_out))
    for words, less in (("all layers", {}), ("two of three layers", {"num_hidden_layers": 2})):
        small = {"num_experts": 2, "moe_intermediate_size": 16, "steps": STEPS, **less, **same}
        student, report = distil(teacher, DistilSpec.parse(small), learnt, held_out)
        tell(f"student, {words}, merged and not yet taught", student, report["loss_merged"])
        tell(f"student, {words}, after {STEPS} steps", student, report["loss_after"])
        alone = random_decoder(student.spec, 2, 0.05)
        train(alone, learnt, lambda batch, alone=alone: mean_loss(alone, batch), steps=STEPS, **same)
        tell(f"the same size from scratch, {STEPS} steps", alone, loss_by_domain(alone, held_out))
        if not less:
            trunk = with_trunk_of(teacher, student.spec)
            train(trunk, learnt, lambda batch, trunk=trunk: mean_loss(trunk, batch), steps=STEPS, **same)
            tell(
                "teacher's trunk, random experts and gates, on text alone",
                trunk,
                loss_by_domain(trunk, held_out),
            )


def with_trunk_of(teacher: Decoder, spec: ModelSpec) -> Decoder:
    """Experts and gates at random, everything else the teacher's."""
    fresh, kept = random_decoder(spec, 2, 0.05), rebuilt(teacher, spec)
    with torch.no_grad():
        for old, new in zip(fresh.moe_layers(), kept.moe_layers(), strict=True):
            new.load_state_dict(old.state_dict())
    return kept


PARTS: dict[str, Callable[[], None]] = {"compose": composed_gates, "distil": distilled}


def main(arguments: list[str]) -> int:
    """Print the tables that are asked for; all of them without a name."""
    unknown = [name for name in arguments if name not in PARTS]
    if unknown:
        sys.stderr.write(f"no part is called {', '.join(unknown)}; there are: {', '.join(PARTS)}\n")
        return 2
    torch.manual_seed(0)
    for name in arguments or PARTS:
        PARTS[name]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
