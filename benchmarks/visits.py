"""What is measured of one contestant while it is its turn; every sample with both clocks and what others took meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from benchmarks.accounting import Meter, cpu_seconds, pss_bytes
from benchmarks.client import Answer, Endpoint, complete, together
from benchmarks.prompts import LONG, SHORT, Prompts


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is asked of everybody: a whole measurement, or only a trial of whether everything works."""

    decoded: int = 64
    concurrent_new: int = 128
    repeats: int = 2
    concurrencies: tuple[int, ...] = (8, 16)


TRIAL = Amount(decoded=9, concurrent_new=9, repeats=1, concurrencies=(8,))


class Contestant(Protocol):
    """A server that can be started, asked and stopped."""

    name: str
    peer: str
    precision: str
    stays: bool
    note: str
    at: Endpoint
    threads: int

    def start(self, threads: int) -> float: ...
    def pids(self) -> set[int]: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def stop(self) -> None: ...


@dataclass(slots=True)
class Sample:
    """One measurement: tokens in so many seconds of the wall and of the contestant's processors."""

    contestant: str
    metric: str
    threads: int
    round: int
    tokens: int
    wall: float
    cpu: float
    foreign: float

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(slots=True)
class Visit:
    """One turn of one contestant."""

    server: Contestant
    prompts: Prompts
    number: int
    note: Callable[[Sample], None]
    amount: Amount = Amount()

    def loaded(self, seconds: float) -> None:
        """Note how long it took from its start to its first token."""
        self._note("load", 1, {"wall": seconds, "cpu": cpu_seconds(self.server.pids()), "foreign": 0.0})

    def warm(self) -> None:
        """Prompts of both lengths that are not counted."""
        asyncio.run(complete(self.server.at, self.prompts.window(90, LONG), 4))
        asyncio.run(complete(self.server.at, self.prompts.window(380, SHORT), 8))

    def prefill(self, repeats: int) -> None:
        """The first token after a prompt of 512."""
        for repeat in range(repeats):
            prompt = self.prompts.window(2 * self.number + repeat, LONG)
            self._note("prefill 512", LONG, self._timed(lambda p=prompt: complete(self.server.at, p, 1))[0])

    def decode(self, repeats: int) -> None:
        """The tokens after the first, one sequence."""
        for repeat in range(repeats):
            prompt = self.prompts.window(300 + 2 * self.number + repeat, SHORT)
            meter = Meter(self.server.pids())
            asyncio.run(complete(self.server.at, prompt, self.amount.decoded, on_first=meter.start))
            self._note("decode 1", self.amount.decoded - 1, meter.read())

    def concurrent(self, count: int) -> tuple[list[list[int]], list[Answer]]:
        """So many answers at once: all tokens that came out, by the whole time. Returns prompts and answers."""
        prompts = self.prompts.windows(100 + 32 * self.number + count, count, SHORT)
        found, answers = self._timed(lambda: together(self.server.at, prompts, self.amount.concurrent_new))
        tokens = sum(answer.num_tokens for answer in answers)
        self._note(f"concurrent {count}", tokens, found)
        first = sorted(answer.first_s for answer in answers)[count // 2]
        self._note(f"first token of {count}", 1, {**found, "wall": first})
        return prompts, answers

    def memory(self) -> int:
        """Bytes of all its processes, shared pages divided."""
        return pss_bytes(self.server.pids())

    def answers(self, prompts: Sequence[list[int]], new: int) -> list[Answer]:
        """Greedy answers, one after the other."""
        return [asyncio.run(complete(self.server.at, prompt, new)) for prompt in prompts]

    def _timed(self, ask: Callable[[], Awaitable[Any]]) -> tuple[dict[str, float], Any]:
        async def run() -> Any:
            return await ask()

        meter = Meter(self.server.pids())
        meter.start()
        result = asyncio.run(run())
        return meter.read(), result

    def _note(self, metric: str, tokens: int, found: dict[str, float]) -> None:
        self.note(
            Sample(self.server.name, metric, self.server.threads, self.number, tokens, **found)  # type: ignore[arg-type]
        )
