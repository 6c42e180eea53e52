"""What an engine does before and while its imports run. Imports the standard library alone.

Of a start that maps its panels most is imports. What torch reads for others is put off
(`late_modules`). Two things are not Python's work and need not wait for it: linking torch's
library, some 200 MB, and, when it is known, the panel file's hash (`panel_cache`). And the collector, which would look
through some hundred thousand new objects again and again for none that is garbage, rests until the engine is ready. Torch
asks for the module of a frame some thirty times, for which `inspect` finds the real path of every module there is.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import inspect
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from moe_core.engine import late_modules

_getmodule = inspect.getmodule


def begin() -> None:
    """Let the collector rest, put off what serving does not use of torch, take a frame's module by its name, and link
    torch's library on a thread of its own, so that `import torch` finds it."""
    gc.disable()
    inspect.getmodule = _module_of
    late_modules.put_off()
    found = importlib.util.find_spec("torch")
    if found is not None and found.origin is not None:
        library = Path(found.origin).parent / "lib" / "libtorch_cpu.so"
        threading.Thread(target=_link, args=(library,), name="link-torch", daemon=True).start()


def end() -> None:
    """Collect garbage again, among what is made from now on; the rest is never looked through. Frames' modules are found as
    ever."""
    inspect.getmodule = _getmodule
    gc.freeze()
    gc.enable()


def _module_of(object: Any, _filename: str | None = None) -> ModuleType | None:
    """As `inspect.getmodule`; a frame says by itself in which module it runs."""
    if inspect.isframe(object):
        module = sys.modules.get(object.f_globals.get("__name__", ""))
        if module is not None and vars(module) is object.f_globals:
            return module
    return _getmodule(object, _filename)


def _link(library: Path) -> None:
    # Without it, or when it cannot be linked so, `import torch` does it, and says what is wrong.
    with suppress(OSError):
        ctypes.CDLL(str(library))
