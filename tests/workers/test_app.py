"""The worker's Celery application: JSON only, and queues that do not get one another's messages."""

from __future__ import annotations

from workers.app import app


def test_each_queue_has_a_key_of_its_own() -> None:
    queues = app.conf.task_queues
    bindings = {(queue.exchange.name, queue.routing_key) for queue in queues}
    assert len(bindings) == len(queues) == 2


def test_it_reads_nothing_but_json() -> None:
    assert list(app.conf.accept_content) == ["json"]
    assert app.conf.task_serializer == "json"


def test_it_knows_one_task_whose_argument_is_a_job() -> None:
    own = [name for name in app.tasks if not name.startswith("celery.")]
    assert own == ["workers.run_job"]
