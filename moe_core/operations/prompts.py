"""Token sequences with their domains: what operations are fitted on and measured with.

Shapes: N prompts, S tokens of the longest, T = N·S.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.spec import ModelSpec

# Few enough that a batch takes seconds and its activations little memory; more make no product quicker.
BATCH_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of named domains, padded at their ends; padding is behind every real token and no loss looks at it."""

    codes: tuple[str, ...]
    # (N, S) int64; padding holds token 0.
    ids_NS: Tensor
    # (N, S) bool: a token of the prompt, not padding.
    real_NS: Tensor
    # (N,) int64: place of the prompt's domain in `codes`.
    domain_N: Tensor

    @classmethod
    def of(cls, by_domain: Mapping[str, Sequence[Sequence[int]]]) -> Prompts:
        """Prompts from lists of token ids; raises SpecError for a domain or a prompt that is empty, and for text."""
        _check_by_domain(by_domain)
        for code, prompts in by_domain.items():
            for prompt in prompts:
                _check_ids(code, prompt)
            if not prompts or not all(prompts):
                raise SpecError.of("empty_prompts", domain=code, count=len(prompts))
        if not by_domain:
            raise SpecError.of("no_prompts")
        rows = [(place, prompt) for place, code in enumerate(by_domain) for prompt in by_domain[code]]
        longest = max(len(prompt) for _, prompt in rows)
        ids_NS = torch.zeros(len(rows), longest, dtype=torch.long)
        real_NS = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, (_, prompt) in enumerate(rows):
            ids_NS[row, : len(prompt)] = torch.tensor(list(prompt), dtype=torch.long)
            real_NS[row, : len(prompt)] = True
        return cls(tuple(by_domain), ids_NS, real_NS, torch.tensor([place for place, _ in rows]))

    def __len__(self) -> int:
        return self.ids_NS.shape[0]

    def take(self, places: Sequence[int]) -> Prompts:
        """The prompts at these places, of the same domains."""
        at = torch.tensor(list(places), dtype=torch.long)
        return Prompts(self.codes, self.ids_NS[at], self.real_NS[at], self.domain_N[at])

    def of_domain(self, code: str) -> list[int]:
        """Places of the prompts of one domain; SpecError for a domain that is not among them."""
        if code not in self.codes:
            raise SpecError.of("domain_without_prompts", domain=code, known=", ".join(self.codes))
        return torch.nonzero(self.domain_N == self.codes.index(code)).flatten().tolist()

    def check_fits(self, spec: ModelSpec) -> None:
        """Raise SpecError when a token is outside a model's vocabulary, or a prompt longer than its positions reach."""
        lowest, worst = int(self.ids_NS.min()), int(self.ids_NS.max())
        if worst >= spec.vocab_size or lowest < 0:
            worst = lowest if lowest < 0 else worst
            raise SpecError.of("token_outside", token=worst, vocab_size=spec.vocab_size)
        longest = int(self.real_NS.sum(-1).max())
        if longest > spec.max_position_embeddings:
            raise SpecError.of(
                "prompt_over_positions", tokens=longest, positions=spec.max_position_embeddings
            )

    def batches(self) -> Iterator[Prompts]:
        """All prompts in their order, about so many tokens at a time, without columns that are padding alone."""
        size = max(1, BATCH_TOKENS // self.ids_NS.shape[1])
        for start in range(0, len(self), size):
            batch = self.take(range(start, min(start + size, len(self))))
            longest = int(batch.real_NS.sum(-1).max())
            yield Prompts(batch.codes, batch.ids_NS[:, :longest], batch.real_NS[:, :longest], batch.domain_N)

    @property
    def domain_T(self) -> Tensor:
        """(T,) domain of each token, padding included."""
        return self.domain_N.repeat_interleave(self.ids_NS.shape[1])

    @property
    def real_T(self) -> Tensor:
        """(T,) bool: no padding."""
        return self.real_NS.flatten()


def check_prompts(prompts: object, *, or_none: bool = False) -> None:
    """Raise SpecError for what are no prompts; with `or_none` there may be none."""
    if not isinstance(prompts, Prompts) and not (or_none and prompts is None):
        raise SpecError(
            f"an operation takes its texts as Prompts, not a {type(prompts).__name__}; tokenize them and make some with "
            "Prompts.of({'domain': [[5, 6], [7]]})"
        )


def _check_by_domain(by_domain: object) -> None:
    if not isinstance(by_domain, Mapping):
        raise SpecError(
            f"prompts are given by domain, as {{'law': [[5, 6], [7]]}}, and not as {repr(by_domain)[:40]}; name a domain"
        )
    for code, prompts in by_domain.items():
        if not isinstance(prompts, Sequence):
            raise SpecError(
                f"domain {code!r} has no list of prompts but {repr(prompts)[:40]}; give a list of lists of token ids"
            )


def _check_ids(code: str, prompt: object) -> None:
    ids = prompt if isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes) else (None,)
    if not all(isinstance(one, Integral) and not isinstance(one, bool) for one in ids):
        raise SpecError(
            f"a prompt of domain {code!r} is not a list of token ids: {repr(prompt)[:40]}; tokenize it first"
        )
