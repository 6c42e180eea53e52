"""One sequence with an answer's next tokens guessed and without: our engine as it serves by itself, and llama.cpp, which
guesses when it is told to. All of one format in turn, answer by answer; who is not asked is frozen.

Our answers must be the same with guesses and without, or nothing is told of them. llama.cpp's may be others: there a step of
several tokens rounds otherwise.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from benchmarks.accounting import Meter
from benchmarks.client import complete
from benchmarks.home import Home
from benchmarks.peers import llamacpp
from benchmarks.peers.environment import Unavailable
from benchmarks.peers.server import Server
from benchmarks.peers.turnout import FORMATS, engine_servers
from benchmarks.prompts import SHORT, Prompts

ANSWERS, NEW, FIRST_WINDOW = 12, 64, 420
OURS, OURS_PLAIN = "engine", "engine, no guesses"


def guesses_measured(home: Home, model: str, prompts: Prompts, threads: int = 2) -> dict[str, Any]:
    """Samples of every way by its format, and in how many answers the tokens differ from those without guesses."""
    found: dict[str, Any] = {}
    for precision in FORMATS:
        ways = _ways(home, model, precision)
        try:
            for server in ways.values():
                server.start(threads)
                server.freeze()
            found[precision] = _asked(ways, prompts)
        finally:
            for server in ways.values():
                server.thaw()
                server.stop()
    return found


def _ways(home: Home, model: str, precision: str) -> dict[str, Server]:
    ways = {
        OURS_PLAIN: engine_servers(home, model, (precision,))[0],
        OURS: engine_servers(home, model, (precision,), ngram_tokens=None)[0],
    }
    try:
        for options in ((), llamacpp.GUESSES):
            peers = [one for one in llamacpp.servers(home, model, options) if one.precision == precision]
            ways |= {f"llama.cpp{', guesses' if options else ''}": one for one in peers}
    except Unavailable:
        pass  # the rounds name who cannot be had
    return ways


def _asked(ways: dict[str, Server], prompts: Prompts) -> dict[str, Any]:
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    answers: dict[str, list[list[int]]] = {name: [] for name in ways}
    for number in range(-1, ANSWERS):
        names = list(ways)
        # Another begins each time; the first answer of each is not counted.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            server = ways[name]
            server.thaw()
            meter = Meter(server.pids())
            window = prompts.window(FIRST_WINDOW + number, SHORT)
            answer = asyncio.run(complete(server.at, window, NEW, on_first=meter.start))
            if number >= 0:
                samples[name].append(meter.read())
                answers[name].append(answer.token_ids)
            server.freeze()
    differ = {
        guessing: sum(map(list.__ne__, answers[guessing], answers[plain]))
        for guessing, plain in ((OURS, OURS_PLAIN), ("llama.cpp, guesses", "llama.cpp")) if guessing in answers
    }  # fmt: skip
    return {"samples": samples, "differ": differ}


def section(found: dict[str, Any]) -> list[str]:
    """The part of the page."""
    lines = [
        "## Guessed tokens",
        "",
        f"One sequence, {SHORT} tokens in and {NEW} out, {ANSWERS} answers of each in turn, two threads: tokens a second "
        "after the first, of all answers together. An engine guesses by itself as many of an answer's next tokens as pay; "
        f"llama.cpp with `{' '.join(llamacpp.GUESSES)}`.",
        "",
        "| bits | way | tokens a second: wall, processor | times without guesses, median (least to most) | "
        "times llama.cpp as it comes, with guesses | answers that differ |",
        "|---|---|---|---|---|---|",
    ]
    for precision, told in found.items():
        lines += _rows(precision.split()[0], told)
    return lines


def _rows(bits: str, told: dict[str, Any]) -> list[str]:
    if told["differ"].get(OURS):
        return [
            f"| {bits} | **refused: {told['differ'][OURS]} of {ANSWERS} of our answers differ** | | | | |"
        ]
    seconds = {
        name: {clock: [one[clock] for one in rows] for clock in ("wall", "cpu")}
        for name, rows in told["samples"].items()
    }

    def rate(name: str, clock: str) -> float:
        return ANSWERS * (NEW - 1) / max(sum(seconds[name][clock]), 1e-9)

    rows = []
    for name in seconds:
        plain = OURS_PLAIN if name == OURS else "llama.cpp" if name == "llama.cpp, guesses" else None
        gains = (
            sorted(a / b for a, b in zip(seconds[plain]["wall"], seconds[name]["wall"], strict=True))
            if plain
            else []
        )
        gain = f"{statistics.median(gains):.2f} ({gains[0]:.2f} to {gains[-1]:.2f})" if gains else ""
        peers = [
            rate(name, "wall") / rate(one, "wall")
            for one in ("llama.cpp", "llama.cpp, guesses")
            if one in seconds
        ]
        shown = f"**{name}**" if name.startswith("engine") else name
        rows.append(
            f"| {bits} | {shown} | {rate(name, 'wall'):.1f}, {rate(name, 'cpu'):.1f} | {gain} | "
            f"{', '.join(f'{one:.2f}' for one in peers)} | {told['differ'].get(name, '')} |"
        )
    return rows
