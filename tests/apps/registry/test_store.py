"""The store holds complete objects only, once each, and never follows a name from outside."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from common.errors import DomainError, Invalid, NotFound, TooLarge
from common.loops import loops
from moe_core.errors import HashMismatch
from registry import store
from registry.collector import collect
from registry.models import Artifact, ModelVersion
from tests.apps.registry.fixtures import make_version

DATA = os.urandom(3 * store.CHUNK_BYTES + 17)
SHA = hashlib.sha256(DATA).hexdigest()
DAY = timedelta(days=1)


def objects(store_dir):
    return sorted(path for path in store_dir.rglob("*") if path.is_file())


def in_pieces(data, size=70_000):
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.django_db
def test_an_object_lies_under_its_hash_and_cannot_be_written(store_dir):
    artifact = store.put_stream(in_pieces(DATA), sha256=SHA, expected_bytes=len(DATA))
    assert artifact.pk == SHA
    assert artifact.size_bytes == len(DATA)
    assert objects(store_dir) == [store_dir / "objects" / SHA[:2] / SHA[2:4] / SHA]
    assert store.path_of(SHA).read_bytes() == DATA
    assert store.path_of(SHA).stat().st_mode & 0o222 == 0
    store.verify(SHA)


@pytest.mark.django_db(transaction=True)
def test_eight_identical_puts_at_once_make_one_object(store_dir):
    def put(_number):
        try:
            return store.put_stream(in_pieces(DATA)).pk
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(put, range(8))) == {SHA}
    assert len(objects(store_dir)) == 1
    assert Artifact.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("kept", [0, 1, len(DATA) // 2, len(DATA) - 1])
def test_a_truncated_put_leaves_nothing(store_dir, kept):
    with pytest.raises(Invalid) as found:
        store.put_stream(in_pieces(DATA[:kept]), expected_bytes=len(DATA))
    assert found.value.code == "truncated"
    assert objects(store_dir) == []
    assert not Artifact.objects.exists()


@pytest.mark.django_db
def test_a_sender_who_vanishes_leaves_nothing(store_dir):
    def broken():
        yield DATA[:100]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        store.put_stream(broken())
    assert objects(store_dir) == []


@pytest.mark.django_db
def test_bytes_other_than_the_promised_ones_and_too_many_of_them_are_refused(store_dir):
    with pytest.raises(Invalid) as found:
        store.put_stream(in_pieces(DATA), sha256="0" * 64)
    assert found.value.code == "sha256_mismatch"
    with pytest.raises(TooLarge):
        store.put_stream(in_pieces(DATA), max_bytes=len(DATA) - 1)
    assert objects(store_dir) == []


@pytest.mark.django_db
def test_a_flipped_bit_is_found(store_dir):
    path = store.path_of(store.put_stream(in_pieces(DATA)).pk)
    path.chmod(0o644)
    with path.open("r+b") as target:
        target.write(bytes([DATA[0] ^ 1]))
    with pytest.raises(HashMismatch) as found:
        store.verify(SHA)
    assert SHA in str(found.value)


@pytest.mark.django_db
def test_a_symbolic_link_is_not_followed_into_the_store(tmp_path, store_dir):
    secret = tmp_path / "secret"
    secret.write_text("never read")
    link = tmp_path / "link"
    link.symlink_to(secret)
    with pytest.raises(OSError):
        store.put_file(link)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(Invalid):
        store.ingest(folder)
    assert objects(store_dir) == []


NAMES = st.one_of(
    st.sampled_from(["..", ".", "", "/etc/passwd", "a/b", "a\\b", "%2e%2e", "x\0y", "//", "file:///x", "․․", "a\n"]),
    st.just("x" * 4096),
    st.text(max_size=40),
)


@given(name=NAMES)
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_name_that_could_leave_its_directory_is_refused(name, tmp_path):
    try:
        checked = store.checked_name(name)
    except Invalid:
        return
    assert os.path.dirname(os.path.abspath(tmp_path / checked)) == str(tmp_path)
    assert checked not in {".", ".."}


@given(sha256=st.one_of(st.text(max_size=80), st.sampled_from(["../" * 21 + "x", "A" * 64, "g" * 64, "0" * 65])))
@hypothesis_settings(max_examples=100, deadline=None)
def test_only_a_hash_finds_an_object(sha256):
    with pytest.raises(NotFound):
        store.path_of(sha256)


@pytest.mark.django_db
def test_a_version_is_shown_as_a_directory(people, tmp_path, store_dir):
    version = make_version(people, tmp_path)
    shown = store.materialise(version, tmp_path / "shown")
    assert sorted(path.name for path in shown.iterdir()) == sorted(version.files)
    assert hashlib.sha256((shown / "trunk.safetensors").read_bytes()).hexdigest() == (
        version.files["trunk.safetensors"]["sha256"]
    )
    assert version.size_bytes == sum(path.stat().st_size for path in shown.iterdir())


def later():
    return timezone.now() + 30 * DAY


@pytest.mark.django_db
def test_the_collector_keeps_what_is_referred_to_and_what_is_fresh(people, tmp_path, store_dir):
    version = make_version(people, tmp_path)
    orphan = store.put_stream([b"nobody needs me"])
    assert collect(grace=DAY).removed == []
    Artifact.objects.update(touched_at=timezone.now() - 30 * DAY)
    store.put_stream([b"fresh"])
    assert collect(grace=DAY, dry_run=True).removed == [orphan.pk]
    assert store.path_of(orphan.pk).exists()
    assert collect(grace=DAY).removed == [orphan.pk]
    with pytest.raises(DomainError):
        store.path_of(orphan.pk)
    for entry in version.files.values():
        store.verify(entry["sha256"])
    assert ModelVersion.objects.filter(pk=version.pk).exists()


@pytest.mark.django_db
def test_the_collector_removes_left_over_parts_and_unknown_objects(store_dir):
    artifact = store.put_stream([b"row lost"])
    part = store_dir / "incoming" / "tmpleft"
    part.write_bytes(b"half")
    for path in (store.path_of(artifact.pk), part):
        os.utime(path, (1, 1))
    Artifact.objects.all().delete()
    call_command("collect_artifacts", grace_hours=24)
    assert objects(store_dir) == []


@pytest.mark.django_db
def test_the_reconciler_sweeps_the_store(store_dir):
    orphan = store.put_stream([b"nobody needs me"])
    Artifact.objects.update(touched_at=timezone.now() - 30 * DAY)
    loops["store"].turn()
    assert not Artifact.objects.filter(pk=orphan.pk).exists()
    assert objects(store_dir) == []
