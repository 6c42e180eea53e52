"""A lease whose holder has ended on this machine is free at once; any other is waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.errors import StaleLease
from common.holders import MARK, is_gone, this_process
from common.leases import lease_claim, lease_renew

ASK = "from common.holders import this_process; print('worker/' + this_process(), flush=True); input()"


@contextmanager
def a_process() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Another process and the holder's name that it gives itself."""
    command = [sys.executable, "-c", ASK]
    with subprocess.Popen(
        command,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH="platform"),
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
        process.kill()


def killed() -> str:
    with a_process() as (holder, process):
        process.kill()
        process.wait()
    return holder


def test_a_process_is_gone_when_it_has_ended_and_not_before() -> None:
    with a_process() as (holder, process):
        assert not is_gone(holder)
        process.kill()
        # Not yet collected by its parent, and already unable to write.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(holder)
        process.wait()
        assert is_gone(holder)


def test_its_number_used_again_is_another_process() -> None:
    mine = this_process()
    assert not is_gone(mine)
    place, _, started = mine.rpartition(":")
    assert is_gone(f"{place}:{int(started) + 1}")


@pytest.mark.parametrize("part", [0, 1], ids=["host", "boot or container"])
def test_of_another_machine_nothing_is_known(part: int) -> None:
    parts = killed().split("/")[1].removeprefix(MARK).split(":")
    assert is_gone(f"worker/{MARK}{':'.join(parts)}")
    parts[part] = f"other-{parts[part]}"
    assert not is_gone(f"worker/{MARK}{':'.join(parts)}")


@pytest.mark.parametrize("holder", ["", "a", "node-1/7", MARK, f"{MARK}:::", f"{MARK}a:b:c:d"])
def test_a_name_without_a_process_is_never_gone(holder: str) -> None:
    assert not is_gone(holder)


def test_a_process_that_may_not_be_asked_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    mine = this_process()
    monkeypatch.setattr(os, "kill", refuse)
    assert not is_gone(mine)


@pytest.mark.django_db(transaction=True)
def test_the_lease_of_a_killed_process_is_taken_over_at_once_and_fences_it() -> None:
    with a_process() as (holder, process):
        before = lease_claim(resource="node:a", holder=holder, ttl_s=3600)
        assert before is not None
        assert lease_claim(resource="node:a", holder="b", ttl_s=3600) is None
        process.kill()
        process.wait()
    after = lease_claim(resource="node:a", holder="b", ttl_s=3600)
    assert after is not None
    assert after.epoch == before.epoch + 1
    with pytest.raises(StaleLease):
        lease_renew(before)
    lease_renew(after)
    assert lease_claim(resource="node:a", holder="c", ttl_s=3600) is None


@pytest.mark.django_db(transaction=True)
def test_of_two_that_find_the_holder_ended_one_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    lease_claim(resource="node:a", holder="dead", ttl_s=3600)

    def gone_and_taken_meanwhile(holder: str) -> bool:
        monkeypatch.setattr("common.leases.is_gone", lambda holder: holder == "dead")
        assert lease_claim(resource="node:a", holder="first", ttl_s=3600) is not None
        return True

    monkeypatch.setattr("common.leases.is_gone", gone_and_taken_meanwhile)
    assert lease_claim(resource="node:a", holder="second", ttl_s=3600) is None
