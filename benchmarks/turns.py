"""Turns: each contestant is started, judged, measured and stopped, round after round, another beginning each time."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.client import Answer, ClientError
from benchmarks.findings import Run, say
from benchmarks.judge import Judge, Verdict
from benchmarks.peers import turnout
from benchmarks.peers.server import StartFailed
from benchmarks.prompts import Prompts
from benchmarks.visits import TRIAL, Contestant, Visit
from console.demo.client import ApiError

# Of 64 tokens a format that keeps three in four of them would show 64 to 86 %.
NUM_JUDGED, JUDGED_PROMPT, JUDGED_TOKENS = 8, 32, 32
# Of those that are answered together; each is four times as long.
NUM_TOGETHER = 2
# A metric that took so long is not measured again in later rounds.
LONGEST_REPEAT_S = 25.0


def judged(run: Run, visit: Visit, judge: Judge, prompts: Prompts) -> bool:
    """Judge a contestant before it is measured for the first time; False when it is refused."""
    name = visit.server.name
    if name not in run.verdicts:
        asked = prompts.windows(350, NUM_JUDGED, JUDGED_PROMPT)
        answers = visit.answers(asked, JUDGED_TOKENS)
        ids = [answer.token_ids for answer in answers]
        if all(ids):
            run.extra.setdefault("texts", {})[name] = [answer.text for answer in answers]
            run.verdicts[name] = judge.verdict(visit.server.precision, asked, ids)
        else:
            run.verdicts[name] = text_judged(run, visit, judge, prompts, [answer.text for answer in answers])
        verdict = run.verdicts[name]
        told = verdict.refused or f"gap {verdict.gap:.2%}, agreement {verdict.agreement:.0%}"
        say(f"  {name:18s} judged: {told}")
    return not run.verdicts[name].refused


def judged_together(
    run: Run, visit: Visit, judge: Judge, asked: list[list[int]], answers: list[Answer]
) -> None:
    """Judge some of what was answered in company; the gateway gives no tokens, and its engine is judged so."""
    ids = [answer.token_ids for answer in answers[:NUM_TOGETHER]]
    if not all(ids):
        return
    name = visit.server.name
    verdict = judge.verdict(visit.server.precision, asked[:NUM_TOGETHER], ids)
    say(
        f"  {name:18s} judged in company of {len(answers)}: gap {verdict.gap:.2%}, agreement {verdict.agreement:.0%}"
    )
    if verdict.refused:
        run.verdicts[name] = Verdict(
            verdict.gap, verdict.agreement, f"{len(answers)} at once: {verdict.refused}"
        )


def text_judged(run: Run, visit: Visit, judge: Judge, prompts: Prompts, texts: list[str]) -> Verdict:
    """Judge a gateway, which gives text alone: it must be what its engine says, whose tokens are judged.

    An engine that `--only` leaves out is asked this once, and not measured.
    """
    twin = visit.server.name.replace("Turnout", "engine")
    if twin not in run.verdicts and twin in run.engines:
        engine = run.engines[twin]
        try:
            engine.start(visit.server.threads)
            judged(run, Visit(engine, prompts, visit.number, run.note, run.amount), judge, prompts)
        except (StartFailed, ClientError, OSError, EOFError) as error:
            say(f"  {twin} does not answer: {error}")
        finally:
            engine.stop()
    if twin not in run.verdicts:
        return Verdict(1.0, 0.0, f"{twin} gave no tokens by which its text could be judged")
    if run.extra["texts"].get(twin) != texts:
        return Verdict(1.0, 0.0, f"its text is not that of {twin}")
    return run.verdicts[twin]


def visited(run: Run, server: Contestant, judge: Judge, prompts: Prompts, number: int, threads: int) -> None:
    """One turn: start, judge, measure, stop (or freeze)."""
    began = time.monotonic()
    visit = Visit(server, prompts, number, run.note, run.amount)
    try:
        if server.stays and number and server.threads == threads:
            server.thaw()
        else:
            visit.loaded(server.start(threads))
        if not judged(run, visit, judge, prompts):
            return
        visit.warm()
        # In a trial one thread does it all: two that wait for each other crawl where others work too.
        whole = threads > 1 or run.amount == TRIAL
        visit.prefill(run.amount.repeats if whole else 1)
        visit.decode(run.amount.repeats if whole else 1)
        for count in run.amount.concurrencies if whole else ():
            if count == 8 and server.name.startswith("engine") and run.amount != TRIAL:
                continue  # the gateway is asked so; 16 at once tell what lies between them
            if not number or run.took(server.name, f"concurrent {count}") < LONGEST_REPEAT_S:
                asked, answers = visit.concurrent(count)
                if not number:
                    judged_together(run, visit, judge, asked, answers)
        run.memory[server.name] = max(visit.memory(), run.memory.get(server.name, 0))
    except (StartFailed, ClientError, ApiError, OSError, EOFError) as error:
        run.missing[server.name] = str(error)
        say(f"{server.name} is left out: {error}")
        server.stop()
    finally:
        if server.stays:
            server.freeze()
        else:
            server.stop()
        run.visit_s[f"{server.name} {threads}"] = time.monotonic() - began


def rounds(
    run: Run,
    servers: list[Contestant],
    judge: Judge,
    prompts: Prompts,
    beside: Callable[[], None],
    at_most: int | None = None,
) -> None:
    """Rounds on two threads for as long as the next one fits, or so many; what is measured `beside` them comes after the
    second."""
    number, threads = 0, 1 if run.amount == TRIAL else 2
    while servers:
        began = time.monotonic()
        say(f"round {number + 1}, {threads} threads; {run.left_s / 60:.1f} minutes left")
        # Another begins each time, so that nobody always comes after the same one.
        turns = servers[number % len(servers) :] + servers[: number % len(servers)]
        for server, following in zip(turns, [*turns[1:], None], strict=True):
            if server.name not in run.missing and not refused(run, server):
                visited(run, server, judge, prompts, number, threads)
            # An instance that waits takes some hundredths of the machine: it goes before a peer's turn.
            if isinstance(server, turnout.Gateway) and not isinstance(following, turnout.Gateway):
                server.platform.stop()
        judge.close()
        run.measure_limits()
        number += 1
        # Later rounds are much shorter: nothing slow is repeated, and what loads for minutes is there.
        is_last = number == at_most or run.left_s < 0.35 * (time.monotonic() - began)
        if number == 2 or is_last:
            beside()
        if run.amount == TRIAL or is_last:
            return


def single_thread(run: Run, servers: list[Contestant], judge: Judge, prompts: Prompts) -> None:
    """Prompt and decoding on one thread; servers that load for minutes, and the gateway, are left out."""
    for server in servers:
        if server.stays or isinstance(server, turnout.Gateway) or server.name in run.missing:
            continue
        if not refused(run, server) and run.left_s > 0:
            visited(run, server, judge, prompts, number=50, threads=1)


def refused(run: Run, server: Contestant) -> bool:
    """Whether its tokens were wrong."""
    return server.name in run.verdicts and bool(run.verdicts[server.name].refused)
