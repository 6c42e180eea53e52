"""A panel file with one wrong bit, wherever it is: it is packed anew with a warning, and no answer is another."""

from __future__ import annotations

import json
import logging
import random
import threading
from pathlib import Path

import pytest

from moe_core.checkpoint.hashes import hashes_of
from moe_core.engine.loading import build_engine
from moe_core.engine.panel_cache import SUFFIX, PanelCache
from moe_core.kernels.cpu import panel_file
from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.panel_file import PanelReader, PanelWriter
from moe_core.kernels.cpu.panel_footer import MARK, TAIL_BYTES, Footer, PanelFileError, read_footer
from moe_core.kernels.cpu.shelf import PAGE_BYTES
from moe_core.spec import ServeSpec
from tests.moe_core.engine.conftest import Run
from tests.moe_core.engine.model_dirs import tiny_model, write_model_dir

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled")
KEY = "a" * 64
OLD_MARK = b"TURNOUT2"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ServeSpec:
    folder = tmp_path_factory.mktemp("damage")
    write_model_dir(folder / "tiny", tiny_model())
    return ServeSpec(
        model_dir=folder / "tiny",
        socket_path=Path("none"),
        kv_tokens=1024,
        files=hashes_of(folder / "tiny"),
        panel_dir=folder / "panels",
    )


@pytest.fixture(scope="module")
def sound(spec: ServeSpec) -> tuple[Path, bytes, list[int]]:
    """The model's panel file, its bytes, and the answer of who wrote it."""
    tokens, cache = start(spec)
    assert cache.writer is not None
    return cache._path, cache._path.read_bytes(), tokens


def start(spec: ServeSpec) -> tuple[list[int], PanelCache]:
    """An answer of an engine that was started as the server does, and its panels, which are written by now."""
    cache = PanelCache.of(spec)
    assert cache is not None
    run = Run(build_engine(spec, lambda state: None, cache)[0])
    one = run.submit(list(b"the same words"), 12, ignore_eos=True)
    run.until_done()
    for thread in threading.enumerate():
        if thread.name == "panel-file":
            thread.join(30)
    return run.tokens[one.id], cache


