"""`python -m console.demo --report PATH`, with TURNOUT_ADDRESS and TURNOUT_TOKEN in the environment."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from console.demo.client import Api
from console.demo.state import Journey
from console.demo.steps import STEPS
from console.demo.verdict import print_table, shortfalls


def main(arguments: list[str] | None = None) -> int:
    """Run the main job; 0 when it ended well and the tuning gained what it promises."""
    parser = argparse.ArgumentParser(prog="console.demo", description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("demo-report.json"))
    parser.add_argument(
        "--label", default=f"demo-{time.strftime('%m%d-%H%M%S')}", help="the name of everything it makes"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps only: checks the way, not the gains"
    )
    chosen = parser.parse_args(arguments)
    journey = Journey(
        Api(os.environ["TURNOUT_ADDRESS"], os.environ["TURNOUT_TOKEN"]), chosen.label, chosen.quick
    )
    began = time.monotonic()
    try:
        for step in STEPS:
            step(journey)
        missing = [] if chosen.quick else shortfalls(journey.report["tuning"])
        journey.report.update(ok=not missing, shortfalls=missing)
    except Exception as error:
        print(f"\n{error}", file=sys.stderr)
        journey.report["error"] = str(error)
    journey.report["seconds"] = round(time.monotonic() - began, 1)
    write(chosen.report, journey.report)
    if "tuning" in journey.report:
        print_table(journey.report["tuning"])
    print(
        f"\n{'It holds' if journey.report['ok'] else 'It does not hold'}: {journey.report['seconds']} s in all",
        flush=True,
    )
    for sentence in journey.report.get("shortfalls", []):
        print(f"  {sentence}", flush=True)
    return 0 if journey.report["ok"] else 1


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the report whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    fresh.replace(path)


if __name__ == "__main__":
    sys.exit(main())
