"""Finds a Chromium for the browser tests, and gets one (with a Chinese font) where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from standalone.terminal import note, step

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("chromium", "fonts-wqy-microhei")
VARIABLE = "TURNOUT_CHROMIUM"


def find_chromium() -> str | None:
    """Return a browser's path: the one that TURNOUT_CHROMIUM names, the system's, or Playwright's own."""
    named = os.environ.get(VARIABLE)
    if named:
        return named if os.access(named, os.X_OK) else None
    for name in NAMES:
        found = shutil.which(name)
        if found and not _is_snap_stub(Path(found)):
            return found
    return _playwrights_own()


def ensure_chromium() -> str | None:
    """Return a browser, installing one when there is none; None when none can be had."""
    found = find_chromium()
    if (found and chinese_font_present()) or os.environ.get(VARIABLE):
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _install_by_apt()
        found = find_chromium()
    return found or _install_by_playwright()


def chinese_font_present() -> bool:
    """True when some font can show Chinese."""
    if not shutil.which("fc-list"):
        return False
    listed = subprocess.run(["fc-list", ":lang=zh"], capture_output=True, text=True, check=False)
    return bool(listed.stdout.strip())


def _install_by_apt() -> None:
    """Install the browser and the font as root."""
    quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    with step(f"Installing {' and '.join(PACKAGES)} with apt"):
        subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)  # type: ignore[call-overload]
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        status = subprocess.run(install, check=False, **quiet).returncode  # type: ignore[call-overload]
    if status != 0:
        note(f"apt could not install {' '.join(PACKAGES)} (status {status})")


def _install_by_playwright() -> str | None:
    """Let Playwright download its own browser (needs the system libraries of a browser)."""
    with step("Getting Chromium through Playwright"):
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        status = subprocess.run(command, capture_output=True, check=False).returncode
    return _playwrights_own() if status == 0 else None


def _playwrights_own() -> str | None:
    """Return the browser that Playwright has downloaded, if it has."""
    root = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    for path in sorted(root.glob("chromium-*/chrome-linux*/chrome"), reverse=True):
        return str(path)
    return None


def _is_snap_stub(path: Path) -> bool:
    """True for Ubuntu's placeholder script, which starts nothing where there is no snapd."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return b"/snap/" in head and not shutil.which("snap")