def put(path: Path, data: bytes) -> None:
    """In place of the file, whose pages may still be mapped."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def footer_of(path: Path) -> tuple[Footer, int]:
    """What it says, and where it begins."""
    with path.open("rb") as file:
        return read_footer(file.fileno())


def flipped(data: bytes, bit: int) -> bytes:
    made = bytearray(data)
    made[bit // 8] ^= 1 << bit % 8
    return bytes(made)


def small_file(path: Path) -> bytes:
    """Two sections and two tensors in four pages, as a writer leaves them."""
    writer = PanelWriter(path, KEY, shared=True)
    for what, size in (("experts", 300), ("head", 40)):
        place = writer.place(what, size)
        assert place is not None
        place.memory[:size] = bytes(number % 251 for number in range(size))
    writer.add_tensor("norm.weight", "bfloat16", (8,), memoryview(bytes(range(16))))
    writer.add_tensor("bias", "float32", (2, 2), memoryview(bytes(range(16, 32))))
    writer.facts["tie_word_embeddings"] = True
    assert writer.finish()
    return path.read_bytes()


def read_whole(path: Path) -> PanelReader:
    reader = PanelReader(path, KEY, shared=True)
    for what, size in (("experts", 300), ("head", 40)):
        reader.place(what, size)
    reader.verify()
    return reader


def test_no_bit_of_the_footer_is_believed_before_all_of_them_are_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"small{SUFFIX}"
    data = small_file(path)
    read_whole(path)
    monkeypatch.setattr(panel_file, "map_file", None)
    body_bytes = 4 * PAGE_BYTES
    assert len(data) > body_bytes + 400
    for bit in range(8 * body_bytes, 8 * len(data)):
        put(path, flipped(data, bit))
        with pytest.raises(PanelFileError):
            PanelReader(path, KEY, shared=True)


def test_every_byte_of_the_body_is_under_the_digest(tmp_path: Path) -> None:
    path = tmp_path / f"small{SUFFIX}"
    data = small_file(path)
    choice = random.Random(3)
    for page in range(4):
        for byte in [*range(16), *choice.sample(range(PAGE_BYTES), 60)]:
            put(path, flipped(data, 8 * (page * PAGE_BYTES + byte) + choice.randrange(8)))
            with pytest.raises(PanelFileError, match="damaged"):
                read_whole(path)


def bits_of(data: bytes, path: Path) -> dict[str, int]:
    """A bit of each kind of thing that a panel file holds."""
    footer, body_bytes = footer_of(path)
    told, choice = data[body_bytes:-TAIL_BYTES], random.Random(7)
    norm, panels = footer.tensors[1], footer.sections[1]

    def inside(start: int, size: int) -> int:
        return 8 * (start + choice.randrange(size)) + choice.randrange(8)

    def of_text(part: str) -> int:
        assert told.count(part.encode()) >= 1, part
        return inside(body_bytes + told.index(part.encode()), len(part))

    # The second bit of a digit makes another digit of most.
    digit = told.index(f'"start":{norm.start},'.encode()) + len('"start":')
    return {
        "panels": inside(panels.start, panels.bytes),
        "a tensor": inside(norm.start, norm.bytes),
        "a gap": inside(norm.start + norm.bytes, -norm.bytes % PAGE_BYTES),
        "a start": 8 * (body_bytes + digit) + 1,
        "a name": of_text(norm.name),
        "a key of JSON": of_text('"name"'),
        "a dtype": of_text("bfloat16"),
        "a kind": of_text(panels.what),
        "the digest": of_text(footer.digest),
        "the key": of_text(footer.key),
        "a fact": of_text("tie_word_embeddings"),
        "its checksum": inside(len(data) - TAIL_BYTES, 32),
        "its length": inside(len(data) - len(MARK) - 8, 8),
        "the mark": inside(len(data) - len(MARK), len(MARK)),
    }


@pytest.mark.parametrize("shared", [False, True])
def test_one_wrong_bit_anywhere_changes_no_answer_and_fails_no_start(
    spec: ServeSpec, sound: tuple[Path, bytes, list[int]], shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path, data, wanted = sound
    put(path, data)
    spec = spec.model_copy(update={"shares_panels": shared})
    for what, bit in bits_of(data, path).items():
        put(path, flipped(data, bit))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            tokens, cache = start(spec)
        assert tokens == wanted, what
        assert cache.reader is None, what
        assert f"the panel file {path.name} is not used" in caplog.text, what
        assert path.read_bytes() == data, what
    tokens, cache = start(spec)
    assert tokens == wanted
    assert cache.reader is not None


def test_another_place_for_a_tensor_is_not_taken_for_its_own(
    spec: ServeSpec, sound: tuple[Path, bytes, list[int]]
) -> None:
    """All of the footer is well formed, and every place within the body."""
    path, data, wanted = sound
    put(path, data)
    _, body_bytes = footer_of(path)
    told = json.loads(data[body_bytes:-TAIL_BYTES])
    norms = [one for one in told["tensors"] if one["name"].endswith("norm.weight")]
    norms[0]["start"], norms[1]["start"] = norms[1]["start"], norms[0]["start"]
    moved = json.dumps(told, separators=(",", ":")).encode()
    assert len(moved) == len(data) - body_bytes - TAIL_BYTES
    put(path, data[:body_bytes] + moved + data[-TAIL_BYTES:])
    tokens, cache = start(spec)
    assert tokens == wanted
    assert cache.reader is None


def test_a_file_of_the_former_format_is_packed_anew(
    spec: ServeSpec, sound: tuple[Path, bytes, list[int]]
) -> None:
    path, data, wanted = sound
    put(path, data)
    _, body_bytes = footer_of(path)
    told = data[body_bytes:-TAIL_BYTES]
    put(path, data[:body_bytes] + told + len(told).to_bytes(8, "little") + OLD_MARK)
    tokens, cache = start(spec)
    assert tokens == wanted
    assert cache.reader is None


@pytest.mark.parametrize(
    "change", [{"name": "nobody.weight"}, {"dtype": "float16"}, {"shape": (3,)}, {"bytes": 4}]
)
def test_a_footer_of_another_model_is_refused_though_its_checksum_is_right(
    spec: ServeSpec, sound: tuple[Path, bytes, list[int]], change: dict[str, object]
) -> None:
    path, data, wanted = sound
    put(path, data)
    footer, body_bytes = footer_of(path)
    first, *others = footer.tensors
    other = footer.model_copy(update={"tensors": (first.model_copy(update=change), *others)})
    put(path, data[:body_bytes] + other.to_bytes())
    tokens, cache = start(spec)
    assert tokens == wanted
    assert cache.reader is None


def test_a_footer_says_again_what_it_was_told(tmp_path: Path) -> None:
    path = tmp_path / f"small{SUFFIX}"
    data = small_file(path)
    footer, body_bytes = footer_of(path)
    assert isinstance(footer, Footer)
    assert data[body_bytes:] == footer.to_bytes()
    assert [(one.what, one.bytes) for one in footer.sections] == [("0:experts", 300), ("1:head", 40)]
    assert [(one.name, one.shape) for one in footer.tensors] == [("norm.weight", (8,)), ("bias", (2, 2))]
