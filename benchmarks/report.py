"""The page of a run: medians with their spread, ratios, shares of the roofline, losses as plainly as gains."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.limits import memory_read

OURS = "Turnout"
PROMPT = "prefill 512"
TITLES = {
    PROMPT: "Prompt of 512 tokens: tokens a second until the first token",
    "decode 1": "Decoding, one sequence, tokens a second",
    "concurrent 8": "8 requests at once, 128 tokens in and 128 out: tokens out a second",
    "concurrent 16": "16 requests at once, 128 tokens in and 128 out: tokens out a second",
    "load": "Loading until the first token, seconds",
}
# It gets quicker for minutes: to be ahead of its median alone would prove little.
BY_BEST_ROUND = ("vLLM",)
# What runs read that were written down before the memory was told.
SHARED = "512 MB, shared, in small pages"
OF_LIMITS = (
    "Measured before the first round, after each and at the end. Shares are of the best reading of all; one above 100 % was "
    "read faster than the loop that only reads ever did in this run: what the last cache still held, or a quieter minute. "
    "None is told of requests at once, whose steps read what their routers choose, nor of peers in 8 and 4 bits, whose "
    "bytes are not known. Bytes of 16 bits are two for each weight, whoever reads them; ours lie in twelve bits without "
    "loss, so that more than 100 % can be had."
)
PRECISIONS = ("16 bits", "8 bits", "4 bits")


def values(run: dict[str, Any], name: str, metric: str, threads: int) -> list[dict[str, Any]]:
    """The samples of one contestant."""
    return [
        sample for sample in run["samples"]
        if (sample["contestant"], sample["metric"], sample["threads"]) == (name, metric, threads)
    ]  # fmt: skip


def rate(sample: dict[str, Any], clock: str) -> float:
    """Tokens a second of one clock."""
    return float(sample["tokens"]) / max(float(sample[clock]), 1e-9)


def rates(run: dict[str, Any], name: str, metric: str, threads: int, clock: str) -> list[float]:
    """The rates of all samples."""
    return [rate(sample, clock) for sample in values(run, name, metric, threads)]


def best_peer(
    run: dict[str, Any], metric: str, threads: int, clock: str, precision: str | None = None
) -> tuple[float, str]:
    """The best figure of the peers, of one precision or of any, and whose it is: medians, of some their best round."""
    found = [
        (_figure(about)(rates(run, name, metric, threads, clock)), name)
        for name, about in run["contestants"].items()
        if about["peer"] != OURS
        and precision in (None, about["precision"])
        and values(run, name, metric, threads)
    ]
    return max(found, default=(0.0, ""))


def _figure(about: dict[str, str]) -> Callable[[list[float]], float]:
    return max if about["peer"] in BY_BEST_ROUND else statistics.median


def measured(run: dict[str, Any], metric: str, threads: int) -> list[str]:
    """Who has samples of a metric, by precision."""
    return [
        name for precision in PRECISIONS for name, about in run["contestants"].items()
        if about["precision"] == precision and values(run, name, metric, threads)
    ]  # fmt: skip


def table(run: dict[str, Any], metric: str, threads: int) -> list[str]:
    """One metric of everybody."""
    names = measured(run, metric, threads)
    if not names:
        return []
    first = " first token, s, median (least to most) |" if metric == PROMPT else ""
    lines = [
        f"### {TITLES[metric]}, {'one thread' if threads == 1 else f'{threads} threads'}",
        "",
        f"| contestant | bits | median (least to most), n |{first} a processor second | "
        "ratio to the best peer (of vLLM its best round): same bits, any | "
        "share of the roofline | taken by others |",
        "|---|---|---|---|---|---|---|" + ("---|" if first else ""),
    ]
    return [*lines, *(_row(run, name, metric, threads) for name in names), ""]


def _row(run: dict[str, Any], name: str, metric: str, threads: int) -> str:
    wall, about = rates(run, name, metric, threads, "wall"), run["contestants"][name]
    first = first_token(run, name, metric, threads)
    cpu = statistics.median(rates(run, name, metric, threads, "cpu"))
    others = statistics.median(sample["foreign"] for sample in values(run, name, metric, threads))
    middle = statistics.median(wall)
    return (
        f"| {bold(name, about)} | {about['precision'].split()[0]} | {middle:.1f} ({min(wall):.1f} to {max(wall):.1f}), "
        f"{len(wall)} |{first} {cpu:.1f} | {ratios(run, metric, threads, middle, about)} | "
        f"{roofline(run, name, metric, threads, middle)} | {others:.0%} |"
    )


def first_token(run: dict[str, Any], name: str, metric: str, threads: int) -> str:
    """A column of a prompt alone: seconds from the request until its first token is there."""
    if metric != PROMPT:
        return ""
    seconds = [float(sample["wall"]) for sample in values(run, name, metric, threads)]
    return f" {statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}) |"


def bold(name: str, about: dict[str, str]) -> str:
    """Ours stand out."""
    return f"**{name}**" if about["peer"] == OURS else name


def ratios(run: dict[str, Any], metric: str, threads: int, middle: float, about: dict[str, str]) -> str:
    """To the best peer of the same precision, and of any."""
    told = []
    for precision in (about["precision"], None):
        best, _ = best_peer(run, metric, threads, "wall", precision)
        told.append(f"{middle / best:.2f}" if best else "–")
    return ", ".join(told)


def roofline(run: dict[str, Any], name: str, metric: str, threads: int, middle: float) -> str:
    """How much of what memory or arithmetic allows; nothing where the format's bytes are not known."""
    bound = run["extra"].get("bounds", {}).get(f"{threads}", {}).get(metric, {}).get(name)
    return f"{middle / bound:.0%}" if bound else ""


