"""The socket: a snapshot that draws the page, then every event with the next number, nothing for strangers."""

from __future__ import annotations

import json

import pytest
from channels.db import database_sync_to_async
from channels.sessions import SessionMiddlewareStack
from channels.testing import WebsocketCommunicator

from accounts.live import GONE, REFUSED
from common.live import hub
from jobs import execution, services
from jobs.events import frame_publish
from jobs.models import Job, JobEvent
from jobs.services import job_submit
from jobs.snapshot import DRAWN_LINES, DRAWN_STEPS, snapshot_of
from jobs.sockets import JobSocket
from tests.apps.jobs.fixtures import IMPORT

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def running_hub():
    await hub.start()
    yield
    await hub.stop()


@pytest.fixture
def cookies(people) -> dict[str, str]:
    return {who: people.client(who).cookies["sessionid"].value for who in ("teammate", "outsider")}


@pytest.fixture
def claimed(people) -> execution.JobClaim:
    job = job_submit(caller=people.owner, kind="import", spec=IMPORT)
    return execution.job_claim(job.pk, holder="a")


def open_socket(cookie: str, job_id: int) -> WebsocketCommunicator:
    from channels.routing import URLRouter

    from jobs.sockets import websocket_urlpatterns

    headers = [(b"cookie", f"sessionid={cookie}".encode())]
    return WebsocketCommunicator(
        SessionMiddlewareStack(URLRouter(websocket_urlpatterns)), f"/ws/jobs/{job_id}/", headers=headers
    )


async def told(socket: WebsocketCommunicator) -> dict:
    while (message := json.loads(await socket.receive_from(timeout=5)))["type"] == "ping":
        pass
    return message


async def test_after_the_snapshot_come_the_events_with_the_next_numbers(
    people, cookies, running_hub, claimed
) -> None:
    socket = open_socket(cookies["teammate"], claimed.job_id)
    assert (await socket.connect())[0]
    snapshot = await told(socket)
    assert (snapshot["type"], snapshot["seq"], snapshot["job"]["state"]) == ("snapshot", 2, "running")
    await database_sync_to_async(execution.job_event)(claimed, "step", {"step": 1, "loss": 2.0})
    event = await told(socket)
    assert (event["type"], event["seq"], event["kind"], event["payload"]) == (
        "event",
        3,
        "step",
        {"step": 1, "loss": 2.0},
    )
    await database_sync_to_async(services.job_cancel)(caller=people.owner, job_id=claimed.job_id)
    state = await told(socket)
    assert (state["seq"], state["payload"]["state"]) == (4, "cancelling")
    await socket.disconnect()


async def test_a_frame_that_is_not_kept_has_no_number(cookies, running_hub, claimed) -> None:
    socket = open_socket(cookies["teammate"], claimed.job_id)
    await socket.connect()
    await told(socket)
    await database_sync_to_async(frame_publish)(claimed.job_id, "step", {"step": 7})
    frame = await told(socket)
    assert frame == {"type": "frame", "kind": "step", "payload": {"step": 7}}
    await socket.disconnect()


async def test_an_event_of_a_transaction_that_failed_is_never_told(cookies, running_hub, claimed) -> None:
    from django.db import transaction

    def fail() -> None:
        with transaction.atomic():
            execution.job_event(claimed, "step", {"step": 1})
            raise RuntimeError

    socket = open_socket(cookies["teammate"], claimed.job_id)
    await socket.connect()
    await told(socket)
    with pytest.raises(RuntimeError):
        await database_sync_to_async(fail)()
    await database_sync_to_async(execution.job_event)(claimed, "step", {"step": 2})
    event = await told(socket)
    assert (event["seq"], event["payload"]) == (3, {"step": 2})
    await socket.disconnect()


@pytest.mark.parametrize(("who", "code"), [("anonymous", REFUSED), ("outsider", GONE)])
async def test_strangers_are_refused(cookies, running_hub, claimed, who, code) -> None:
    assert await open_socket(cookies.get(who, ""), claimed.job_id).connect() == (False, code)


def test_a_snapshot_is_bounded_and_keeps_the_last_of_everything(claimed) -> None:
    rows = [("step", {"stage": "convert", "step": n, "loss": 1.0}) for n in range(1000)]
    rows += [("log", {"text": str(n)}) for n in range(500)]
    JobEvent.objects.bulk_create(
        JobEvent(job=claimed.job, seq=10 + n, kind=kind, payload=payload)
        for n, (kind, payload) in enumerate(rows)
    )
    Job.objects.filter(pk=claimed.job_id).update(last_seq=10 + len(rows))
    events = snapshot_of(claimed.job)["events"]
    steps = [event for event in events if event["kind"] == "step"]
    lines = [event for event in events if event["kind"] == "log"]
    assert (len(steps), steps[-1]["payload"]["step"]) == (DRAWN_STEPS, 999)
    assert (len(lines), lines[-1]["payload"]["text"]) == (DRAWN_LINES, "499")
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)


def test_steps_that_were_done_again_count_once(claimed) -> None:
    for step in (1, 2, 3, 4, 3, 4, 5):
        execution.job_event(claimed, "step", {"stage": "convert", "step": step, "loss": float(step)})
    steps = [
        event["payload"]["step"] for event in snapshot_of(claimed.job)["events"] if event["kind"] == "step"
    ]
    assert steps == [1, 2, 3, 4, 5]


def test_the_socket_declares_who_may_watch() -> None:
    assert JobSocket.role.value == "viewer"
