"""What an engine's process does while it imports: torch's library is linked beside it, and the collector rests."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
import threading

import pytest

from moe_core.engine import head_start

LINKED = """
import gc, sys, threading
from moe_core.engine import server
assert not {"torch", "pydantic", "aiohttp"} & set(sys.modules), "the server's module is to import the standard library alone"
server.head_start.begin()
assert not gc.isenabled()
for thread in threading.enumerate():
    if thread.name == "link-torch":
        thread.join()
assert "torch" not in sys.modules
assert "libtorch_cpu" in open("/proc/self/maps").read()
import torch
assert float(torch.ones(3).sum()) == 3.0
server.head_start.end()
assert gc.isenabled() and gc.get_freeze_count() > 10_000
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is linked from /proc")
def test_torch_is_linked_before_it_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", LINKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_torch_nothing_is_linked_and_the_collector_wakes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    try:
        head_start.begin()
        assert not gc.isenabled()
        assert "link-torch" not in {thread.name for thread in threading.enumerate()}
    finally:
        head_start.end()
        gc.unfreeze()
    assert gc.isenabled()


FRAMES = """
import inspect, sys
from moe_core.engine import head_start
walked, original = [], inspect.getmodule
head_start.begin()
def looked_through(asked, *rest):
    if inspect.isframe(asked):
        walked.append(asked.f_code.co_filename)
    return original(asked, *rest)
head_start._getmodule = looked_through
import torch
assert not walked, walked
@torch.library.custom_op("turnout_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2
assert inspect.getmodule(sys._getframe()) is sys.modules["__main__"]
assert inspect.getmodule(inspect) is inspect and inspect.getmodule(inspect.isframe) is inspect
exec("import inspect, sys; inspect.getmodule(sys._getframe())", {"__name__": "nowhere"})
assert set(walked) == {"<string>"}
head_start._getmodule = original
head_start.end()
assert inspect.getmodule is original
assert float(twice(torch.ones(1))) == 2.0
"""


def test_a_start_takes_the_module_of_a_frame_by_its_name() -> None:
    done = subprocess.run([sys.executable, "-c", FRAMES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


NEEDED = """
import sys
from moe_core.engine import handlers, loading, service
rooms = {"moe_core.spec": ("operations", "train", "layout", "foresee"),
         "moe_core.model.families": ("gpt_oss", "deepseek_v3", "qwen3_moe", "turnout_moe")}
spare = [name for room, files in rooms.items() for file in files if (name := f"{room}.{file}") in sys.modules]
assert not spare, f"imported at every start, and needed by few engines: {spare}"
"""


def test_an_engines_start_reads_no_family_and_no_operation_that_it_does_not_serve() -> None:
    done = subprocess.run([sys.executable, "-c", NEEDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_tokenizer_is_read_without_torch() -> None:
    script = "import sys; import moe_core.checkpoint.tokenizer; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
