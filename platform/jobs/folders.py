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
        raise _refused(
            _("This installation opens no folder for imports: set TURNOUT_IMPORT_ROOTS, or upload the file.")
        )
    if "\0" in path or not path.startswith("/"):
        raise _refused(_("Give an absolute path."))
    real = Path(path).resolve()
    if not any(real.is_relative_to(root) for root in roots) or not real.exists():
        # One answer for both, so that nobody can probe for files elsewhere.
        raise _refused(_("There is no such file or folder below the import roots of this installation."))
    return real


def _refused(reason: str) -> Invalid:
    return Invalid(reason, fields={"source.path": reason})
