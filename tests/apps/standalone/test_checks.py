"""`./turnout test` says honestly what ran, and CI refuses what did not."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from standalone import browser, checks
from standalone.checks import Outcome, chosen_stages, run_stage, summarise
from standalone.paths import ROOT
from standalone.stages import BROWSER, LINT, NOT_RUN, PYTEST, SPEED, STATIC, SUBSETS, UNAVAILABLE, Stage


def test_without_a_word_everything_runs_and_the_browser_has_its_own_process():
    stages = chosen_stages("test", [])
    assert [stage.name for stage in stages] == [
        *(stage.name for stage in STATIC),
        "tests",
        "triton-quick",
        "browser",
        "pages",
        "speed",
    ]
    assert "no:django" in BROWSER.command


def test_a_word_that_is_no_subset_goes_to_pytest_as_it_is():
    (stage,) = chosen_stages("test", ["tests/apps/jobs", "-k", "lease", "-x"])
    assert stage.command == [*PYTEST, "tests/apps/jobs", "-k", "lease", "-x"]


def test_more_words_after_a_single_stage_are_added_to_it():
    (stage,) = chosen_stages("test", ["browser", "-k", "heat"])
    assert stage.command == [*BROWSER.command, "-k", "heat"]


@pytest.mark.parametrize("name", ["lint", "types", "contracts"])
def test_single_checks_are_commands_too(name):
    assert chosen_stages(name, []) == SUBSETS[name]


@pytest.fixture
def outcomes():
    return [Outcome(LINT, "passed", 1.0), Outcome(BROWSER, "not run", 0.0, "no Chromium could be found")]


def test_what_did_not_run_is_said_loudly(outcomes, monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    assert summarise(outcomes, 1.0) == 0
    assert "BROWSER TESTS DID NOT RUN: no Chromium could be found" in capsys.readouterr().out


def test_on_ci_what_did_not_run_is_a_failure(outcomes, monkeypatch, capsys):
    monkeypatch.setenv("CI", "true")
    assert summarise(outcomes, 1.0) == 1
    assert "FAILED" in capsys.readouterr().out


def test_one_failure_fails_the_whole(monkeypatch, capsys):
    assert summarise([Outcome(LINT, "passed"), Outcome(LINT, "failed")], 1.0) == 1


def test_a_missing_browser_means_not_run(monkeypatch):
    monkeypatch.setattr(browser, "ensure_chromium", lambda: None)
    assert run_stage(BROWSER).state == "not run"


def test_a_pytest_run_that_finds_no_test_is_not_a_pass(tmp_path):
    stage = Stage(
        "tests", "tests", [*PYTEST, "-p", "no:django", "-c", "/dev/null", "-o", "addopts=", str(tmp_path)]
    )
    assert run_stage(stage).state == "not run"


def test_speed_that_could_not_be_measured_did_not_run_and_fails_on_ci(monkeypatch, capsys):
    """Without kernels the short comparison has nothing to measure: nobody may take that for a pass."""
    without = (
        "import sys; from benchmarks import compare; setattr(compare, 'library', lambda: None); sys.exit(compare.main())"
    )
    outcome = run_stage(replace(SPEED, command=[sys.executable, "-c", without, "--quick"]))
    assert outcome.state == "not run" and "nothing was measured" in outcome.said
    monkeypatch.setenv("CI", "true")
    assert summarise([outcome], 1.0) == 1
    assert (
        "SPEED AGAINST TRANSFORMERS DID NOT RUN: the CPU kernels are not compiled" in capsys.readouterr().out
    )


def test_speed_waits_for_the_kernels_that_are_compiled_beside(monkeypatch):
    told = []
    monkeypatch.setattr(
        checks, "KernelBuild", lambda: SimpleNamespace(finish=lambda: told.append("compiled"))
    )
    monkeypatch.setattr(checks, "compile_catalogs", lambda: None)
    monkeypatch.setattr(
        checks, "run_stage", lambda stage: told.append(stage.name) or Outcome(stage, "passed")
    )
    assert checks.run("test", ["speed"]) == 0
    assert told == ["compiled", "speed"]


def test_a_command_that_lacks_what_it_needs_did_not_run_and_says_why():
    program = f"print('{NOT_RUN}no such version'); raise SystemExit({UNAVAILABLE})"
    outcome = run_stage(Stage("versions", "versions", [sys.executable, "-c", program]))
    assert (outcome.state, outcome.said) == ("not run", "no such version")


def test_the_line_in_which_pytest_sums_itself_up_is_repeated(tmp_path, capsys):
    (tmp_path / "test_two.py").write_text("def test_a(): pass\ndef test_b(): assert False\n")
    stage = Stage(
        "tests", "tests", [*PYTEST, "-p", "no:django", "-c", "/dev/null", "-o", "addopts=", str(tmp_path)]
    )
    outcome = run_stage(stage)
    assert outcome.state == "failed"
    assert outcome.said.startswith("1 failed, 1 passed in ")


def test_commands_are_shown_as_one_would_type_them():
    assert checks.shown([f"{sys.prefix}/bin/python", "-m", "not browser"]) == "python -m 'not browser'"


@pytest.mark.parametrize(("always", "state"), [(False, "passed"), (True, "failed")])
def test_what_fails_once_is_tried_once_more_and_named(tmp_path, always, state, capfd):
    flag = tmp_path / "been-here"
    (tmp_path / "test_flaky.py").write_text(
        "from pathlib import Path\n\n"
        f"def test_it():\n    flag = Path({str(flag)!r})\n    seen = flag.exists()\n    flag.touch()\n"
        f"    assert seen and not {always}\n\n"
        "def test_that():\n    pass\n"
    )
    isolated = [
        "-o",
        f"cache_dir={tmp_path / 'cache'}",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tmp_path),
        "-p",
        "no:django",
    ]
    outcome = run_stage(Stage("flaky", "flaky", [*PYTEST, *isolated, str(tmp_path / "test_flaky.py")]))
    assert outcome.state == state
    assert "ONCE MORE: 1 " in outcome.said


def test_every_browser_test_belongs_to_a_stage_that_runs():
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.browser" in path.read_text()]
    places = [place for stage in SUBSETS["all"] if "browser" in stage.command for place in stage.command[-1:]]
    assert len(marked) > 5
    assert all(
        str(path.relative_to(ROOT)).startswith(tuple(places))
        for path in marked
        if path.name != "test_checks.py"
    )
