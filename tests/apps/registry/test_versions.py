"""Versions never change; aliases move; uploads are told by their bytes."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import DatabaseError, connection, transaction

from accounts.models import AuditEvent
from common.errors import Forbidden, Invalid, NotFound
from registry import services, store
from registry.models import ModelVersion, Upload
from registry.selectors import ancestors, dense_versions, moe_versions, version_get
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    "change",
    [{"spec": {}}, {"files": {}}, {"number": 9}, {"report": {"loss": 0}}, {"lineage": {"job": 1}}, {"size_bytes": 0}],
    ids=lambda change: next(iter(change)),
)
def test_a_version_refuses_to_be_changed(people, tmp_path, change):
    version = make_version(people, tmp_path)
    with pytest.raises(DatabaseError, match="immutable"), transaction.atomic():
        ModelVersion.objects.filter(pk=version.pk).update(**change)


def test_a_remark_may_be_changed_and_is_audited(people, tmp_path):
    version = make_version(people, tmp_path)
    assert services.version_note_set(caller=people.owner, version_id=version.pk, note="good").note == "good"
    assert AuditEvent.objects.filter(action="version.noted", team=people.owner.team).exists()


@pytest.mark.django_db(transaction=True)
def test_versions_made_at_once_get_numbers_without_gaps(people, tmp_path):
    first = make_version(people, tmp_path)

    def make(_number):
        try:
            return services.version_create(
                caller_team=people.owner.team, model=first.model, spec=first.spec, inspection={}, files=first.files
            ).number
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(make, range(6))) == [2, 3, 4, 5, 6, 7]


def test_a_version_cannot_name_bytes_that_are_not_there(people, tmp_path):
    first = make_version(people, tmp_path)
    files = {"config.json": {"sha256": "0" * 64, "bytes": 1}}
    with pytest.raises(NotFound):
        services.version_create(
            caller_team=people.owner.team, model=first.model, spec=first.spec, inspection={}, files=files
        )


def test_a_version_of_another_team_is_no_parent_and_no_target(people, tmp_path):
    mine, theirs = make_version(people, tmp_path), make_version(people, tmp_path, who="outsider")
    with pytest.raises(NotFound):
        services.version_create(
            caller_team=people.owner.team,
            model=mine.model,
            spec=mine.spec,
            inspection={},
            files=mine.files,
            parent=theirs,
        )
    with pytest.raises(NotFound):
        services.alias_set(caller=people.owner, model_id=mine.model_id, name="champion", version_id=theirs.pk)
    with pytest.raises(NotFound):
        version_get(people.owner.team, theirs.pk)


def test_damaged_bytes_mark_a_version_and_sound_ones_clear_it(people, tmp_path):
    version = make_version(people, tmp_path)
    path = store.path_of(version.files["config.json"]["sha256"])
    sound = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(sound + b" ")
    assert services.version_verify(caller=people.owner, version_id=version.pk).state == "failed"
    assert AuditEvent.objects.get(action="version.verified").detail["damaged"] == ["config.json"]
    path.write_bytes(sound)
    assert services.version_verify(caller=people.owner, version_id=version.pk).state == "ready"


def test_an_alias_moves_and_goes(people, tmp_path):
    first, second = make_version(people, tmp_path), make_version(people, tmp_path)
    assert (first.model_id, second.number) == (second.model_id, 2)
    for version in (first, second):
        services.alias_set(
            caller=people.owner, model_id=first.model_id, name="champion", version_id=version.pk
        )
    assert first.model.aliases.get().version == second
    services.alias_remove(caller=people.owner, model_id=first.model_id, name="champion")
    assert not first.model.aliases.exists()
    with pytest.raises(Invalid):
        services.alias_set(caller=people.owner, model_id=first.model_id, name="../x", version_id=first.pk)


def test_the_line_of_a_version_runs_from_its_first_ancestor(people, tmp_path):
    dense = make_version(people, tmp_path)
    mixture = make_version(people, tmp_path, spec=moe_spec(), parent=dense)
    assert ancestors(version_get(people.owner.team, mixture.pk)) == [dense, mixture]
    assert list(dense_versions(people.owner.team)) == [dense]
    assert list(moe_versions(people.owner.team)) == [mixture]
    assert (mixture.num_experts, dense.num_experts) == (8, 0)


def zipped() -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("../evil", "x")
    return whole.getvalue()


HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
SAFETENSORS = struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 4


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"a": 1}, protocol=2),
        zipped(),
        gzip.compress(b"[]"),
        b"\x89HDF\r\n\x1a\n" + b"\0" * 50,
        b"\x7fELF" + b"\0" * 60,
        b"x" * 257 + b"ustar" + b"\0" * 300,
        b"hello",
        b"",
    ],
    ids=["pickle", "zip", "gzip", "hdf", "elf", "tar", "text", "nothing"],
)
@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "logs.jsonl"])
def test_what_can_carry_code_is_refused_whatever_its_name(people, store_dir, data, name):
    if name == "logs.jsonl" and data in (b"hello", b""):
        pytest.skip("plain text in a text file is for the reader to judge")
    with pytest.raises(Invalid) as found:
        services.upload_create(caller=people.owner, name=name, source=io.BytesIO(data))
    assert found.value.code in {"refused_format", "unknown_format"}
    assert not [path for path in store_dir.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("whatever.bin", b"GGUF" + b"\0" * 40, "gguf"),
        ("whatever.bin", SAFETENSORS, "safetensors"),
        ("128.safetensors", struct.pack("<Q", 128) + b"{" + b" " * 127, "safetensors"),
        ("logs.JSONL", b'{"messages": []}\n', "jsonl"),
        ("PK.csv", b"PK,user,assistant\n", "csv"),
        ("带名字.csv", "用户,回答\n".encode(), "csv"),
        ("tokenizer.json", b"{}", "json"),
    ],
)
def test_a_kind_is_told_from_the_bytes(people, name, data, kind):
    upload = services.upload_create(caller=people.owner, name=name, source=io.BytesIO(data))
    assert (upload.kind, upload.name, upload.size_bytes) == (kind, name, len(data))


@pytest.mark.parametrize("name", ["../../etc/passwd.csv", "C:\\x\\logs.csv", "a\x00\u202eb.csv", "/abs.csv"])
def test_a_name_is_only_ever_shown(people, store_dir, name):
    upload = services.upload_create(caller=people.owner, name=name, source=io.BytesIO(b"user,assistant\n"))
    assert not set(upload.name) & set("/\\\x00\u202e")
    assert [path.name for path in store_dir.rglob("*") if path.is_file()] == [upload.artifact_id]


def test_viewers_write_nothing(people, tmp_path):
    version = make_version(people, tmp_path)
    for act in (
        lambda caller: services.version_note_set(caller=caller, version_id=version.pk, note="x"),
        lambda caller: services.version_verify(caller=caller, version_id=version.pk),
        lambda caller: services.alias_set(
            caller=caller, model_id=version.model_id, name="champion", version_id=version.pk
        ),
        lambda caller: services.model_edit(caller=caller, model_id=version.model_id, name="x"),
        lambda caller: services.upload_create(caller=caller, name="x.csv", source=io.BytesIO(b"a,b")),
    ):
        with pytest.raises(Forbidden):
            act(people.teammate)
    assert not Upload.objects.exists()
