"""A start from mapped panels says the same as one from the model's files, and anything odd about them is packed anew."""

from __future__ import annotations

import json
import mmap
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import moe_core
from moe_core.checkpoint.hashes import hashes_of
from moe_core.engine import panel_cache
from moe_core.engine.engine import Engine
from moe_core.engine.loading import build_engine
from moe_core.engine.panel_cache import SUFFIX, PanelCache
from moe_core.errors import HashMismatch
from moe_core.kernels.cpu import panel_file, panel_pieces
from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.panel_footer import TAIL_BYTES
from moe_core.kernels.cpu.panels import Panels
from moe_core.model.init import random_decoder
from moe_core.operations.quantise import quantise
from moe_core.spec import ServeSpec
from moe_core.spec.operations import QuantiseSpec
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.engine.conftest import Run
from tests.moe_core.engine.model_dirs import NUM_TOKENS, tiny_model, write_byte_tokenizer, write_model_dir
from tests.moe_core.tiny import STD, tiny_family

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled")
PROMPT = list(b"the same words")
# Latents, and biases of experts beside their panels.
FAMILIES = ("deepseek_v3", "gpt_oss")


@pytest.fixture(scope="module", params=["bfloat16", "4 bits", "8 bits", "dense", *FAMILIES])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    if request.param == "dense":
        write_model_dir(path, tiny_model(family="llama", moe=None))
    elif request.param in FAMILIES:
        longer = {"vocab_size": NUM_TOKENS, "max_position_embeddings": 2048}
        spec = tiny_family(request.param).model_copy(update=longer)
        write_model_dir(path, random_decoder(spec, 3, STD))
    elif request.param == "bfloat16":
        write_model_dir(path, tiny_model(tie_word_embeddings=True))
    else:
        packing = ExpertQuantSpec.parse({"bits": int(request.param[0]), "group_size": 32})
        packed, _ = quantise(tiny_model(), QuantiseSpec(quantisation=packing))
        moe_core.save(packed, path)
        write_byte_tokenizer(path)
    return path


def spec_of(model_dir: Path, panels: Path, **more: Any) -> ServeSpec:
    told = {
        "socket_path": Path("none"),
        "kv_tokens": 1024,
        "files": hashes_of(model_dir),
        "panel_dir": panels,
    }
    return ServeSpec(model_dir=model_dir, **(told | more))


def start(spec: ServeSpec) -> tuple[Engine, PanelCache]:
    """An engine as the server starts it, and its panel file when that is written."""
    cache = PanelCache.of(spec)
    assert cache is not None
    engine, _ = build_engine(spec, lambda state: None, cache)
    if cache.writer is not None:
        deadline = time.monotonic() + 20
        while not (files := list(cache._path.parent.glob(f"*{SUFFIX}"))) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert files
    return engine, cache


def answer(engine: Engine) -> list[int]:
    run = Run(engine)
    greedy = run.submit(PROMPT, 12, ignore_eos=True)
    drawn = run.submit(PROMPT, 12, ignore_eos=True, temperature=2.0, seed=5)
    run.until_done()
    return run.tokens[greedy.id] + run.tokens[drawn.id]


def stacks_of(engine: Engine) -> list[Panels]:
    held = [m.panels for m in engine.runner.model.modules() if hasattr(m, "panels")]
    # Experts and latents hold two.
    parts = [
        [one] if isinstance(one, Panels) else [getattr(one, f.name) for f in fields(one)] for one in held
    ]
    return [panels for part in parts for panels in part]


