"""What an engine puts off of `import torch` stays unread while it serves, and is there for whoever asks."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from moe_core.checkpoint.hashes import hashes_of
from moe_core.engine import late_modules, mapped_model
from moe_core.engine.late_modules import LateModule
from moe_core.kernels.cpu.native import library
from moe_core.spec import ServeSpec
from tests.moe_core.engine.model_dirs import tiny_model, write_model_dir
from tests.moe_core.engine.test_panel_cache import answer, start

LATE_TORCH = """
import sys
from moe_core.engine import late_modules
late_modules.put_off()
import torch
late = [sys.modules[name] for name in late_modules.LATE]
def are_late():
    return all(isinstance(module, late_modules.LateModule) for module in late)
assert are_late() and not {"torch._decomp", "torch._refs", "torch._prims"} & set(sys.modules)
"""
FAMILIES = """
from moe_core.engine.mapped_model import _without_memory
from tests.moe_core.tiny import _FAMILIES
from tests.moe_core.tiny import tiny_family
for name in sorted(_FAMILIES):
    held = list(_without_memory(tiny_family(name), torch.bfloat16).parameters())
    assert held and all(one.is_meta for one in held), name
assert are_late()
"""
SERVES = """
import json
from moe_core.engine import handlers, service
from moe_core.spec import ServeSpec
from tests.moe_core.engine.test_panel_cache import answer, start
engine, cache = start(ServeSpec.parse(json.loads(sys.argv[1])))
assert cache.reader is not None
print(json.dumps(answer(engine)))
assert are_late()
"""
PACKS = """
import json
from moe_core.spec import ServeSpec
from tests.moe_core.engine.test_panel_cache import start
start(ServeSpec.parse(json.loads(sys.argv[1])))
assert not any(isinstance(module, late_modules.LateModule) for module in late)
assert "torch._decomp" in sys.modules
"""
THREADS = """
import threading
together, failed = threading.Barrier(8), []
def ask():
    together.wait()
    try:
        from torch.distributions import Categorical
        assert Categorical(torch.ones(3)).sample().shape == ()
    except BaseException as error:
        failed.append(repr(error))
threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
"""
ASKS = {
    "an attribute": "assert torch.distributions.Categorical(torch.ones(3)).sample().shape == ()",
    "a name from it": "from torch._meta_registrations import meta_embedding_bag",
    "a list of its names": "assert 'Categorical' in dir(torch.distributions)",
    "all names of it": "from torch.distributions import *; Categorical(torch.ones(3)).sample()",
    "another module, in whose circle it lies": "import torch.utils._content_store; assert not are_late()",
    "tensors that are not there": """
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    assert torch.linalg.cholesky_ex(torch.eye(3))[0].shape == (3, 3)
""",
    "a compiler": """
squared = torch.compile(lambda x_N: x_N @ x_N, backend="aot_eager")
assert squared(torch.ones(2, 2)).tolist() == [[2.0, 2.0], [2.0, 2.0]]
assert not are_late()
""",
}


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", LATE_TORCH + script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("who", ASKS)
def test_whoever_asks_has_it_read(who: str) -> None:
    run(ASKS[who])


def test_threads_that_ask_at_once_wait_until_all_is_read() -> None:
    for _ in range(3):
        run(THREADS)


def test_decoders_of_every_family_are_built_without_it() -> None:
    run(FAMILIES)


@pytest.mark.skipif(library() is None, reason="the kernels are not compiled")
def test_an_engine_that_maps_its_panels_answers_without_it_and_one_that_packs_reads_it(
    tmp_path: Path,
) -> None:
    write_model_dir(tmp_path / "tiny", tiny_model())
    told = {
        "model_dir": str(tmp_path / "tiny"), "socket_path": "none", "kv_tokens": 1024,
        "files": hashes_of(tmp_path / "tiny"), "panel_dir": str(tmp_path / "panels"),
    }  # fmt: skip
    run(PACKS, json.dumps(told))
    said = run(SERVES, json.dumps(told))
    engine, _ = start(ServeSpec.parse(told))
    assert json.loads(said) == answer(engine)


def test_a_layer_whose_shapes_are_worked_out_in_python_has_it_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(late_modules, "read_all", lambda: asked.append("read"))

    def decoder(spec: object, dtype: torch.dtype) -> torch.Tensor:
        if not asked:
            raise NotImplementedError("no Meta kernel registered")
        return torch.empty(2, dtype=dtype)

    monkeypatch.setattr(mapped_model, "Decoder", decoder)
    assert mapped_model._without_memory(None, torch.bfloat16).is_meta  # type: ignore[arg-type, attr-defined]
    assert asked == ["read"]


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that is not read yet, of a package of its own."""
    (tmp_path / "roomy").mkdir()
    (tmp_path / "roomy" / "__init__.py").write_text("")
    (tmp_path / "roomy" / "attic.py").write_text("import sys\nif sys.platform == 'none': 1 / 0\nlamp = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(late_modules, "LATE", ("roomy.attic",))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    late_modules.put_off()
    module = importlib.import_module("roomy.attic")
    for name in ("roomy", "roomy.attic"):
        del sys.modules[name]
    monkeypatch.setitem(sys.modules, "roomy.attic", module)
    return module


def test_looks_of_imports_do_not_read_it_and_all_others_do(late: ModuleType) -> None:
    assert isinstance(late, LateModule)
    assert late.__file__ is not None
    assert not hasattr(late, "__wrapped__")
    assert isinstance(late, LateModule)
    assert late.lamp == 7
    assert type(late) is ModuleType
    assert not hasattr(late, "ladder")


def test_whoever_lists_its_names_has_it_read(late: ModuleType) -> None:
    assert "lamp" in dir(late)
    assert type(late) is ModuleType
    assert dir(late) == sorted(vars(late))


def test_what_cannot_be_read_says_so_each_time(late: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "none")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            late.lamp  # noqa: B018
        with pytest.raises(ZeroDivisionError):
            dir(late)
    monkeypatch.undo()
    assert late.lamp == 7


def test_nothing_is_put_off_after_all_was_read(late: ModuleType) -> None:
    late_modules.read_all()
    assert vars(late)["lamp"] == 7
    assert not any(type(finder).__module__ == late_modules.__name__ for finder in sys.meta_path)
