"""Named places where a test may kill the process or raise: `TURNOUT_FAILPOINTS=checkpoint.before_rename=kill9`.

Several are separated by commas; `name=action@3` waits for the third visit. Without the variable a failpoint costs
one dictionary look-up.
"""

from __future__ import annotations

import os
import signal

from moe_core.errors import MoeCoreError, SpecError

VARIABLE = "TURNOUT_FAILPOINTS"
ACTIONS = ("kill9", "raise")

_visits: dict[str, int] = {}


class FailpointRaised(MoeCoreError):
    """A failpoint was told to raise."""


def failpoint(name: str) -> None:
    """Do what the environment asks for at this place; nothing when it asks for nothing.

    Raises FailpointRaised for the action "raise" and SpecError for an action that is not known.
    """
    setting = os.environ.get(VARIABLE)
    if not setting:
        return
    for part in setting.split(","):
        wanted, _, action = part.strip().partition("=")
        if wanted == name:
            _act(name, *_action_and_visit(part, action))


def _action_and_visit(part: str, action: str) -> tuple[str, int]:
    verb, _, visit = action.partition("@")
    if verb not in ACTIONS or not (visit or "1").isdigit():
        raise SpecError(
            f"{VARIABLE}: {part!r} is not name=action or name=action@visit with {' or '.join(ACTIONS)}"
        )
    return verb, int(visit or "1")


def _act(name: str, action: str, visit: int) -> None:
    _visits[name] = _visits.get(name, 0) + 1
    if _visits[name] != visit:
        return
    if action == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    raise FailpointRaised(f"failpoint {name} was told to raise at visit {visit}")
