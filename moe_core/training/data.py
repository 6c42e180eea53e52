"""Logs become windows of tokens: read, formatted, cut, and dealt out in an order that depends on the seed alone.

Shapes: N windows, S tokens a window.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from moe_core import strict_json
from moe_core.errors import MoeCoreError, TrainingError

MAX_LINE_BYTES = 1 << 20
ROLES = ("system", "user", "assistant")


class ChatTokens(Protocol):
    """A conversation as ids, and which of them an assistant is trained to say."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def learnt(self) -> list[bool]: ...


class ChatTokenizer(Protocol):
    """The one thing that windows need of a tokenizer."""

    def log_tokens(self, messages: Sequence[dict[str, str]]) -> ChatTokens: ...


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of the logs."""

    messages: tuple[dict[str, str], ...]
    domain: str | None


@dataclass(frozen=True, slots=True)
class Windows:
    """N windows of S tokens of one domain each."""

    # (N, S) int64; padding holds token 0.
    ids_NS: Tensor
    # (N, S) bool: a token of the logs, not padding.
    real_NS: Tensor
    # (N, S) bool: the next token is one that the model is to say, so this position has a loss.
    target_NS: Tensor
    # (N,) int64: row of the domain in the routing policy; -1 for logs of no mapped domain.
    domain_N: Tensor

    def __len__(self) -> int:
        return self.ids_NS.shape[0]

    def take(self, index: Sequence[int]) -> Windows:
        """The windows at these places."""
        at = torch.tensor(index, dtype=torch.long, device=self.ids_NS.device)
        return Windows(self.ids_NS[at], self.real_NS[at], self.target_NS[at], self.domain_N[at])

    def to(self, device: torch.device) -> Windows:
        """The same windows on a device."""
        return Windows(
            self.ids_NS.to(device),
            self.real_NS.to(device),
            self.target_NS.to(device),
            self.domain_N.to(device),
        )

    def of_domain(self, domain: int) -> list[int]:
        """Places of the windows of one domain."""
        return torch.nonzero(self.domain_N == domain).flatten().tolist()


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a JSONL file; raises TrainingError that names the line which is not one."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            if len(line) > MAX_LINE_BYTES:
                raise TrainingError(
                    f"{path.name}:{number}: {len(line)} bytes, at most {MAX_LINE_BYTES} a line"
                )
            try:
                yield _conversation(strict_json.loads(line))
            except (MoeCoreError, ValueError) as error:
                raise TrainingError(f"{path.name}:{number}: {error}") from error


def _conversation(row: Any) -> Conversation:
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError("a log line needs a list of messages")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"a message needs a role, one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise ValueError("a message needs a text as its content")
    domain = row.get("domain")
    if domain is not None and not isinstance(domain, str):
        raise ValueError(f"the domain is a text or null, not {domain!r}")
    return Conversation(tuple({"role": m["role"], "content": m["content"]} for m in messages), domain)


def windows_of(
    conversations: Iterable[Conversation], tokenizer: ChatTokenizer, codes: Sequence[str], window_tokens: int
) -> Windows:
    """Join the conversations of each domain in their order and cut the stream; only its last window is padded."""
    streams: dict[int, tuple[list[int], list[bool]]] = {}
    for conversation in conversations:
        domain = codes.index(conversation.domain) if conversation.domain in codes else -1
        ids, learnt = streams.setdefault(domain, ([], []))
        # The logs as they are: a system prompt that the format would add is the same in every domain.
        tokens = tokenizer.log_tokens(conversation.messages)
        ids.extend(tokens.ids)
        learnt.extend(tokens.learnt)
    cuts = [
        (domain, ids[start : start + window_tokens], learnt[start : start + window_tokens])
        for domain, (ids, learnt) in sorted(streams.items())
        for start in range(0, len(ids), window_tokens)
    ]
    return _stacked(cuts, window_tokens)


def _stacked(cuts: list[tuple[int, list[int], list[bool]]], window_tokens: int) -> Windows:
    shape = (len(cuts), window_tokens)
    ids_NS = torch.zeros(shape, dtype=torch.long)
    real_NS, target_NS = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for row, (_, ids, learnt) in enumerate(cuts):
        ids_NS[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        real_NS[row, : len(ids)] = True
        target_NS[row, : len(ids) - 1] = torch.tensor(learnt[1:], dtype=torch.bool)
    return Windows(ids_NS, real_NS, target_NS, torch.tensor([cut[0] for cut in cuts], dtype=torch.long))


def spread(places: Sequence[int], count: int) -> list[int]:
    """At most `count` of the places, evenly spread over all of them."""
    if len(places) <= count:
        return list(places)
    return [places[index * len(places) // count] for index in range(count)]


class Dealer:
    """Deals windows of one domain: every window once an epoch, in an order that seed and epoch decide.

    It has no state: what step 7 sees does not depend on whether steps 0 to 6 ran in this process.
    """

    def __init__(self, places: Sequence[int], seed: int, name: str) -> None:
        if not places:
            raise TrainingError.of("no_window", name=name)
        self.places = list(places)
        self.seed = seed
        self.name = name

    def deal(self, start: int, count: int) -> list[int]:
        """The windows number `start` to `start + count` of an endless sequence of epochs."""
        size = len(self.places)
        return [self._epoch(number // size)[number % size] for number in range(start, start + count)]

    def _epoch(self, epoch: int) -> list[int]:
        order = random.Random(f"{self.seed}/{self.name}/{epoch}")
        return order.sample(self.places, len(self.places))


def token_counts(path: Path, tokenizer: ChatTokenizer, vocab_size: int) -> Tensor:
    """(V,) int64: how often each vocabulary entry occurs in a file of logs, as a model reads them."""
    counts_V = torch.zeros(vocab_size, dtype=torch.int64)
    for talk in read_conversations(path):
        ids = tokenizer.log_tokens(talk.messages).ids
        counts_V += torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=vocab_size)
    return counts_V
