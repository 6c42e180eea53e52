"""Models whose GGUF file was cut into parts: read whole from any part, and what is missing is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest
import torch

import moe_core
from moe_core.checkpoint.gguf import describe_gguf, import_gguf
from moe_core.errors import CheckpointError, FormatError
from tests.moe_core.checkpoint.gguf_models import write_gguf
from tests.moe_core.model.hf_families import reference

COUNT = 3
Key = tuple[str, int, gguf.GGUFValueType]
IDS = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(3))
UINT16, INT32 = gguf.GGUFValueType.UINT16, gguf.GGUFValueType.INT32


def part_path(directory: Path, number: int, count: int = COUNT) -> Path:
    return directory / f"m-{number:05d}-of-{count:05d}.gguf"


def write_part(path: Path, whole: gguf.GGUFReader, names: set[str], split: list[Key], *, told: bool) -> None:
    """Some tensors of a file, as llama-gguf-split writes them: metadata where `told`, and the keys of the part."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in whole.fields.items():
        if told and not key.startswith("GGUF.") and key != "general.architecture":
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
    for key, value, kind in split:
        writer.add_key_value(key, value, kind)
    for tensor in whole.tensors:
        if tensor.name in names:
            writer.add_tensor(tensor.name, tensor.data.copy(), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def split_keys(number: int, num_tensors: int, count: int = COUNT) -> list[Key]:
    return [
        ("split.no", number - 1, UINT16),
        ("split.count", count, UINT16),
        ("split.tensors.count", num_tensors, INT32),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("whole") / "m.gguf", reference("mixtral"))


@pytest.fixture(scope="module")
def cut(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts; the first has the metadata and no tensor, as with --no-tensor-first-split."""
    directory, reader = tmp_path_factory.mktemp("cut"), gguf.GGUFReader(whole)
    names = [tensor.name for tensor in reader.tensors]
    for number, own in ((1, set[str]()), (2, set(names[::2])), (3, set(names[1::2]))):
        write_part(
            part_path(directory, number), reader, own, split_keys(number, len(names)), told=number == 1
        )
    return directory


@pytest.fixture
def parts(cut: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cut, tmp_path / "parts"))


@torch.no_grad()
@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_part_loads_the_whole_model(number: int, whole: Path, cut: Path) -> None:
    expected, found = moe_core.load(whole), moe_core.load(part_path(cut, number))
    assert found.spec == expected.spec
    assert torch.equal(found(IDS), expected(IDS))


def test_parts_are_imported_and_described_as_the_whole(whole: Path, cut: Path, tmp_path: Path) -> None:
    assert describe_gguf(part_path(cut, 2)) == describe_gguf(whole)
    import_gguf(whole, tmp_path / "a", dtype="float32")
    import_gguf(part_path(cut, 2), tmp_path / "b", dtype="float32")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_joined_file_says_that_it_has_no_parts(whole: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(whole)
    names = {tensor.name for tensor in reader.tensors}
    write_part(tmp_path / "m.gguf", reader, names, split_keys(1, len(names), 0), told=True)
    assert moe_core.load(tmp_path / "m.gguf").spec == moe_core.load(whole).spec


@pytest.mark.parametrize("named", [1, 2])
def test_a_missing_part_is_told_by_its_name(named: int, parts: Path) -> None:
    part_path(parts, 3).unlink()
    with pytest.raises(FormatError, match=r"m-00003-of-00003\.gguf is missing, part 3 of 3") as raised:
        moe_core.load(part_path(parts, named))
    assert raised.value.reason == "gguf_part_missing"


def test_an_import_follows_no_link_to_another_part(parts: Path, tmp_path: Path) -> None:
    outside = part_path(parts, 3).rename(tmp_path / "outside.gguf")
    part_path(parts, 3).symlink_to(outside)
    assert moe_core.load(part_path(parts, 1)).spec.family == "mixtral"
    for read in (describe_gguf, lambda path: import_gguf(path, tmp_path / "out")):
        with pytest.raises(
            CheckpointError, match=r"m-00003-of-00003\.gguf: cannot be opened .*copy the file"
        ):
            read(part_path(parts, 1))


def test_a_part_of_another_name_says_that_it_is_one(parts: Path) -> None:
    alone = part_path(parts, 2).rename(parts / "source.gguf")
    with pytest.raises(
        FormatError, match=r"source\.gguf is part 2 of 3 of a model.*llama-gguf-split --merge"
    ):
        moe_core.load(alone)


def test_parts_of_other_models_are_refused(parts: Path, whole: Path) -> None:
    shutil.copy(part_path(parts, 2), part_path(parts, 3))
    with pytest.raises(FormatError, match=r"is part 2 of 3 by its keys .*, but part 3 of 3 by its name"):
        moe_core.load(part_path(parts, 1))
    with pytest.raises(FormatError, match=r"is part 2 of 3 by its keys .*, but part 3 of 3 by its name"):
        moe_core.load(part_path(parts, 3))
    shutil.copy(whole, part_path(parts, 3))
    with pytest.raises(FormatError, match=r"is a whole model by its keys"):
        moe_core.load(part_path(parts, 1))


@pytest.mark.parametrize(
    ("taken", "sentence"), [(slice(1, 2), "tensors, but"), (slice(None), "in two parts")]
)
def test_parts_that_do_not_add_up_are_refused(taken: slice, sentence: str, parts: Path, whole: Path) -> None:
    reader = gguf.GGUFReader(whole)
    names = [tensor.name for tensor in reader.tensors]
    keys = split_keys(3, len(names))
    part_path(parts, 3).unlink()
    write_part(
        part_path(parts, 3), reader, set(names[1::2][taken]) if taken.start else set(names), keys, told=False
    )
    with pytest.raises(FormatError, match=sentence):
        moe_core.load(part_path(parts, 2))


@pytest.mark.parametrize(("number", "count"), [(9, 3), (1, 60_000)])
def test_numbers_that_are_none_are_refused(number: int, count: int, whole: Path, tmp_path: Path) -> None:
    path = part_path(tmp_path, 1)
    write_part(path, gguf.GGUFReader(whole), set(), split_keys(number, 5, count), told=True)
    with pytest.raises(FormatError, match=r"split\.no \(8\) must be below|at most 256 parts"):
        moe_core.load(path)
