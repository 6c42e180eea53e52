"""One instance a data folder: the second is refused with the way out, and a dead one does not block."""

from __future__ import annotations

import pytest

from standalone.errors import StandaloneError
from standalone.instance import Instance, InstanceLock, running_instance


def test_a_second_instance_is_refused_and_told_where_the_first_is(tmp_path):
    first = InstanceLock(tmp_path)
    first.take()
    first.publish(Instance(4711, "http://127.0.0.1:8000/", {"A": "b"}))
    with pytest.raises(StandaloneError, match=r"http://127\.0\.0\.1:8000/ \(pid 4711\).*TURNOUT_PORT"):
        InstanceLock(tmp_path).take()
    assert running_instance(tmp_path).environment == {"A": "b"}
    first.release()
    assert running_instance(tmp_path) is None
    second = InstanceLock(tmp_path)
    second.take()
    second.release()


def test_the_record_of_a_dead_instance_is_not_believed(tmp_path):
    lock = InstanceLock(tmp_path)
    lock.take()
    lock.publish(Instance(4711, "http://127.0.0.1:8000/"))
    lock._file.close()  # what the kernel does when the process dies
    assert running_instance(tmp_path) is None


def test_the_record_is_readable_by_its_owner_alone(tmp_path):
    lock = InstanceLock(tmp_path)
    lock.take()
    lock.publish(Instance(1, "http://x/"))
    assert (tmp_path / "instance.json").stat().st_mode & 0o777 == 0o600
    lock.release()


def test_an_unused_folder_has_no_instance(tmp_path):
    assert running_instance(tmp_path / "never") is None
