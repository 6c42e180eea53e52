"""Turnout against its peers on this machine, in turn, round by round, through their servers.

    ./turnout bench [--minutes 25] [--peers transformers,llamacpp,openvino,vllm] [--json PATH] [--page PATH]

`PEERS=` in the environment names the peers too. The roofline comes first; then each contestant is started, its tokens are
judged by the model in float32, and it is measured and stopped, round after round while there is time. A contestant whose
tokens are wrong is refused and the run fails; a peer that cannot be had here is named with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import guesses, layers, other_models, sparse, switches
from benchmarks.bounds import bounds
from benchmarks.findings import Run, say
from benchmarks.home import Home
from benchmarks.judge import Judge
from benchmarks.models import model_dir
from benchmarks.peers import llamacpp, openvino, transformers, turnout, vllm
from benchmarks.peers.environment import Unavailable
from benchmarks.peers.server import Server
from benchmarks.prompts import Prompts
from benchmarks.report import page
from benchmarks.turns import rounds, single_thread
from benchmarks.visits import TRIAL, Amount, Contestant
from moe_core.kernels.cpu.native import library
from standalone.stages import NOT_RUN, UNAVAILABLE

MODEL = "smol-moe-8x"
PEERS = {
    "transformers": transformers.servers,
    "llamacpp": llamacpp.servers,
    "openvino": openvino.servers,
    "vllm": vllm.servers,
}
# What is measured beside the rounds, and how many seconds to leave for it on a quiet machine.
PARTS = {"thread": 170.0, "layers": 110.0, "guesses": 90.0, "sparse": 260.0, "switches": 400.0, "models": 240.0}


class NobodyNamed(ValueError):
    """A word of `--only` that is in no contestant's name."""


def gathered(run: Run, names: Sequence[str]) -> list[Contestant]:
    """The contestants that can be had; the others are noted with the reason. Raises NobodyNamed for `run.only`."""
    found: list[Contestant] = []
    for name in names:
        try:
            found += PEERS[name](run.home, MODEL)
        except Unavailable as error:
            run.missing[name] = str(error)
            say(f"{name} cannot be had here: {error}")
    if not run.has_rounds:
        return []
    found += turnout.engine_servers(run.home, MODEL)
    found += turnout.gateways(run.home, MODEL)
    if run.only:
        refuse_nobody(run, [one.name for one in found])
        run.engines = {one.name: one for one in found if one.name.startswith("engine")}
        found = [one for one in found if any(word in one.name for word in run.only)]
    for one in found:
        if isinstance(one, turnout.Gateway) or (one.peer == "Turnout" and isinstance(one, Server)):
            seconds = turnout.write_panels(run.home, one, threads=2)
            run.extra.setdefault("first_start_s", {})[one.name] = seconds
            say(f"{one.name}: the first start, which may write its panels, took {seconds:.1f} s")
        if isinstance(one, turnout.Gateway):
            # Nobody else's turn is to share the machine with an instance that has nothing to do.
            one.platform.stop()
        run.contestants[one.name] = {"peer": one.peer, "precision": one.precision, "note": one.note}
    return found


def refuse_nobody(run: Run, names: Sequence[str]) -> None:
    """Raise NobodyNamed where a word of `--only` is in no contestant's name: nothing would be measured for it."""
    if unknown := [word for word in run.only if not any(word in name for name in names)]:
        lacking = "".join(f"; {name} cannot be had here: {why}" for name, why in run.missing.items())
        raise NobodyNamed(f"--only {', '.join(unknown)} names nobody; there are {', '.join(names)}{lacking}")


def beside(run: Run, servers: list[Contestant], judge: Judge | None, prompts: Prompts) -> None:
    """One thread, the layer alone, sparse against dense, and switches, each once and where there is time for it."""
    for part, seconds in PARTS.items():
        if part not in run.parts:
            continue
        run.parts.remove(part)
        if run.left_s < seconds:
            run.missing[part] = (
                f"no time was left for it; ./turnout bench --peers '' --no-rounds --parts {part} measures it alone"
            )
            continue
        say(f"{part}; {run.left_s / 60:.1f} minutes left")
        if part == "thread" and judge is not None:
            single_thread(run, servers, judge, prompts)
        elif part != "thread":
            run.extra[part] = part_measured(run, part, prompts)


def part_measured(run: Run, part: str, prompts: Prompts) -> dict[str, Any]:
    """The figures of one part."""
    if part == "layers":
        pythons = {"transformers grouped": transformers.ENVIRONMENT.python(run.home)}
        with contextlib.suppress(Unavailable):
            pythons["vLLM fused"] = vllm.python_of(run.home)
        return layers.layers_measured(pythons, 2, rounds=4)
    if part == "sparse":
        return sparse.sparse_measured(run.home, MODEL, prompts, rounds=2)
    if part == "guesses":
        return guesses.guesses_measured(run.home, MODEL, prompts)
    if part == "models":
        return other_models.others_measured(run)
    return switches.switches_measured(run.home, threads=1, seconds=switches.SECONDS)


