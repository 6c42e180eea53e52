"""The Celery application: a doorbell. The truth about work lies in PostgreSQL."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.dev")

app = Celery("turnout")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.set_default()
