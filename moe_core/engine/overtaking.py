"""Who may go before others that wait, and for how long they may be passed.

Beside a prompt that takes many steps a shorter one goes first, and is charged to its key. Where another key has the next
turn, that puts off the turn of whoever waits longer in its own key, each time anew: so it is allowed for so many steps,
and to keys that are ahead by so much. Where the key has the next turn itself, the first of its line is next in any case.
"""

from __future__ import annotations

from collections.abc import Iterable

from moe_core.engine.affinity import WINDOW, in_turn
from moe_core.engine.fair_queue import FairQueue
from moe_core.engine.sequence import Sequence

# So many steps after the first of a key's line lost a turn, no shorter one of its key passes it any more.
MAX_PASSED_STEPS = 64
# A key goes before its turn only while it is ahead of the least served by no more: else it would go on until a long prompt
# of its own had to wait for all of that.
MOST_AHEAD_TOKENS = 8192


def choose_shorter(waiting: FairQueue, than: int, now_step: int) -> tuple[Sequence | None, Sequence | None]:
    """Who goes next beside a prompt that takes many steps, and the first of its line where that loses a turn; or None.

    It is the first in the order with fewer than `than` tokens to compute that passes nobody of its key who has a lower
    priority or was passed for long, and whose key is not too far ahead of the least served.
    """
    window = waiting.window(WINDOW) if than else []
    least = min((waiting.served(one.fair_key) for one in window), default=0.0)
    most = least + MOST_AHEAD_TOKENS
    first: dict[str, Sequence] = {}
    for one in (window[place] for place in in_turn(window)):
        head = first.setdefault(one.fair_key, one)
        if one.num_missing_tokens >= than or waiting.served(one.fair_key) > most:
            continue
        since = head.passed_at_step
        if head is one or (head is window[0] and since is None):
            return one, None
        if since is None or now_step - since < MAX_PASSED_STEPS:
            return one, head
    return None, None


def note_passed(first: Sequence | None, now_step: int) -> None:
    """Note when the first of a line first lost a turn to a shorter one of its key."""
    if first is not None and first.passed_at_step is None:
        first.passed_at_step = now_step


def note_overtaken(passed: Iterable[Sequence], now_step: int) -> None:
    """Note when sequences were first overtaken for their experts."""
    for sequence in passed:
        if sequence.overtaken_at_step is None:
            sequence.overtaken_at_step = now_step
