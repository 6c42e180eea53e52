"""Modules of torch that serving does not use, left unread until somebody asks for them.

`import torch` reads `torch._meta_registrations` for its effects alone: shapes of some thousand operators, worked out in
Python for compilers and for tensors without memory, and with it `torch._decomp`, `torch._refs` and `torch._prims`: a
third of the import. An engine that maps its panels calls none of it. Whoever looks at anything in a late module, or
imports more of torch than `import torch` did (as `torch.compile` does), has them read first. Imports the standard
library alone.
"""

from __future__ import annotations

import sys
import threading
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.abc import Loader

LATE = ("torch._meta_registrations", "torch.distributions")
# What a model without memory imports beyond `import torch`; it lies in no circle with them.
ALONE = ("torch.utils._device",)
# One for all of them: to read one may be to read another.
_lock = threading.RLock()


class LateModule(ModuleType):
    """A module that is not read yet. Its name, file and spec are known; whoever asks for anything else has it read."""

    def __getattr__(self, name: str) -> Any:
        # What imports and `inspect` look for in every module there is, and take as absent.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} is not read yet and has no attribute {name!r}")
        # Another thread waits here until all is read; who reads it meets it in a circle, half made.
        read(self)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    def __dir__(self) -> Iterable[str]:
        read(self)
        # Not `super()`: once it is read it is a LateModule no more.
        return ModuleType.__dir__(self)


class _Later:
    """In a loader's place: makes the module, and leaves it unread."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return LateModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _AfterAll:
    """In the place of the loader of a module that `import torch` did not read: reads what was put off, then the module,
    unless it was among what that read. Torch's modules import each other in circles that hold in this order alone."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._spec_of_found: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        read_all()
        found = sys.modules.get(spec.name)
        if found is None:
            spec.loader = self._loader
            return self._loader.create_module(spec)
        self._spec_of_found = found.__spec__
        return found

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec_of_found


class _Finder:
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_more = name.startswith("torch.") and name not in ALONE and _is_read("torch")
        if name not in LATE and not is_more:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = (_Later if name in LATE else _AfterAll)(spec.loader)  # type: ignore[assignment]
        return spec


_FINDER = _Finder()


def put_off() -> None:
    """From now on the modules of `LATE` that are not imported yet are read late."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def read(module: ModuleType) -> None:
    """Read a module that was put off; nothing where it has been read. Raises what reading it raises."""
    with _lock:
        spec = module.__spec__
        if spec is None or not isinstance(spec.loader, _Later):
            return
        later, spec.loader = spec.loader, spec.loader.loader
        module.__loader__ = spec.loader
        try:
            spec.loader.exec_module(module)
        except BaseException:
            spec.loader = later  # type: ignore[assignment]
            raise
        module.__class__ = ModuleType


def read_all() -> None:
    """Put nothing off any more, and read what was: before torch itself works with a model's weights."""
    with _lock:
        if _FINDER in sys.meta_path:
            sys.meta_path.remove(_FINDER)
        for name in LATE:
            if (module := sys.modules.get(name)) is not None:
                read(module)


def _is_read(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)
