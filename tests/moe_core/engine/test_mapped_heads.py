"""A panel file says of its model what config.json does not: whether the head is the embedding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_core.engine.panel_cache import SUFFIX
from moe_core.kernels.cpu.native import library
from tests.moe_core.engine.model_dirs import tiny_model, write_model_dir
from tests.moe_core.engine.test_panel_cache import answer, spec_of, start, until_equal

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled")


@pytest.mark.parametrize("weights", ["stored", "int8"])
@pytest.mark.parametrize("differs", [False, True])
def test_a_head_that_the_files_hold_beside_a_tied_embedding_is_mapped(
    tmp_path: Path, weights: str, differs: bool
) -> None:
    """config.json says that it is tied; only the weights tell whether it is the embedding again."""
    model = tiny_model()
    if not differs:
        model.head_weight_VD.data.copy_(model.embed_tokens.weight)
    write_model_dir(tmp_path / "tiny", model)
    config = tmp_path / "tiny" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    spec = spec_of(tmp_path / "tiny", tmp_path / "panels", weights=weights)
    first, _ = start(spec)
    assert first.runner.model.spec.tie_word_embeddings == (weights == "stored" and not differs)
    second, cache = start(spec)
    assert cache.reader is not None
    assert second.runner.model.spec == first.runner.model.spec
    assert answer(second) == answer(first)


def test_a_file_that_says_of_its_model_what_is_neither_true_nor_false_is_packed_anew(tmp_path: Path) -> None:
    write_model_dir(tmp_path / "tiny", tiny_model())
    spec = spec_of(tmp_path / "tiny", tmp_path / "panels")
    start(spec)
    (file,) = (tmp_path / "panels").glob(f"*{SUFFIX}")
    whole = file.read_bytes()
    assert whole.count(b'{"tie_word_embeddings":false}') == 1
    for facts in (b'{"tie_word_embeddings":11111}', b'["tie_word_embeddings",false]', b"1".ljust(29)):
        file.unlink()
        file.write_bytes(whole.replace(b'{"tie_word_embeddings":false}', facts))
        assert start(spec)[1].reader is None
        until_equal(file, whole)
