"""Where models, environments and exports of the benchmark lie; everything is made once and kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Home:
    """One folder with a place for each kind of thing."""

    root: Path

    @classmethod
    def chosen(cls, given: Path | None) -> Home:
        """The given folder, that of TURNOUT_BENCH_HOME, or one in the data folder."""
        return cls((given or Path(os.environ.get("TURNOUT_BENCH_HOME") or ROOT / "var" / "bench")).resolve())

    def folder(self, *names: str) -> Path:
        """A folder in it, made when it is not there."""
        path = self.root.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def models(self) -> Path:
        """Model directories in our format, which is Hugging Face's."""
        return self.folder("models")

    @property
    def exports(self) -> Path:
        """The same models in the formats of peers."""
        return self.folder("exports")

    @property
    def logs(self) -> Path:
        """What servers print."""
        return self.folder("logs")
