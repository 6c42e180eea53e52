"""Real texts of four domains that are in every environment, and a mixture whose gates tell them apart.

code       the standard library's sources
legal      the licences of installed packages
products   what installed packages say of themselves
chinese    Django's own Chinese messages
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import islice
from pathlib import Path

import django
import torch
from torch import Tensor

from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.model.decoder import Decoder
from moe_core.operations.gate_fit import Labelled, fit_rows

MOST_CHARS, MOST_OF_A_TEXT, FIRST_TOKENS = 20_000, 8, 12
# How far apart the rows of domains are, against those of one domain's experts.
SPREAD, RIDGE = 3.0, 0.1


def code() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield path.read_text(errors="ignore")


def legal() -> Iterator[str]:
    for distribution in metadata.distributions():
        for file in distribution.files or ():
            path = Path(str(file.locate()))
            if "LICENSE" in file.name.upper() and file.suffix not in (".py", ".pyc") and path.is_file():
                yield path.read_text(errors="ignore")


def products() -> Iterator[str]:
    for distribution in metadata.distributions():
        text = distribution.metadata.get_payload()  # type: ignore[attr-defined]
        if isinstance(text, str):
            yield text


def chinese() -> Iterator[str]:
    for path in sorted(Path(django.__file__).parent.glob("**/zh_Hans/**/*.po")):
        said = re.findall(r'msgstr ((?:".*"\n?)+)', path.read_text(encoding="utf-8"))
        yield "。".join(text for one in said if (text := ast.literal_eval(f"({one})")))


SOURCES: tuple[Callable[[], Iterator[str]], ...] = (code, legal, products, chinese)


def windows(tokenizer: Tokenizer, source: Callable[[], Iterator[str]], length: int) -> list[list[int]]:
    """Different windows of a source in random order, the same each time."""
    found: dict[tuple[int, ...], list[int]] = {}
    for text in source():
        ids = tokenizer.encode(text[:MOST_CHARS])
        for start in islice(range(0, len(ids) - length, 2 * length), MOST_OF_A_TEXT):
            window = ids[start : start + length]
            found.setdefault(tuple(window[:FIRST_TOKENS]), window)
    cuts = list(found.values())
    random.Random(3).shuffle(cuts)
    return cuts


@torch.inference_mode()
def fit_gates(model: Decoder, windows_of: list[list[list[int]]]) -> None:
    """Add to each expert's row that of its domain, fitted on windows of one length: the experts are split evenly."""
    batch = torch.tensor([window for windows in windows_of for window in windows])
    num_tokens = batch.shape[1]
    num_windows = torch.tensor([len(windows) for windows in windows_of])
    domain_N = torch.arange(len(windows_of)).repeat_interleave(num_windows * num_tokens)
    prompt_N = torch.arange(len(batch)).repeat_interleave(num_tokens)
    for layer, x_ND in _router_inputs(model, batch).items():
        weight_ED = layer.get_parameter("router.weight")
        rows_CD = fit_rows(Labelled(x_ND, domain_N, prompt_N), len(windows_of), "ridge", RIDGE).float()
        scale = SPREAD * (x_ND @ weight_ED.T).std() / (x_ND @ rows_CD.T).std()
        weight_ED += scale * rows_CD.repeat_interleave(weight_ED.shape[0] // len(windows_of), 0)


def _router_inputs(model: Decoder, batch_BS: Tensor) -> dict[torch.nn.Module, Tensor]:
    """(B · S, D) float32 before each expert layer."""
    seen: dict[torch.nn.Module, list[Tensor]] = {layer: [] for layer in model.moe_layers()}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: seen[layer].append(args[0].float()))
        for layer in seen
    ]
    for window_1S in batch_BS.split(1):
        model(window_1S)
    for hook in hooks:
        hook.remove()
    return {layer: torch.cat(parts) for layer, parts in seen.items()}
