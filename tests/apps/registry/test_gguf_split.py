"""Whether a GGUF file is a part of a model is told by its own keys: not by its name, and not by a head that is broken."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from jobs.models import Job
from moe_core.checkpoint.gguf_header import read_head
from moe_core.checkpoint.gguf_parts import part_of as core_part_of
from registry.gguf_split import MAX_KEYS, Part, part_of
from registry.models import Upload
from tests.apps.registry.gguf_files import write_gguf
from tests.people import People

PART_NAME, WHOLE_NAME = "m-00001-of-00003.gguf", "m.gguf"


@pytest.mark.parametrize(
    ("number", "count", "expected"),
    [
        (0, 3, Part(1, 3)),
        (2, 3, Part(3, 3)),
        (0, 0, None),  # as llama-gguf-split --merge leaves it
        (0, 1, None),
        (None, None, None),
        (None, 2, Part(1, 2)),
    ],
)
def test_it_is_the_part_that_its_keys_say_and_as_moe_core_reads_them(
    tmp_path: Path, number: int | None, count: int | None, expected: Part | None
) -> None:
    path = tmp_path / "m.gguf"
    body = write_gguf(path, number=number, count=count)
    file = BytesIO(body)
    file.seek(17)
    assert part_of(file) == expected
    assert file.tell() == 0
    with path.open("rb") as opened:
        core = core_part_of(read_head(opened, "m.gguf"), "m.gguf")
    assert expected == (core and Part(core.number, core.count))


def test_a_head_that_ends_too_early_is_no_part(tmp_path: Path) -> None:
    body = write_gguf(tmp_path / "m.gguf", number=1, count=3)
    needed = body.index(b"split.count") + len("split.count") + 4 + 2
    assert part_of(BytesIO(body[:needed])) == Part(2, 3)
    for length in (*range(0, needed, 97), needed - 1):
        assert part_of(BytesIO(body[:length])) is None


ONE_KEY = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)


@pytest.mark.parametrize(
    "body",
    [
        b"GGUF" + struct.pack(">IQQ", 3, 0, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 0, MAX_KEYS + 1),
        ONE_KEY + struct.pack("<Q", 2**64 - 1),
        ONE_KEY + struct.pack("<Q1sIQ", 1, b"k", 8, 2**63),
        ONE_KEY + struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 2**62),
        ONE_KEY + struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1) + bytes(64),
        ONE_KEY + struct.pack("<Q1sIIQ", 1, b"k", 9, 12, 2**25),
        ONE_KEY + struct.pack("<Q1sI", 1, b"k", 99) + bytes(64),
        ONE_KEY + struct.pack("<Q11sIf", 11, b"split.count", 6, 3.0),
    ],
)
def test_hostile_lengths_and_types_are_no_part(body: bytes) -> None:
    assert part_of(BytesIO(body)) is None


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "count", "status"), [(PART_NAME, 0, 302), (PART_NAME, 3, 422), (WHOLE_NAME, 3, 422)]
)
def test_the_page_takes_what_is_whole_and_refuses_what_is_a_part(
    people: People, tmp_path: Path, name: str, count: int, status: int
) -> None:
    body = write_gguf(tmp_path / "m.gguf", number=0, count=count)
    reply = people.client("owner").post(
        reverse("registry:upload"),
        {"file": SimpleUploadedFile(name, body)},
        headers={"accept": "application/json"},
    )
    assert reply.status_code == status
    assert Upload.objects.exists() == (status == 302)
    if status == 302:
        assert Upload.objects.get().size_bytes == len(body)
    else:
        assert f"{name} is part 1 of 3 of a model. Join the parts" in reply.json()["detail"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "count", "status"), [(PART_NAME, 0, 202), (PART_NAME, 3, 422), (WHOLE_NAME, 3, 422)]
)
def test_a_job_imports_what_is_whole_and_refuses_what_is_a_part(
    people: People, tmp_path: Path, name: str, count: int, status: int
) -> None:
    body = write_gguf(tmp_path / "m.gguf", number=0, count=count)
    client = people.client("owner")
    sent = client.post(
        f"/api/v1/uploads/?filename={name}", body, content_type="application/octet-stream"
    ).json()
    spec = {"name": "m", "source": {"kind": "upload", "id": sent["id"]}}
    reply = client.post("/api/v1/jobs/", {"kind": "import", "spec": spec}, content_type="application/json")
    assert reply.status_code == status, reply.content
    assert Job.objects.exists() == (status == 202)