def loading(run: dict[str, Any]) -> list[str]:
    """Load time, memory, and what the judge said."""
    lines = [
        "### Loading, memory, and what the judge said", "",
        "| contestant | start until the first token, s, median (least to most) | memory GB | "
        "largest gap to the best token | tokens that are the best |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, about in run["contestants"].items():
        # A trial is made on one thread alone.
        loads = values(run, name, "load", 2) or values(run, name, "load", 1)
        seconds = [sample["wall"] for sample in loads]
        verdict, memory = run["verdicts"].get(name), run["memory"].get(name)
        if not seconds or verdict is None:
            continue
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        held = f"{memory / 1e9:.2f}" if memory else "–"
        told = (
            verdict["refused"] and f"**refused**: {verdict['refused']}"
        ) or f"{verdict['gap']:.2%} | {verdict['agreement']:.0%}"
        lines.append(
            f"| {bold(name, about)} | {spread} | {held} | {told} |" + (" |" if verdict["refused"] else "")
        )
    first = run["extra"].get("first_start_s", {})
    told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in first.items())
    once = [
        f"Starts before all others, which write the panels that these map where none lie yet: {told}.",
        "",
    ]
    return [*lines, "", *(once if first else [])]


def losses(run: dict[str, Any]) -> list[str]:
    """Where a peer is ahead, in words: speed on two threads, start and memory; and where there was none to be ahead."""
    ours = [name for name, about in run["contestants"].items() if about["peer"] == OURS]
    speeds = [
        loss for metric in TITLES if metric != "load" for name in ours
        if (loss := _slower(run, metric, name)) is not None
    ]  # fmt: skip
    found = [loss for loss in speeds if loss]
    for what, unit, of in (("Start until the first token", "s", start_s), ("Memory", "GB", memory_gb)):
        found += [loss for name in ours if (loss := _more(run, what, unit, name, of))]
    if not speeds:
        found.append(
            "No speed was compared: nobody of ours and no peer of the same precision were both measured on two threads."
        )
    return ["## Losses", "", *(found or ["In this run no peer of the same precision was ahead."]), ""]


def _slower(run: dict[str, Any], metric: str, name: str) -> str | None:
    """In words that a peer of the same bits is faster, empty where none is; None where nothing can be compared."""
    best, whose = best_peer(run, metric, 2, "wall", run["contestants"][name]["precision"])
    wall = rates(run, name, metric, 2, "wall")
    if not wall or not whose:
        return None
    middle = statistics.median(wall)
    return f"- {TITLES[metric]}: {name} reaches {middle / best:.2f} of {whose}." if best > middle else ""


