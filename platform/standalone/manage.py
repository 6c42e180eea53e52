"""`./turnout manage …`: a management command on this installation's own data, whether it runs or not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from standalone import paths
from standalone.instance import InstanceLock, running_instance
from standalone.services import services_for


@contextmanager
def instance_environment() -> Iterator[dict[str, str]]:
    """Yield the environment of the running instance, or of its services started for the moment."""
    data_dir = paths.data_dir()
    base = {"DJANGO_SETTINGS_MODULE": "config.settings.dev", **os.environ}
    running = running_instance(data_dir)
    if running is not None:
        yield base | running.environment
        return
    lock = InstanceLock(data_dir)
    lock.take()
    services = services_for(data_dir)
    try:
        services.start()
        yield base | services.environment
    finally:
        services.stop()
        lock.release()


def run(name: str, arguments: list[str]) -> int:
    """Run the command there."""
    words = ["seed_demo", *arguments] if name == "seed" else arguments
    with instance_environment() as environment:
        command = [sys.executable, str(paths.ROOT / "manage.py"), *words]
        return subprocess.run(command, env=environment, check=False).returncode
