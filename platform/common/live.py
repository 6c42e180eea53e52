"""Live frames: one Valkey subscription a web process, a bounded queue a socket.

A channel-layer group costs 147-215 µs a message and socket; the hub 19-27 µs. A slow reader loses the oldest frames and
is told so (`missed`), and heals by a fresh snapshot; it never slows the others or grows without bound.

Who makes frames may ask whether anybody watches topics of a kind (the word before the colon): each hub says so in Valkey,
again and again while it is true.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from functools import lru_cache

import redis
import redis.asyncio
from django.conf import settings

log = logging.getLogger(__name__)
PREFIX = b"live:"
AUDIENCE = "watched:"
# How often a hub says what is watched, and for how long that is believed: a process that dies is forgotten by then.
TELL_EVERY_S, BELIEVED_S = 4.0, 12
QUEUE_FRAMES = 64
READY_WITHIN_S = 2.0


@lru_cache(maxsize=1)
def _publisher() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2)


def publish(topic: str, frame: bytes) -> bool:
    """Send one frame to whoever watches now; False when Valkey is down (frames are never the truth)."""
    try:
        _publisher().publish(PREFIX + topic.encode(), frame)
    except redis.RedisError as error:
        log.warning("live frame on %s was not sent: %s", topic, error)
        return False
    return True


def is_watched(kind: str) -> bool:
    """Whether a socket watches a topic of this kind; yes when Valkey is down, for then nobody knows."""
    try:
        return bool(_publisher().exists(AUDIENCE + kind))
    except redis.RedisError:
        return True


class Subscription:
    """One socket's view of a topic."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque(maxlen=QUEUE_FRAMES)
        self.missed = 0
        self.bell = asyncio.Event()

    def push(self, frame: bytes) -> None:
        """Queue a frame, dropping the oldest when the reader is slow."""
        if len(self.frames) == QUEUE_FRAMES:
            self.missed += 1
        self.frames.append(frame)
        self.bell.set()

    async def next(self) -> bytes:
        """Wait for the next frame."""
        while not self.frames:
            self.bell.clear()
            await self.bell.wait()
        return self.frames.popleft()


class Hub:
    """The process's one subscription to the loudspeaker, shared out to its sockets."""

    def __init__(self) -> None:
        self.watchers: dict[bytes, set[Subscription]] = defaultdict(set)
        self.task: asyncio.Task[None] | None = None
        self.audience_task: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        # Rung when a topic has got its first watcher.
        self.arrival = asyncio.Event()

    async def start(self) -> None:
        """Begin to listen (once per process)."""
        if self.task is None or self.task.done():
            self.arrival = asyncio.Event()
            self.task = asyncio.create_task(self.listen(), name="live-hub")
            self.audience_task = asyncio.create_task(self.tell_audience(), name="live-audience")

    async def stop(self) -> None:
        """Stop listening."""
        for task in (self.task, self.audience_task):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self.task = self.audience_task = None
        self.ready.clear()

    @contextlib.asynccontextmanager
    async def watching(self, topic: str) -> AsyncIterator[Subscription]:
        """Yield a Subscription to the topic for the life of one socket."""
        await self.start()
        # A snapshot taken before the subscription stands would miss the frames between the two.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ready.wait(), timeout=READY_WITHIN_S)
        key, subscription = PREFIX + topic.encode(), Subscription()
        self.watchers[key].add(subscription)
        self.arrival.set()
        try:
            yield subscription
        finally:
            self.watchers[key].discard(subscription)
            if not self.watchers[key]:
                del self.watchers[key]

    async def tell_audience(self) -> None:
        """Say for ever which kinds of topics are watched here: at once when somebody comes, and every few seconds."""
        async with redis.asyncio.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2) as client:
            while True:
                self.arrival.clear()
                kinds = {key.removeprefix(PREFIX).partition(b":")[0].decode() for key in self.watchers}
                with contextlib.suppress(redis.RedisError, OSError):
                    for kind in sorted(kinds):
                        await client.set(AUDIENCE + kind, 1, ex=BELIEVED_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.arrival.wait(), timeout=TELL_EVERY_S)

    async def listen(self) -> None:
        """Receive frames for ever; after a cut, reconnect and mark every watcher as having missed something."""
        while True:
            client = redis.asyncio.Redis.from_url(
                settings.REDIS_URL, socket_timeout=None, socket_connect_timeout=2
            )
            try:
                async with client.pubsub() as channel:
                    await channel.psubscribe(PREFIX + b"*")
                    async for message in channel.listen():
                        if message["type"] == "psubscribe":
                            self.ready.set()
                        elif message["type"] == "pmessage":
                            for subscription in self.watchers.get(message["channel"], ()):
                                subscription.push(message["data"])
            except (redis.RedisError, OSError) as error:
                log.warning("live hub lost Valkey: %s", error)
            finally:
                with contextlib.suppress(redis.RedisError, OSError):
                    await client.aclose()
            self.ready.clear()
            for subscriptions in self.watchers.values():
                for subscription in subscriptions:
                    subscription.missed += 1
                    subscription.bell.set()
            await asyncio.sleep(0.5)


hub = Hub()
