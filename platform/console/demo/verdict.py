"""What a tuning must have gained on held-out logs, and the table that shows it."""

from __future__ import annotations

from typing import Any

from common.gains import REAL_LEAD, judge, number_of

# What the demo promises is more than the least that counts as a gain (`common.gains`).
LOSS_FACTOR = 0.90
MIN_SHARE = 0.70
SHARE_OVER_CONTROL = REAL_LEAD
COLUMNS = (
    ("loss", "mean loss"),
    ("mapped_share", "mapped share"),
    ("max_vio", "MaxVio"),
    ("entropy", "entropy"),
)


def shortfalls(tuning: dict[str, Any]) -> list[str]:
    """Return a sentence for each promise that the figures do not keep."""
    before, after, control = tuning["before"], tuning["after"], tuning["control"]
    checks = [
        (
            after["loss"] <= LOSS_FACTOR * before["loss"],
            f"mean loss {after['loss']:.3f} is not 10 % under {before['loss']:.3f}",
        ),
        (
            after["mapped_share"] >= MIN_SHARE,
            f"mapped share {after['mapped_share']:.2f} is under {MIN_SHARE}",
        ),
        (
            after["mapped_share"] >= control["mapped_share"] + SHARE_OVER_CONTROL,
            f"mapped share {after['mapped_share']:.2f} is not {SHARE_OVER_CONTROL} over the control's "
            f"{control['mapped_share']:.2f}",
        ),
        (
            judge("max_vio", before["max_vio"], after["max_vio"]) != "worse",
            f"MaxVio {after['max_vio']:.2f} is over {before['max_vio']:.2f}",
        ),
    ]
    return [sentence for holds, sentence in checks if not holds]


def print_table(tuning: dict[str, Any]) -> None:
    """Show before, after and control side by side, and what each change is: better, worse or noise."""
    print(f"\n  {'held-out logs':<12}" + "".join(f"{title:>14}" for _key, title in COLUMNS))
    for state in ("before", "after", "control"):
        row = tuning.get(state) or {}
        cells = "".join(
            f"{row[key]:>14.3f}" if row.get(key) is not None else f"{'—':>14}" for key, _title in COLUMNS
        )
        print(f"  {state:<12}{cells}", flush=True)
    before, after = tuning.get("before") or {}, tuning.get("after") or {}
    words = (judge(key, number_of(before, key), number_of(after, key)) or "—" for key, _title in COLUMNS)
    print(f"  {'change':<12}" + "".join(f"{word:>14}" for word in words), flush=True)
