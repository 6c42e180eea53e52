"""One idea a file: nothing that we write by hand is over 350 lines long."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST = 350


def lines_by_file() -> dict[str, int]:
    """Lines of each Python file that is ours; migrations are written by Django."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "turnout"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        names = [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    else:
        # An unpacked archive has no history to ask.
        rooms = ("moe_core", "platform", "workers", "benchmarks", "tests")
        names = [str(path.relative_to(ROOT)) for room in rooms for path in (ROOT / room).rglob("*.py")]
    ours = [name for name in names if "/migrations/" not in name]
    return {name: len((ROOT / name).read_text("utf-8").splitlines()) for name in ours}


def test_no_file_is_longer_than_one_idea() -> None:
    lines = lines_by_file()
    assert {"turnout", "manage.py"} <= lines.keys() and len(lines) > 500
    long = {name: count for name, count in lines.items() if count > MOST}
    assert not long, f"over {MOST} lines: {long}; give the second idea a file of its own"
