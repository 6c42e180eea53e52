"""What an engine does before and while its imports run. Imports the standard library alone.

Of a start that maps its panels most is imports. What torch reads for others is put off
(`late_modules`). Two things are not Python's work and need not wait for it: linking torch's
library, some 200 MB, and, when it is known, the panel file's hash (`panel_cache`). And the collector, which would look
through some hundred thousand new objects again and again for none that is garbage, rests until the engine is ready.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import threading
from contextlib import suppress
from pathlib import Path

from moe_core.engine import late_modules


def begin() -> None:
    """Let the collector rest, put off what serving does not use of torch, and link torch's library on a thread of its own,
    so that `import torch` finds it."""
    gc.disable()
    late_modules.put_off()
    found = importlib.util.find_spec("torch")
    if found is not None and found.origin is not None:
        library = Path(found.origin).parent / "lib" / "libtorch_cpu.so"
        threading.Thread(target=_link, args=(library,), name="link-torch", daemon=True).start()


def end() -> None:
    """Collect garbage again, among what is made from now on; the rest is never looked through."""
    gc.freeze()
    gc.enable()


def _link(library: Path) -> None:
    # Without it, or when it cannot be linked so, `import torch` does it, and says what is wrong.
    with suppress(OSError):
        ctypes.CDLL(str(library))
