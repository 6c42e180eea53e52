"""The table of docs/reference/families.md, made by doing what it says with a tiny model of each family.

`python -m tests.moe_core.families_table` writes it anew.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

import moe_core
from moe_core import EncoderDecoder
from moe_core.checkpoint.gguf_architectures import FAMILIES_OF
from moe_core.errors import MoeCoreError
from moe_core.model import Decoder
from moe_core.model.families import FAMILIES
from moe_core.model.families.family import Family
from moe_core.model.init import random_decoder
from moe_core.model.seq2seq import nllb_moe, switch_transformers
from moe_core.model.seq2seq.init import random_encoder_decoder
from moe_core.operations import grow, quantise
from moe_core.spec import LayoutSpec
from moe_core.spec.operations import GrowSpec, QuantiseSpec, UpcycleSpec
from moe_core.spec.quantisation import ExpertQuantSpec
from moe_core.training.recipes.specialise import LoneExpert
from moe_core.training.seq2seq import Batch, Learner
from moe_core.training.trunk import CutDecoder
from tests.moe_core.tiny import STD, tiny_family, tiny_llama, tiny_mixtral, tiny_seq2seq, tiny_turnout

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"
BEGIN, END = "<!-- table: python -m tests.moe_core.families_table -->\n", "<!-- end of table -->\n"
IDS = torch.arange(1, 25).view(2, 12)
YES, NO = "✓", "–"
# What proves a family that transformers lacks.
ORACLES = {
    "turnout_moe": "every other family in its words, bit for bit",
    "glam_moe": "layers of transformers' Mixtral and Llama in turn",
    "palm_moe": "layers of transformers' Mixtral, side by side",
    "step3p5": "the text of transformers' `Step3p7ForConditionalGeneration`, which reads the files too (see below)",
}
# Encoder–decoders by their model_type, with the class of transformers that they are proven against.
SEQ2SEQ = {
    "switch_transformers": (switch_transformers, "SwitchTransformersForConditionalGeneration"),
    "nllb-moe": (nllb_moe, "NllbMoeForConditionalGeneration"),
}
OWN = {"llama": tiny_llama, "mixtral": tiny_mixtral, "turnout_moe": tiny_turnout}


Model = Decoder | EncoderDecoder


def model_of(family: str) -> Model:
    if family in SEQ2SEQ:
        return random_encoder_decoder(tiny_seq2seq(family), 3, STD)
    spec = OWN[family]() if family in OWN else tiny_family(family)
    return random_decoder(spec.model_copy(update={"eos_token_ids": ()}), 3, STD)


def logits_of(model: Model) -> torch.Tensor:
    return model(IDS, IDS.flip(1)) if isinstance(model, EncoderDecoder) else model(IDS)


def through_the_disk(model: Model) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        return moe_core.load(moe_core.save(model, Path(folder) / "m"))


@torch.no_grad()
def loads_and_saves(model: Model) -> bool:
    """Read back, a saved model is the same model of the same family."""
    back = through_the_disk(model)
    return back.spec == model.spec and torch.equal(logits_of(back), logits_of(model))


@torch.no_grad()
def runs(model: Model) -> bool:
    """Text token by token, with a cache, is the text of one pass over all of it."""
    prompt = IDS[0, :4].tolist()
    answer = model.generate(prompt, 8)
    if isinstance(model, EncoderDecoder):
        read = torch.tensor([[model.spec.decoder_start_token_id, *answer[:-1]]])
        return model(torch.tensor([prompt]), read)[0].argmax(-1).tolist() == answer
    best = model(torch.tensor([prompt + answer]))[0].argmax(-1)
    return best[len(prompt) - 1 : -1].tolist() == answer


def trains(model: Model) -> bool:
    """Small steps against the gradient, of routers and of one expert, lower the loss of a tiny text; a dense model needs a layout."""
    from moe_core.operations import upcycle

    if isinstance(model, EncoderDecoder):
        return learns_whole(model)
    if model.spec.moe is None:
        layout = LayoutSpec(moe_layers=(1, 2), num_experts=4, top_k=2)
        model, _ = upcycle(model, UpcycleSpec(layout=layout, noise=0.1, router_std=0.5))
    model.requires_grad_(False)
    cut, layers = CutDecoder(model), list(model.moe_layers())
    gates = [layer.router.weight.requires_grad_() for layer in layers]
    lone = LoneExpert(layers, 1)
    routed = falls(cut, gates, lambda layer, x_TD: layer(x_TD, None))
    return routed and falls(cut, list(lone.weights.values()), lone.feed_forward)


def learns_whole(model: EncoderDecoder) -> bool:
    """Every weight of an encoder–decoder is taught: routers and experts move, and the loss of a tiny text falls."""
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    learner = Learner(model, learning_rate=1e-3)
    losses = [float(learner.step(Batch(IDS, IDS.flip(1))).text) for _ in range(4)]
    return losses[-1] < losses[0] and not any(
        torch.equal(tensor, before[name]) for name, tensor in model.named_parameters()
    )


def falls(cut: CutDecoder, weights: list[torch.Tensor], feed_forward: Callable[..., torch.Tensor]) -> bool:
    losses = []
    for _ in range(4):
        hidden_TD = cut.above(cut.below(IDS), *IDS.shape, feed_forward)
        logits = cut.model.logits(hidden_TD).view(*IDS.shape, -1)[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, IDS[:, 1:].flatten())
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, weights)
        size = sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 2e-4 / size * gradient
    return size > 0 and losses[-1] < losses[0]


@torch.no_grad()
def quantises(model: Model) -> bool:
    """Experts in eight bits compute nearly the same, and come back from the disk as they were."""
    spec = QuantiseSpec(quantisation=ExpertQuantSpec(bits=8, group_size=32))
    packed, _ = quantise(model, spec)
    near = float((logits_of(packed) - logits_of(model)).norm() / logits_of(model).norm())
    return near < 0.2 and torch.equal(logits_of(through_the_disk(packed)), logits_of(packed))


@torch.no_grad()
def grows(model: Model) -> bool:
    """Twice the experts, the same function, and a way through the disk."""
    moe = None if isinstance(model, EncoderDecoder) else model.spec.moe
    grown, _ = grow(model, GrowSpec(num_experts=2 * (moe.num_experts if moe else 1), method="twin"))
    near = float((grown(IDS) - model(IDS)).norm() / model(IDS).norm())
    return near < 4e-6 and torch.equal(logits_of(through_the_disk(grown)), grown(IDS))


COLUMNS: dict[str, Callable[[Model], bool]] = {
    "load, save": loads_and_saves, "run": runs, "train": trains, "quantise": quantises, "grow": grows,
}  # fmt: skip


def tick(act: Callable[[Model], bool], model: Model) -> str:
    """YES where it is done and right, NO where it is refused; an assertion where it is done and wrong."""
    try:
        assert act(model), f"{act.__name__} of {model.spec.family} is done, and wrong"
    except MoeCoreError:
        return NO
    return YES


def row(family: Family) -> list[str]:
    architectures = [name for name, families in FAMILIES_OF.items() if family.name in families]
    names = ", ".join(f"`{name}`" for name in (family.name, *family.aliases))
    oracle = f"transformers' `{family.architecture}`" if family.in_transformers else ORACLES[family.name]
    gguf = ", ".join(f"`{name}`" for name in architectures) or NO
    return [names, *ticks_of(family.name), gguf, source(sys.modules[family.schema.__module__]), oracle]


def row_of_seq2seq(name: str) -> list[str]:
    module, oracle = SEQ2SEQ[name]
    return [f"`{name}`", *ticks_of(name), NO, source(module), f"transformers' `{oracle}`"]


def ticks_of(name: str) -> list[str]:
    return [tick(act, model_of(name)) for act in COLUMNS.values()]


def source(module: ModuleType) -> str:
    """The line of its file that names a family's source."""
    text = module.__doc__ or ""
    _, found, rest = text.partition("Source: ")
    return " ".join(rest.split()).removesuffix(".") if found else "ours"


def table() -> str:
    """Markdown, one row a family."""
    head = ["model_type", *COLUMNS, "GGUF", "source", "proven against"]
    rows = [head, ["---"] * len(head), *(row(family) for family in FAMILIES.values())]
    rows += [row_of_seq2seq(name) for name in SEQ2SEQ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def written(page: str) -> str:
    """The table that stands in a page."""
    return page.partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text.replace(BEGIN + written(text) + END, BEGIN + table() + END), "utf-8")