def _more(
    run: dict[str, Any], what: str, unit: str, name: str, of: Callable[[dict[str, Any], str], float | None]
) -> str:
    """In words that a peer of the same bits, whose answers are right, needs less; empty where none does."""
    peers = [
        (needed, peer) for peer, about in run["contestants"].items()
        if about["peer"] != OURS and about["precision"] == run["contestants"][name]["precision"]
        and peer in run["verdicts"] and not run["verdicts"][peer]["refused"]
        and (needed := of(run, peer)) is not None
    ]  # fmt: skip
    own = of(run, name)
    if own is None or not peers or (least := min(peers))[0] >= own:
        return ""
    return f"- {what}: {name} needs {own:.2f} {unit}, {least[1]} {least[0]:.2f}."


def start_s(run: dict[str, Any], name: str) -> float | None:
    """The median of its starts; a trial is made on one thread alone."""
    loads = values(run, name, "load", 2) or values(run, name, "load", 1)
    return statistics.median(sample["wall"] for sample in loads) if loads else None


def memory_gb(run: dict[str, Any], name: str) -> float | None:
    """What it held at most."""
    held = run["memory"].get(name)
    return held / 1e9 if held else None


def limits(run: dict[str, Any]) -> list[str]:
    """The roofline."""
    lines = ["## The machine's limits", ""]
    lines += [
        "| threads | memory read GB/s, median (least to best), n | which memory | bf16 GFLOP/s | int8 GOP/s |",
        "|---|---|---|---|---|",
    ]
    for limit in run["limits"]:
        operations = limit["best_operations_s"]
        codes = f"{operations['int8'] / 1e9:.0f}" if "int8" in operations else "–"
        lines.append(
            f"| {limit['threads']} | {limit['read_gb_s']:.1f} {_spread(limit)} | {operations['bf16'] / 1e9:.0f} | {codes} |"
        )
    return [*lines, "", OF_LIMITS, ""]


def _spread(limit: dict[str, Any]) -> str:
    """The readings' spread, how many there were, and of which memory."""
    readings = limit.get("readings_gb_s")
    if not readings:
        return f"(to {limit['best_read_gb_s']:.1f}) | {SHARED}"
    told = f"({min(readings):.1f} to {max(readings):.1f}), {len(readings)}"
    return f"{told} | {memory_read(limit['huge_share'])}"


def page(run: dict[str, Any]) -> str:
    """The run as Markdown."""
    about = run["machine"]
    foreign = [sample["foreign"] for sample in run["samples"]]
    quiet = f"{statistics.median(foreign):.0%} (at most {max(foreign):.0%})" if foreign else "nothing"
    lines = [
        "# Benchmarks",
        "",
        f"Written by `./turnout bench` on {about['when']}: {about['processor']}, {about['cores']} cores, "
        f"{about['isa']}; {run['seconds'] / 60:.0f} minutes in all. Other work took a median of {quiet} of the machine "
        "while a sample was taken; beside each figure stands what it was there.",
        "",
        "`smol-moe-8x` (0.69 B weights, 0.21 B active), prompts of real English as tokens, greedy, ends ignored. Everybody "
        "is asked over HTTP with streaming, in turn, round by round, and is stopped or frozen while it is not its turn. "
        "*Engine* is our engine on its own socket, without guessed tokens; *Turnout* the whole instance behind its gateway "
        "as it comes, with a key: it guesses tokens of an answer where that pays (`Guessed tokens` below), so that it may "
        "say more of them than memory gives one by one, and its processor seconds and memory are those of database, broker, "
        "web, reconciler and worker too.",
        "",
        *(
            ["**A trial: few tokens and one round, to see that everything works; no measurement.**", ""]
            if run["trial"]
            else []
        ),
        *limits(run),
        "## Against the peers",
        "",
    ]
    for metric in TITLES:
        for threads in (2, 1):
            if metric != "load" and measured(run, metric, threads):
                lines += table(run, metric, threads)
    lines += loading(run)
    lines += losses(run)
    for section in run["extra"].get("sections", ()):
        lines += [*section, ""]
    if run["missing"]:
        lines += ["## Not measured", "", *(f"- {name}: {why}" for name, why in run["missing"].items()), ""]
    notes = {about["peer"]: about["note"] for about in run["contestants"].values() if about["note"]}
    lines += ["## How each was asked", "", *(f"- {peer}: {note}." for peer, note in notes.items())]
    return "\n".join(lines) + "\n"