def sections_of(run: Run) -> list[list[str]]:
    """The tables of the parts that were measured: at the end, when the limits are known of which they tell shares."""
    written: dict[str, Callable[[dict[str, Any]], list[str]]] = {
        "layers": lambda found: layers.section(found, run.limits[-1]),
        "guesses": guesses.section,
        "sparse": sparse.section,
        "switches": switches.section,
        "models": lambda found: other_models.section(other_models.bounded(found, run.limits[-1], run.home)),
    }
    return [write(run.extra[part]) for part, write in written.items() if part in run.extra]


def compared(run: Run, names: Sequence[str]) -> None:
    """The whole measurement."""
    run.measure_limits()
    prompts = Prompts.of(model_dir(MODEL, run.home.models))
    servers = gathered(run, names)
    reference = transformers.ENVIRONMENT.python(run.home)
    judge = Judge(reference, model_dir(MODEL, run.home.models)) if servers else None
    # Installing and building is done once and is not measured.
    run.began = time.monotonic()
    try:
        if judge is not None:
            rounds(run, servers, judge, prompts, lambda: beside(run, servers, judge, prompts))
        beside(run, servers, judge, prompts)
    finally:
        if judge is not None:
            judge.close()
        for server in servers:
            server.thaw()
            server.stop()
            if isinstance(server, turnout.Gateway):
                server.platform.stop()
    run.measure_limits()
    run.extra["bounds"] = bounds_of(run, servers)
    run.extra["sections"] = sections_of(run)


def joined(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The earlier run with the parts that the later one measured, each in the place of the same part before."""
    by_head = {section[0]: section for section in before["extra"].get("sections", [])}
    by_head |= {section[0]: section for section in after["extra"].pop("sections", [])}
    sections = list(by_head.values())
    after["extra"].pop("bounds", None)
    missing = {name: why for name, why in before["missing"].items() if name not in after["extra"]}
    return before | {
        "extra": before["extra"] | after["extra"] | {"sections": sections}, "missing": missing | after["missing"],
        "seconds": before["seconds"] + after["seconds"],
    }  # fmt: skip


def bounds_of(run: Run, servers: list[Contestant]) -> dict[str, Any]:
    """What the machine allows each: by threads, metric and contestant. Of peers' packed formats nothing is known."""
    found: dict[str, Any] = {}
    suffixes = {precision: suffix for precision, (_, suffix) in turnout.FORMATS.items()}
    for limit in run.limits:
        for server in servers:
            if server.peer == "Turnout" or server.precision == "16 bits":
                path = model_dir(MODEL + suffixes[server.precision], run.home.models)
                for metric, bound in bounds(path, limit).items():
                    found.setdefault(str(limit.threads), {}).setdefault(metric, {})[server.name] = bound
    return found


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./turnout bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=25.0, help="how long it may take, installation apart"
    )
    named = os.environ.get("PEERS", ",".join(PEERS))
    parser.add_argument("--peers", default=named, help=f"any of {', '.join(PEERS)}; default: all, or PEERS")
    parser.add_argument("--home", type=Path, help="where models and environments are kept")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"beside the rounds: {', '.join(PARTS)}")
    parser.add_argument("--no-rounds", action="store_true", help="the parts alone")
    parser.add_argument("--into", type=Path, help="an earlier run's JSON, whose figures are kept on the page")
    parser.add_argument("--trial", action="store_true", help="few tokens, one round: does everything work?")
    parser.add_argument("--only", default="", help="contestants whose names have one of these words in them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    return parser.parse_args()


def words_of(listed: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in listed.split(",") if word.strip()]


def main() -> int:
    options = parsed()
    names, parts = words_of(options.peers), words_of(options.parts)
    for kind, told, known in (("peer", names, list(PEERS)), ("part", parts, list(PARTS))):
        if unknown := [name for name in told if name not in known]:
            print(f"there is no {kind} {', '.join(unknown)}; there are {', '.join(known)}")
            return 2
    if library() is None:
        print(f"{NOT_RUN}the CPU kernels are not compiled here: nothing was measured")
        return UNAVAILABLE
    run = Run(Home.chosen(options.home), options.minutes, TRIAL if options.trial else Amount())
    run.only, run.parts = words_of(options.only), parts
    run.has_rounds = not options.no_rounds
    try:
        compared(run, names)
    except NobodyNamed as error:
        print(error)
        return 2
    found = run.as_json()
    if options.into:
        found = joined(json.loads(options.into.read_text()), found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    text = page(found)
    print(text)
    if options.page:
        options.page.write_text(text)
    return int(any(one.refused for one in run.verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
