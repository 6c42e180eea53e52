"""The bootstrap: says what is missing, installs only what has changed, speaks uv's words, uses nothing installed."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from standalone import environment as module
from standalone.environment import Environment
from standalone.errors import StandaloneError

ROOT = Path(__file__).resolve().parents[3]
BEFORE_INSTALLATION = ("bootstrap", "commands", "environment", "errors", "terminal", "__init__")


def test_the_size_of_the_demo_model_is_that_of_its_file() -> None:
    from common.figures import bytes_parts
    from jobs.builtin import CATALOGUE

    path = CATALOGUE["smollm2-135m-instruct"].path()
    if path is None:
        pytest.skip("the demo model is not installed")
    number, unit = bytes_parts(round(path.stat().st_size, -6))
    assert f"{float(number):.0f} {unit}" == module.DEMO_SIZE
    assert module.DEMO_SIZE in (ROOT / "docs" / "reference" / "commands.md").read_text()


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


@pytest.fixture
def prepared(checkout, monkeypatch):
    """An environment with a compiler, whose installer only writes down what it was asked for."""
    monkeypatch.setattr(module, "system_compiler", lambda: "/usr/bin/g++")
    asked: list[list[str]] = []
    environment = Environment(checkout)
    (checkout / ".venv" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    monkeypatch.setattr(Environment, "_make_folder", lambda self: None)
    monkeypatch.setattr(Environment, "_install", lambda self, arguments: asked.append(arguments))
    return environment, asked


@pytest.mark.parametrize("name", BEFORE_INSTALLATION)
def test_what_runs_before_the_installation_uses_the_standard_library_alone(name):
    tree = ast.parse((ROOT / "platform" / "standalone" / f"{name}.py").read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {f"standalone.{other}" for other in BEFORE_INSTALLATION} | {"standalone"}
    foreign = {
        item for item in found if item not in allowed and item.split(".")[0] not in sys.stdlib_module_names
    }
    assert foreign == set()


def test_the_second_call_installs_nothing(prepared):
    environment, asked = prepared
    environment.prepare(dev=True, model=True)
    assert len(asked) == 2
    environment.prepare(dev=True, model=True)
    environment.prepare(dev=False, model=False)
    assert len(asked) == 2


def test_a_changed_lock_installs_again_but_leaves_the_model(prepared):
    environment, asked = prepared
    environment.prepare(dev=False, model=True)
    lock = environment.requirements / "lock.txt"
    lock.write_text(lock.read_text() + "# changed\n")
    environment.prepare(dev=False, model=True)
    assert len(asked) == 3
    assert "--no-deps" not in asked[-1]


def test_versions_come_from_the_lock_and_the_model_without_its_launchers(prepared):
    environment, asked = prepared
    environment.prepare(dev=False, model=True)
    assert asked[0][-2:] == ["-c", str(environment.requirements / "lock.txt")]
    assert asked[1][0] == "--no-deps"


def test_the_compilers_are_those_that_the_builder_looks_for():
    from moe_core.kernels.cpu import build

    assert module.COMPILERS == build.COMPILERS


def test_a_compilers_wheel_is_installed_where_the_system_has_none(prepared, monkeypatch):
    environment, asked = prepared
    monkeypatch.setattr(module, "system_compiler", lambda: "/usr/bin/g++")
    environment.prepare(dev=False, model=False)
    assert len(asked) == 1
    monkeypatch.setattr(module, "system_compiler", lambda: None)
    environment.prepare(dev=False, model=False)
    environment.prepare(dev=False, model=False)
    assert len(asked) == 2
    assert asked[1] == ["--no-deps", "-r", str(environment.requirements / "compiler.in")]


def test_without_the_wheel_the_set_up_goes_on_and_says_so_once(prepared, monkeypatch, capsys):
    environment, asked = prepared
    monkeypatch.setattr(module, "system_compiler", lambda: None)

    def install(self, arguments):
        asked.append(arguments)
        if arguments[-1].endswith("compiler.in"):
            raise StandaloneError("no route to the index")

    monkeypatch.setattr(Environment, "_install", install)
    environment.prepare(dev=False, model=True)
    assert "torch will do the work of the CPU kernels" in capsys.readouterr().out
    assert [line[-1].rpartition("/")[2] for line in asked[1:]] == ["compiler.in", "model.in"]
    environment.prepare(dev=False, model=True)
    assert len(asked) == 3 and "torch will do" not in capsys.readouterr().out
    # Another place to look for it: it is tried again.
    monkeypatch.setenv("PIP_FIND_LINKS", "/some/wheels")
    environment.prepare(dev=False, model=False)
    assert asked[-1][-1].endswith("compiler.in")


def test_apps_and_library_are_importable_from_any_folder(prepared):
    environment, _ = prepared
    environment.prepare(dev=False, model=False)
    (path_file,) = environment.folder.rglob("turnout-source.pth")
    assert path_file.read_text().splitlines() == [str(environment.root / "platform"), str(environment.root)]


def test_a_missing_venv_module_is_named_with_the_way_out(checkout, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else real(name)
    )
    monkeypatch.setattr(module, "base_pip_serves", lambda: False)
    with pytest.raises(StandaloneError, match=r"'ensurepip' is missing.*apt install python3\.\d+-venv"):
        Environment(checkout).prepare(dev=False, model=False)


def test_uv_gets_the_same_mirror_and_wheel_folder_as_pip(checkout, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/some/wheels")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://chosen.example/simple")
    variables = Environment(checkout).uv_variables()
    assert variables["UV_FIND_LINKS"] == "/some/wheels"
    assert variables["UV_DEFAULT_INDEX"] == "https://chosen.example/simple"


def test_pip_takes_over_when_uv_cannot_be_had(checkout, monkeypatch):
    ran: list[list[str]] = []
    monkeypatch.setattr(Environment, "_uv", lambda self: None)
    monkeypatch.setattr(Environment, "_run", lambda self, command: ran.append(command))
    Environment(checkout)._install(["-r", "x.in"])
    assert ran[-1][-4:] == ["install", "--quiet", "-r", "x.in"]


@pytest.mark.parametrize(
    ("said", "serves"), [("22.3", True), ("26.0.1", True), ("22.2.9", False), ("", False)]
)
def test_pip_is_the_one_under_the_environment_that_runs_us(checkout, monkeypatch, tmp_path, said, serves):
    base = tmp_path / "python"
    base.write_text(f"#!/bin/sh\necho {said}\n")
    base.chmod(0o755)
    monkeypatch.setattr(sys, "_base_executable", str(base))
    monkeypatch.setattr(Environment, "_run", lambda self, command: None)
    environment = Environment(checkout)
    assert module.base_pip_serves() == serves
    assert environment._pip()[0] == str(base if serves else environment.python)


@pytest.mark.slow
@pytest.mark.parametrize("base_serves", [True, False], ids=["the-base-has-pip", "pip-must-be-made"])
def test_a_real_environment_is_made_with_a_pip_that_installs_into_it(checkout, monkeypatch, base_serves):
    if base_serves and not module.base_pip_serves():
        pytest.skip("the Python under these tests has no pip of its own")
    monkeypatch.setattr(module, "base_pip_serves", lambda: base_serves)
    environment = Environment(checkout)
    environment._make_folder()
    said = subprocess.run(
        [*environment._pip(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("pip ")
    assert environment.is_usable()
    # From within an environment too, the base's pip leaves it as it is.
    made = [path.name for path in environment.folder.glob("lib/python3.*/site-packages/pip")]
    assert made == ([] if base_serves else ["pip"])


def test_the_front_door_knows_its_commands_before_anything_is_installed(tmp_path):
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    run = subprocess.run(
        [python, "-I", str(ROOT / "turnout"), "help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    for word in ("up", "test", "demo", "doctor", "TURNOUT_PORT"):
        assert word in run.stdout
    unknown = subprocess.run(
        [python, str(ROOT / "turnout"), "fly"], capture_output=True, text=True, env=os.environ
    )
    assert unknown.returncode == 2
    assert "no command 'fly'" in unknown.stderr


@pytest.mark.parametrize(
    "words", [["stop"], ["up", "--help"], ["test", "--help"], ["demo", "--help"], ["version"]]
)
def test_help_and_stop_work_in_a_checkout_where_nothing_is_installed(tmp_path, words):
    for name in ("turnout", "pyproject.toml", "requirements", "platform/standalone"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    base = Path(sys.base_prefix) / "bin" / "python3"
    environment = {"PATH": "/usr/bin:/bin", "TURNOUT_DATA_DIR": str(tmp_path / "var")}
    command = [base, tmp_path / "turnout", *words]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / ".venv").exists()
