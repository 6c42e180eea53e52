"""`./turnout test`: every check on this checkout, and one honest summary at the end."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace

from standalone import browser
from standalone.build import KernelBuild, compile_catalogs
from standalone.paths import ROOT
from standalone.services import throwaway_services
from standalone.stages import NOT_RUN, PYTEST, SUBSETS, UNAVAILABLE, Stage
from standalone.terminal import note, say

SOME_FAILED = 1
NOTHING_COLLECTED = 5
COLOUR = re.compile(r"\x1b\[[\d;]*m")
FINAL_LINE = re.compile(r"^=*\s*(\d+ \w+.*in [\d.]+s.*|no tests ran in .*?)\s*=*$")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one stage ended: "passed", "failed" or "not run", and in whose words."""

    stage: Stage
    state: str
    seconds: float = 0.0
    said: str = ""


def run(name: str, arguments: list[str]) -> int:
    """Run the stages that the command line names; 0 only when all of them ran and passed."""
    stages = chosen_stages(name, arguments)
    began = time.monotonic()
    kernels = KernelBuild()  # beside the checks that only read
    compile_catalogs()
    outcomes = []
    for stage in stages:
        if stage.needs_kernels:
            kernels.finish()
        outcomes.append(run_stage(stage))
    return summarise(outcomes, time.monotonic() - began)


def chosen_stages(name: str, arguments: list[str]) -> list[Stage]:
    """Turn the command line into stages: a subset's name, or anything that pytest understands."""
    if name != "test":
        return SUBSETS[name]
    parser = argparse.ArgumentParser(
        prog="./turnout test",
        description="Run every check and test. Other words than a subset's name go to pytest as they are.",
    )
    parser.add_argument("subset", nargs="?", default="all", help=" | ".join(SUBSETS))
    chosen, rest = parser.parse_known_args(arguments)
    stages = SUBSETS.get(chosen.subset)
    if stages is None or (rest and len(stages) > 1):
        return [Stage("tests", "tests", [*PYTEST, *arguments])]
    return [replace(stage, command=[*stage.command, *rest]) for stage in stages]


def run_stage(stage: Stage) -> Outcome:
    """Run one stage, showing its output as it comes."""
    environment = {**os.environ, **stage.environment}
    if stage.needs_browser:
        found = browser.ensure_chromium()
        if found is None:
            return Outcome(stage, "not run", said="no Chromium could be found or installed on this machine")
        environment[browser.VARIABLE] = found
    say(f"\n----- {stage.title}: {shown(stage.command)}")
    began = time.monotonic()
    if stage.needs_services:
        with throwaway_services({}) as services:
            status, said = _follow(stage.command, environment | services.environment)
    else:
        status, said = _follow(stage.command, environment)
    if stage.is_pytest and status == SOME_FAILED:
        status, said = _second_try(stage, environment, said)
    seconds = time.monotonic() - began
    if stage.is_pytest and status == NOTHING_COLLECTED:
        return Outcome(stage, "not run", seconds, "pytest found no test")
    if not stage.is_pytest and status == UNAVAILABLE:
        return Outcome(stage, "not run", seconds, said)
    return Outcome(stage, "passed" if status == 0 else "failed", seconds, said)


def _second_try(stage: Stage, environment: dict[str, str], said: str) -> tuple[int, str]:
    """Run only the failed tests once more: a test that waits on a machine which others use may miss its moment.

    What fails twice has failed. What passes now is named in the summary, so that nobody takes it for sound.
    """
    say(f"\n----- {stage.title}, the failed ones once more")
    command = [*stage.command, "--last-failed", "--last-failed-no-failures", "none"]
    status, again = _follow(command, environment)
    return status, f"{said}; ONCE MORE: {again}"


def _follow(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command, pass its output on, and remember the line in which it sums itself up."""
    said = ""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            found = FINAL_LINE.match(COLOUR.sub("", line.strip()))
            said = found.group(1) if found else said
            said = line.strip().removeprefix(NOT_RUN) if line.startswith(NOT_RUN) else said
    return process.returncode, said


def summarise(outcomes: list[Outcome], seconds: float) -> int:
    """Print what passed, what failed and what did not run; return the exit status."""
    say("\n===== summary " + "=" * 60)
    for outcome in outcomes:
        line = (
            f"  {outcome.state.upper():<8} {outcome.stage.title:<30}{outcome.seconds:7.1f} s  {outcome.said}"
        )
        say(line.rstrip())
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    silent = [outcome for outcome in outcomes if outcome.state == "not run"]
    for outcome in silent:
        say(f"\n  !!! {outcome.stage.title.upper()} DID NOT RUN: {outcome.said}.")
    if silent and not strict():
        say("  !!! With CI=true this would be a failure.")
    good = not failed and not (silent and strict())
    note(f"{'All that ran passed' if good else 'FAILED'} in {seconds:.0f} s")
    return 0 if good else 1


def strict() -> bool:
    """True on a CI machine, where a check that did not run is a failure."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def shown(command: list[str]) -> str:
    """Return a command as a person would type it."""
    words = [word.removeprefix(f"{sys.prefix}/bin/") for word in command]
    return " ".join(f"'{word}'" if " " in word else word for word in words)