def regions_of(file: Path) -> list[tuple[int, int]]:
    """Where a file is mapped in this process."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(f"/{file.name}"):
            begin, _, end = line.split()[0].partition("-")
            found.append((int(begin, 16), int(end, 16)))
    return found


@pytest.mark.parametrize(("shared", "huge"), [(False, False), (False, True), (True, False)])
def test_panels_are_mapped_where_they_are_shared_or_huge_in_the_page_cache_and_else_read(
    model_dir: Path, tmp_path: Path, shared: bool, huge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel_file, "lies_in_huge_pages", lambda memory: huge)
    kept: list[mmap.mmap] = []
    monkeypatch.setattr(panel_file, "keep", kept.append)
    spec = spec_of(model_dir, tmp_path, shares_panels=shared, num_threads=2)
    wanted = answer(start(spec)[0])
    # Of the second start alone: the first one's pages may be mapped still.
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    copy = file.with_name(f"copy{SUFFIX}")
    copy.write_bytes(file.read_bytes())
    copy.rename(file)
    before = regions_of(file)
    engine, cache = start(spec)
    assert cache.reader is not None
    mapped = [one for one in regions_of(file) if one not in before]
    # Before the first answer, and for good: no thread copies anything while requests are answered.
    assert stacks_of(engine)
    for one in stacks_of(engine):
        assert any(begin <= one.struct.memory < end for begin, end in mapped) == (shared or huge)
    # What a process has for itself the kernel does not take back, and what is mapped in place of that neither.
    assert bool(kept) == huge
    assert answer(engine) == wanted


@pytest.mark.parametrize("shared", [False, True])
def test_a_first_start_packs_where_the_panels_stay(model_dir: Path, tmp_path: Path, shared: bool) -> None:
    spec = spec_of(model_dir, tmp_path, shares_panels=shared)
    cache = PanelCache.of(spec)
    assert cache is not None and cache.writer is not None
    engine, _ = build_engine(spec, lambda state: None, cache)
    before = [one.struct.memory for one in stacks_of(engine)]
    mapped = [(panel_file.address_of(memory), len(memory)) for memory in cache.writer._mapped]
    for address in before:
        assert any(base <= address < base + size for base, size in mapped) == shared
    wanted = answer(engine)
    until_there(cache._path)
    assert [one.struct.memory for one in stacks_of(engine)] == before
    assert answer(engine) == wanted == answer(start(spec)[0])


def until_there(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert file.exists()


def test_a_file_that_ends_while_it_is_read_is_packed_anew(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(model_dir, tmp_path)
    wanted = answer(start(spec)[0])
    read = os.preadv

    def ends(file: int, pieces: list[memoryview], start: int) -> int:
        is_panels = os.readlink(f"/proc/self/fd/{file}").endswith(SUFFIX)
        return 0 if is_panels else read(file, pieces, start)

    monkeypatch.setattr(panel_file.os, "preadv", ends)
    engine, cache = start(spec)
    assert cache.reader is None
    assert answer(engine) == wanted


def test_a_mapped_file_that_cannot_be_read_is_packed_anew(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Touching it would end the process."""
    spec = spec_of(model_dir, tmp_path, shares_panels=True)
    wanted = answer(start(spec)[0])

    def broken(memory: mmap.mmap, start: int, num_bytes: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(panel_pieces, "fetch", broken)
    cache = PanelCache.of(spec)
    assert cache is not None and cache.reader is not None
    engine, _ = build_engine(spec, lambda state: None, cache)
    assert cache.reader is None
    assert answer(engine) == wanted


@pytest.mark.parametrize("huge", [False, True])
def test_files_of_several_pieces_are_read_whole(
    model_dir: Path, tmp_path: Path, huge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel_file, "lies_in_huge_pages", lambda memory: huge)
    monkeypatch.setattr(panel_pieces, "PIECE_BYTES", 5000)
    spec = spec_of(model_dir, tmp_path, num_threads=3)
    wanted = answer(start(spec)[0])
    engine, cache = start(spec)
    assert cache.reader is not None
    assert answer(engine) == wanted
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    damage(file, 12_000)
    assert start(spec)[1].reader is None


def test_a_start_from_panels_reads_no_weights_and_says_the_same(model_dir: Path, tmp_path: Path) -> None:
    spec = spec_of(model_dir, tmp_path)
    plain, _ = build_engine(spec.model_copy(update={"panel_dir": None}), lambda state: None)
    first, cache = start(spec)
    assert cache.reader is None
    hidden = tmp_path / "weights"
    hidden.mkdir()
    for file in model_dir.glob("*.safetensors"):
        file.rename(hidden / file.name)
    try:
        second, cache = start(spec)
    finally:
        for file in hidden.iterdir():
            file.rename(model_dir / file.name)
    assert cache.reader is not None
    assert cache.writer is None
    assert answer(plain) == answer(first) == answer(second)


def damage(path: Path, where: int) -> None:
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("where", [0, 5000, -1, -TAIL_BYTES, -TAIL_BYTES - 2, -TAIL_BYTES - 200])
def test_a_damaged_file_is_packed_anew(model_dir: Path, tmp_path: Path, where: int) -> None:
    spec = spec_of(model_dir, tmp_path)
    wanted = answer(start(spec)[0])
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    whole = file.read_bytes()
    damage(file, where)
    engine, cache = start(spec)
    assert cache.reader is None
    assert answer(engine) == wanted
    until_equal(file, whole)
    assert start(spec)[1].reader is not None


def until_equal(file: Path, wanted: bytes) -> None:
    deadline = time.monotonic() + 20
    while not (file.exists() and file.read_bytes() == wanted) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert file.read_bytes() == wanted


def test_a_short_file_is_packed_anew(model_dir: Path, tmp_path: Path) -> None:
    spec = spec_of(model_dir, tmp_path)
    start(spec)
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    whole = file.read_bytes()
    for size in (0, 10, 5000):
        # Not the file that is mapped: that one stays whole for as long as it is read.
        file.unlink()
        file.write_bytes(whole[:size])
        assert start(spec)[1].reader is None
        until_equal(file, whole)


def test_other_bytes_other_code_and_other_dtypes_have_other_files(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(model_dir, tmp_path)
    start(spec)
    other = spec.model_copy(update={"files": {**spec.files, "config.json": "0" * 64}})
    assert PanelCache.of(other).reader is None  # type: ignore[union-attr]
    assert PanelCache.of(spec_of(model_dir, tmp_path, dtype="float32")) is None
    assert PanelCache.of(spec_of(model_dir, tmp_path, files={})) is None
    assert PanelCache.of(spec).reader is not None  # type: ignore[union-attr]
    monkeypatch.setattr(panel_cache, "code_digest", lambda: "other")
    assert PanelCache.of(spec).reader is None  # type: ignore[union-attr]


def test_the_small_files_that_are_still_read_are_still_checked(tmp_path: Path) -> None:
    model_dir = tmp_path / "tiny"
    write_model_dir(model_dir, tiny_model())
    spec = spec_of(model_dir, tmp_path / "panels")
    start(spec)
    config = model_dir / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"add_bos_token": False}))
    with pytest.raises(HashMismatch):
        start(spec)


def test_a_full_disk_leaves_the_engine_running_and_no_file(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = answer(build_engine(spec_of(model_dir, tmp_path, panel_dir=None), lambda state: None)[0])
    calls: list[int] = []
    allocate = os.posix_fallocate

    def full(file: int, offset: int, size: int) -> None:
        calls.append(size)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        allocate(file, offset, size)

    monkeypatch.setattr(panel_file.os, "posix_fallocate", full)
    spec = spec_of(model_dir, tmp_path)
    cache = PanelCache.of(spec)
    engine, _ = build_engine(spec, lambda state: None, cache)
    assert answer(engine) == wanted
    deadline = time.monotonic() + 20
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_ends_early_leaves_no_file_that_is_not_whole(tmp_path: Path) -> None:
    model_dir = tmp_path / "tiny"
    write_model_dir(model_dir, tiny_model())
    spec = spec_of(model_dir, tmp_path / "panels")
    cache = PanelCache.of(spec)
    assert cache is not None and cache.writer is not None
    assert cache.writer.place("panels", 100)
    assert list((tmp_path / "panels").iterdir())
    cache.close()
    assert not list((tmp_path / "panels").iterdir())
    assert not cache.writer.finish()
