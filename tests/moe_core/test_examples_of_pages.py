"""The Python examples of the pages do what the pages say."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

import moe_core

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

from tests.moe_core.checkpoint.gguf_files import write_llama  # noqa: E402
from tests.moe_core.checkpoint.test_gguf import checkpoint_of  # noqa: E402
from tests.moe_core.model.hf_families import reference  # noqa: E402
from tests.moe_core.model.test_seq2seq_parity import SWITCH  # noqa: E402
from tests.moe_core.tiny import tiny_llama  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
# Indented by four columns, empty lines between.
BLOCK = re.compile(r"(?m)^(?: {4}\S.*\n(?:(?: {4}.*)?\n)*)+")
IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(5))


def examples(page: str) -> list[str]:
    """The blocks of a page that are Python: those that import or call something of ours."""
    blocks = [dedent(block) for block in BLOCK.findall((DOCS / page).read_text("utf-8"))]
    return [block for block in blocks if "moe_core" in block]


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "<page>", "exec"), names)  # noqa: S102
    return names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_encoder_decoders() -> None:
    torch.manual_seed(1)
    config = transformers.SwitchTransformersConfig(**SWITCH)
    theirs = transformers.SwitchTransformersForConditionalGeneration(config)
    theirs.save_pretrained("switch-base-8")
    loading, teaching = examples("reference/encoder-decoders.md")
    names: dict[str, Any] = {
        "moe_core": moe_core, "input_ids_BS": IDS, "decoder_ids_BT": IDS[:, :4], "labels_BT": IDS[:, 4:],
        "real_BS": torch.ones_like(IDS, dtype=torch.bool), "source_ids": IDS[0].tolist(),
    }  # fmt: skip
    run(loading, names)
    assert names["logits_BTV"].shape == (2, 4, 97)
    assert len(names["tokens"]) == 64
    run(teaching, names)
    assert torch.isfinite(names["losses"].text)
    assert Path("packed/config.json").exists()
    for directory in ("copy", "floats"):
        type(theirs).from_pretrained(directory)


def test_families() -> None:
    loading, importing = examples("reference/families.md")
    reference("qwen3_moe").save_pretrained("some/huggingface/directory")
    names = run(loading, {"moe_core": moe_core, "input_ids_BS": IDS})
    assert names["logits_BSV"].shape == (2, 9, 97)
    assert len(names["answer"]) == 64
    assert moe_core.load("new/directory").spec == names["model"].spec

    Path("new/directory").rename("old")
    write_llama(Path("some/model.gguf"), tiny_llama(), checkpoint_of(tiny_llama())[1])
    run(importing, {})
    assert moe_core.load("new/directory").spec.family == "llama"
    assert Path("new/directory/tokenizer.json").exists()


def test_transformers_on_our_experts(elsewhere: Path) -> None:
    theirs = reference("mixtral")
    theirs.save_pretrained("model")
    (example,) = examples("how-to/use-with-transformers.md")
    ours = run(example, {"path": elsewhere / "model"})["model"]
    assert ours.config._experts_implementation == "turnout"
    with torch.no_grad():
        assert torch.allclose(ours(IDS).logits, theirs(IDS).logits, atol=1e-5)
