"""Where things are: what a person may write into the environment, and what they are told when it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from standalone import paths, up
from standalone.errors import StandaloneError

WRONG = ["abc", "0", "70000", "-1", "80.5", "٣", "9" * 40]


@pytest.mark.parametrize("text", WRONG)
def test_a_port_that_is_none_is_named_with_the_way_out(text, monkeypatch) -> None:
    monkeypatch.setenv("TURNOUT_PORT", text)
    with pytest.raises(StandaloneError, match="TURNOUT_PORT is .*from 1 to 65535") as refused:
        up.options([])
    assert text in str(refused.value)
    with pytest.raises(StandaloneError, match="--port is"):
        up.options([f"--port={text}"])
    assert up.options(["--port", "8123"]).port == 8123


@pytest.mark.parametrize(("text", "wanted"), [("", 8000), ("1", 1), ("65535", 65535)])
def test_a_port_that_is_one_is_taken(text, wanted, monkeypatch) -> None:
    monkeypatch.setenv("TURNOUT_PORT", text)
    assert up.options([]).port == wanted


def test_the_terminal_shows_a_sentence_and_no_traceback(tmp_path) -> None:
    environment = {**os.environ, "TURNOUT_PORT": "abc", "TURNOUT_DATA_DIR": str(tmp_path / "data")}
    environment["PYTHONPATH"] = str(paths.ROOT / "platform")
    ended = subprocess.run(
        [sys.executable, "-m", "standalone", "up"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "TURNOUT_PORT is 'abc'" in ended.stderr
    assert "Traceback" not in ended.stderr
