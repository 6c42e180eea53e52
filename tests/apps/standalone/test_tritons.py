"""`./turnout test triton` runs the kernels' tests with each version, and with that one and no other."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from standalone import tritons
from standalone.checks import chosen_stages
from standalone.errors import StandaloneError
from standalone.stages import NOT_RUN, UNAVAILABLE


@pytest.fixture(autouse=True)
def own_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))


def test_the_pinned_version_is_tested_and_others_beside_it():
    assert tritons.pinned() in tritons.versions()
    assert {"3.6.0", "3.7.1", "3.9.0"} <= set(tritons.versions())


def test_one_version_can_be_named_on_the_command_line():
    (stage,) = chosen_stages("test", ["triton", "--triton-version", "3.9.0", "-k", "align"])
    assert stage.command[-4:] == ["--triton-version", "3.9.0", "-k", "align"]
    with pytest.raises(SystemExit):
        tritons.main(["--triton-version", "1.0.0"])


def test_another_version_is_installed_once_alone_and_stands_first_on_the_path(monkeypatch):
    installed = []

    def install(self, arguments):
        folder = arguments[arguments.index("--target") + 1]
        os.makedirs(folder)
        installed.append(arguments)

    monkeypatch.setattr("standalone.environment.Environment._install", install)
    folders = [tritons.folder_of("3.9.0") for _ in range(2)]
    assert folders[0] == folders[1]
    assert len(installed) == 1
    assert "--no-deps" in installed[0]
    assert tritons.variables(folders[0])["PYTHONPATH"].split(os.pathsep)[0] == str(folders[0])


def test_a_changed_requirement_is_installed_again(monkeypatch, tmp_path):
    installed = []
    monkeypatch.setattr(
        "standalone.environment.Environment._install",
        lambda self, arguments: (
            installed.append(arguments),
            (tmp_path / "triton" / "3.9.0").mkdir(parents=True),
        ),
    )
    folder = tritons.folder_of("3.9.0")
    (folder / tritons.STAMP).write_text("of other requirements")
    assert tritons.folder_of("3.9.0") == folder
    assert len(installed) == 2


def test_the_pinned_version_is_the_one_of_the_environment(monkeypatch):
    assert tritons.folder_of(tritons.pinned()) is None


def test_a_run_with_another_version_than_was_asked_for_fails_before_its_tests(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tritons, "folder_of", lambda version: tmp_path)
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("__version__ = '9.9.9'\n")
    assert tritons.check("3.9.0", []) == 1
    assert "Triton 9.9.9 was found where 3.9.0 was installed" in capsys.readouterr().out


def test_one_failing_version_fails_the_whole_and_is_named(monkeypatch, capsys):
    monkeypatch.setattr(tritons, "check", lambda version, words, quick: int(version == "3.9.0"))
    assert tritons.main([]) == 1
    assert "Failed with Triton 3.9.0" in capsys.readouterr().out
    assert tritons.main(["--triton-version", "3.6.0"]) == 0


def test_the_quick_part_is_of_the_other_versions_and_compiles_for_one_chip_of_each_maker(
    monkeypatch, tmp_path
):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=f"{options['env']['VERSION']}\n")

    monkeypatch.setattr(tritons, "folder_of", lambda version: tmp_path / version)
    monkeypatch.setattr(tritons, "variables", lambda folder: {"VERSION": folder.name})
    with monkeypatch.context() as patched:
        patched.setattr(tritons.subprocess, "run", run)
        assert tritons.main(["--quick"]) == 0
    tested = commands[1::2]
    assert len(tested) == len(tritons.versions()) - 1
    assert all(tritons.TESTS in command for command in tested)
    listed = subprocess.run(
        [*tested[0], "--collect-only", "-o", "addopts=", "-k", "ahead"],
        cwd=tritons.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.findall(r"fits_its_chip\[(\w+)\]", listed.stdout) == ["sm90", "gfx942"]


def test_a_version_that_cannot_be_installed_is_named_and_did_not_run(monkeypatch, capsys):
    def refuse(self, arguments):
        if "3.9.0" in arguments[1]:
            raise StandaloneError("no network")
        raise AssertionError(f"{arguments} is not installed here")

    monkeypatch.setattr("standalone.environment.Environment._install", refuse)
    assert tritons.main(["--triton-version", "3.9.0"]) == UNAVAILABLE
    said = capsys.readouterr().out
    assert "Triton 3.9.0 could not be installed: no network" in said
    assert said.splitlines()[-1].startswith(f"{NOT_RUN}Triton 3.9.0 could not be installed")


def test_a_failure_weighs_more_than_a_version_that_is_missing(capsys):
    assert tritons.verdict({"3.6.0": UNAVAILABLE, "3.9.0": 1}) == 1
    said = capsys.readouterr().out
    assert "Failed with Triton 3.9.0\n" in said
    assert "Triton 3.6.0 could not be installed" in said
    assert tritons.verdict({"3.6.0": UNAVAILABLE, "3.9.0": 0}) == UNAVAILABLE
    assert "Passed" not in capsys.readouterr().out


def test_words_go_to_pytest(monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=f"{tritons.pinned()}\n")

    monkeypatch.setattr(tritons.subprocess, "run", run)
    assert tritons.main(["--triton-version", tritons.pinned(), "-k", "align"]) == 0
    assert commands[-1][-2:] == ["-k", "align"]
    assert tritons.TESTS in commands[-1]
