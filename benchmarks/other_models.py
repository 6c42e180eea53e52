"""The other models beside that of the rounds, in 16 bits: the demo's dense one, and one of 64 fine-grained experts."""

from __future__ import annotations

from typing import Any

from benchmarks import report
from benchmarks.bounds import bounds
from benchmarks.findings import Run, say
from benchmarks.home import Home
from benchmarks.judge import Judge
from benchmarks.limits import Limits
from benchmarks.models import model_dir
from benchmarks.peers import llamacpp, transformers, turnout
from benchmarks.peers.environment import Unavailable
from benchmarks.prompts import Prompts
from benchmarks.turns import rounds
from benchmarks.visits import Amount, Contestant

OTHERS = {
    "smollm2": "SmolLM2-135M, dense: 30 layers, 576 wide",
    "qwen3moe-64e": "64 experts of 384 neurons, 8 of them a token, 12 layers, 1,024 wide; random weights",
}
BITS, METRICS, NUM_ROUNDS = "16 bits", ("prefill 512", "decode 1"), 2


def others_measured(run: Run) -> dict[str, Any]:
    """Prompt and decoding of each, two rounds in turn; plain data by model."""
    return {model: _measured(run, model) for model in OTHERS}


def _measured(run: Run, model: str) -> dict[str, Any]:
    own = Run(run.home, run.left_s / 60, Amount(concurrencies=()))
    own.measured = run.measured
    servers, path = _contestants(own, model), model_dir(model, run.home.models)
    prompts, judge = Prompts.of(path), Judge(transformers.ENVIRONMENT.python(run.home), path)
    try:
        rounds(own, servers, judge, prompts, lambda: None, at_most=NUM_ROUNDS)
    finally:
        judge.close()
        for server in servers:
            server.thaw()
            server.stop()
    return own.as_json()


def _contestants(run: Run, model: str) -> list[Contestant]:
    found: list[Contestant] = []
    for servers in (transformers.servers, llamacpp.servers):
        try:
            found += [one for one in servers(run.home, model) if one.precision == BITS]
        except Unavailable as error:
            run.missing[servers.__module__.rpartition(".")[2]] = str(error)
            say(f"{model}: {error}")
    engines = turnout.engine_servers(run.home, model, (BITS,))
    for engine in engines:
        turnout.write_panels(run.home, engine, threads=2)
    found += engines
    for one in found:
        run.contestants[one.name] = {"peer": one.peer, "precision": one.precision, "note": one.note}
    return found


def bounded(found: dict[str, Any], limit: Limits, home: Home) -> dict[str, Any]:
    """The same with what the limits allow each model, of which the page tells shares."""
    for model, run in found.items():
        allowed = bounds(model_dir(model, home.models), limit)
        run["extra"]["bounds"] = {
            "2": {metric: dict.fromkeys(run["contestants"], bound) for metric, bound in allowed.items()}
        }
    return found


def section(found: dict[str, Any]) -> list[str]:
    """The part of the page."""
    lines = ["## Other models, 16 bits", ""]
    for model, run in found.items():
        lines += [f"`{model}`: {OTHERS[model]}.", ""]
        for metric in METRICS:
            lines += report.table(run, metric, 2)
        lines += [f"- {name} was left out: {why}" for name, why in run["missing"].items()]
        refused = {name: one["refused"] for name, one in run["verdicts"].items() if one["refused"]}
        lines += [f"- **{name} is refused**: {why}" for name, why in refused.items()]
    return lines
