"""PostgreSQL run by root: in a user namespace, and where those are forbidden, by a lent user in a place he can reach."""

from __future__ import annotations

import os
import shutil

import psycopg
import pytest

from standalone import quarters
from standalone.errors import StandaloneError
from standalone.postgres import PostgresServer, find_postgres
from standalone.rundir import throwaway_dir

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to find another way")


@pytest.fixture
def place():
    path, lock = throwaway_dir()
    yield path
    shutil.rmtree(path, ignore_errors=True)
    lock.close()


@pytest.fixture
def no_namespaces(monkeypatch):
    monkeypatch.setattr(quarters, "user_namespaces_allowed", lambda: False)


def write_and_read(server: PostgresServer) -> list[str]:
    server.start()
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (word text)")
            connection.execute("INSERT INTO kept VALUES ('x')")
            return [row[0] for row in connection.execute("SELECT word FROM kept")]
    finally:
        server.stop()


def test_where_namespaces_are_forbidden_a_lent_user_runs_it(place, no_namespaces):
    server = PostgresServer(place / "postgres", place, place / "postgres.log", throwaway=True)
    assert server.quarters.lent_uid not in (None, 0)
    assert write_and_read(server) == ["x"]
    assert (place / "postgres" / "PG_VERSION").stat().st_uid == server.quarters.lent_uid
    assert server.data_dir.stat().st_mode & 0o077 == 0
    assert server.quarters.socket_dir.stat().st_mode & 0o077 == 0


def test_a_place_that_is_closed_to_others_is_left_for_one_outside(
    place, no_namespaces, tmp_path, monkeypatch, capsys
):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(quarters, "OUTSIDE", place)
    place.chmod(0o711)
    bin_dir = find_postgres().bin_dir
    monkeypatch.setattr(
        quarters,
        "reachable_by_others",
        lambda path, real=quarters.reachable_by_others: path != bin_dir and real(path),
    )
    server = PostgresServer(
        closed / "var" / "postgres", closed / "run", tmp_path / "postgres.log", throwaway=True
    )
    assert server.data_dir.is_relative_to(place)
    assert server.bin_dir.is_relative_to(place)
    assert write_and_read(server) == ["x"]
    assert str(server.data_dir.parent) in capsys.readouterr().out


def test_a_cluster_keeps_its_data_when_namespaces_come_and_go(place, monkeypatch):
    if not quarters.user_namespaces_allowed():
        pytest.skip("this machine forbids user namespaces")
    in_namespace = PostgresServer(place / "postgres", place, place / "postgres.log")
    assert in_namespace.quarters.in_namespace
    assert write_and_read(in_namespace) == ["x"]
    monkeypatch.setattr(quarters, "user_namespaces_allowed", lambda: False)
    assert write_and_read(PostgresServer(place / "postgres", place, place / "postgres.log")) == ["x", "x"]
    monkeypatch.undo()
    assert write_and_read(PostgresServer(place / "postgres", place, place / "postgres.log")) == [
        "x",
        "x",
        "x",
    ]


def test_it_refuses_a_place_that_somebody_else_has_prepared(place, no_namespaces):
    (place / "postgres").mkdir()
    os.chown(place / "postgres", 12345, 12345)
    with pytest.raises(StandaloneError, match="belongs to uid 12345"):
        PostgresServer(place / "postgres", place, place / "postgres.log")
