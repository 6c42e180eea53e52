"""Imports from the machine's own disk: only below the roots that the administrator opened."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.utils.translation import gettext as _

from common.errors import Invalid


def folder_checked(path: str) -> Path:
    """Return the real path of a model file or folder below an import root, or raise Invalid.

    Links are followed before the comparison, so that a link cannot lead outside.
    """
    roots: list[Path] = settings.IMPORT_ROOTS
    if not roots:
        raise Invalid(
            _("This installation opens no folder for imports: set TURNOUT_IMPORT_ROOTS, or upload the file."),
            fields={"source.path": path[:200]},
        )
    if "\0" in path or not path.startswith("/"):
        raise Invalid(_("Give an absolute path."), fields={"source.path": path[:200].replace("\0", "?")})
    real = Path(path).resolve()
    if not any(real.is_relative_to(root) for root in roots) or not real.exists():
        # One answer for both, so that nobody can probe for files elsewhere.
        raise Invalid(
            _("There is no such file or folder below the import roots of this installation."),
            fields={"source.path": path[:200]},
        )
    return real
