"""Tells whoever watches a deployment that something changed. The frame carries no state: the page fetches what is true."""

from __future__ import annotations

import json

from django.db import connection, transaction

from common.live import publish

NEXT = "UPDATE deployments_deployment SET frames = frames + 1 WHERE id = %s RETURNING frames"


def topic_of(deployment_id: int) -> str:
    """The live topic of a deployment."""
    return f"deployment:{deployment_id}"


def announce(deployment_id: int) -> None:
    """Number the change in this transaction, and publish it when it commits."""
    with connection.cursor() as cursor:
        cursor.execute(NEXT, [deployment_id])
        row = cursor.fetchone()
    if row is not None:
        frame = json.dumps({"type": "event", "seq": row[0], "deployment": deployment_id}).encode()
        transaction.on_commit(lambda: publish(topic_of(deployment_id), frame))
