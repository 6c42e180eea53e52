"""`celery -A workers.app worker`: the worker of one node. It hears the doorbell and keeps child processes."""

# ruff: noqa: E402 - Django is set up before anything that has models is imported

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.dev")

import django

django.setup()

from celery.signals import worker_ready, worker_shutting_down
from django.conf import settings
from kombu import Exchange, Queue

from config.celery import app
from workers import folders, run_job, tasks  # noqa: F401 - the tasks register themselves
from workers.node_agent import NodeAgentStep

app.steps["worker"].add(NodeAgentStep)
# Each with a key of its own: queues that share one would both get every message.
app.conf.task_queues = [
    Queue(name, Exchange(name), routing_key=name) for name in ("jobs", f"node.{settings.NODE_NAME}")
]


@worker_ready.connect
def on_ready(**_signal: object) -> None:
    """Remove what an earlier life of this worker left on the disk."""
    folders.sweep_safely()


@worker_shutting_down.connect
def on_shutting_down(**_signal: object) -> None:
    """Ask running jobs to keep their state and stop, so that they go on elsewhere."""
    run_job.stopping.set()


__all__ = ["app"]
