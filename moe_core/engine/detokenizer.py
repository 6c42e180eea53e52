"""Turns tokens into text as they come, and finds stop strings without ever showing a part of one."""

from __future__ import annotations

from typing import Protocol


class TextStream(Protocol):
    """Decodes one sequence's tokens in order; holds back bytes that are not yet a character."""

    def step(self, token_id: int) -> str:
        """The text that `token_id` completes, often empty."""
        ...

    def finish(self) -> str:
        """What was held back, now that no token follows."""
        ...


class Detokenizer:
    """The text of one answer.

    A stop string that its first `min_tokens` tokens complete ends nothing, one that a later one completes does, as in vLLM.
    """

    def __init__(self, stream: TextStream, stop: tuple[str, ...] = (), min_tokens: int = 0) -> None:
        self._stream = stream
        self._stop = stop
        self._left = min_tokens
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that may be shown after `token_id`; `stopped` turns true when a stop string is complete."""
        piece = self._stream.step(token_id)
        if self._left > 0:
            self._left -= 1
            return self._hold_back(self._held + piece) if self._stop else piece
        return self._release(piece)

    def finish(self) -> str:
        """The rest of the text when no stop string can follow any more."""
        if self.stopped:
            return ""
        text = self._release(self._stream.finish())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, piece: str) -> str:
        if not self._stop or not piece:
            return piece
        text = self._held + piece
        # What was held may be a whole stop string of the least tokens, kept as the start of a longer one: only what ends in
        # the new piece counts.
        found = (text.find(stop, max(0, len(self._held) - len(stop) + 1)) for stop in self._stop)
        places = [place for place in found if place >= 0]
        if places:
            self.stopped = True
            self._held = ""
            return text[: min(places)]
        return self._hold_back(text)

    def _hold_back(self, text: str) -> str:
        """The text without an end that could be the start of a stop string, which is kept."""
        num_held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` could be the start of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
