"""Answers held to a JSON schema, a regular expression, a list of choices or a grammar, by llguidance.

A grammar is compiled once, on the thread that asks, within limits of size and work; each answer then walks a copy of it.
Nothing is fetched: a `$ref` outside the schema is refused.

Shapes: V vocabulary.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
import torch
from torch import Tensor

from moe_core.engine.endless_schema import never_ends
from moe_core.engine.requests import GrammarBody
from moe_core.engine.text import TextCodec
from moe_core.errors import EngineError, SpecError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_CACHED = 64
# So many parts of a refused schema are looked at to find the one at fault.
MAX_PROBES = 200
# Blanks mean nothing and cost a step each, of which a small model takes all it may: only the one that models know after a
# comma and a colon. Source: the separators of Python's `json.dumps`, and those without it.
JSON_OPTIONS: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": r",\x20?",
    "key_separator": r":\x20?",
    "lenient": False,
    "coerce_one_of": False,
}
# Where a JSON schema holds further schemas: one, a list, or one by name.
ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


class GrammarMatcher:
    """One answer's way through a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._words = np.zeros((vocab_size + 31) // 32, dtype=np.int32)

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def forbid(self, scores_V: Tensor) -> None:
        """Set the scores of tokens that may not follow to -inf, in place; V may exceed the tokenizer's vocabulary.

        Raises:
            EngineError: when the grammar went beyond its limits.
        """
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._matcher.is_error():
            raise EngineError(f"the grammar cannot go on: {self._matcher.get_error()[:300]}")
        allowed = np.unpackbits(self._words.view(np.uint8), count=self._vocab_size, bitorder="little")
        known = min(self._vocab_size, scores_V.shape[0])
        scores_V[:known].masked_fill_(torch.from_numpy(allowed[:known]) == 0, -torch.inf)
        scores_V[known:] = -torch.inf

    def advance(self, token_id: int) -> None:
        """Note a chosen token; what the grammar then cannot do shows at the next `forbid`."""
        self._matcher.consume_token(token_id)


class GrammarCompiler:
    """Compiles grammars for one vocabulary and keeps the newest. Safe to use from several threads."""

    def __init__(self, codec: TextCodec, end_ids: Iterable[int]) -> None:
        self._codec = codec
        self._end_ids = sorted(end_ids)
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._cached: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def matchers(self, body: GrammarBody, number: int) -> list[GrammarMatcher]:
        """Fresh matchers for `number` answers.

        Raises:
            SpecError: for a grammar that cannot be compiled, naming the place in a schema.
        """
        source = _source_of(body)
        with self._lock:
            compiled = self._compiled(source, body)
            return [GrammarMatcher(compiled.deep_copy(), self._codec.vocab_size) for _ in range(number)]

    def _compiled(self, source: str, body: GrammarBody) -> llguidance.LLMatcher:
        found = self._cached.get(source)
        if found is None:
            found = llguidance.LLMatcher(self._of_codec(), source, log_level=0, limits=_limits())
            if found.is_error():
                raise SpecError(self._fault(body, found.get_error()))
            self._check_begins(found, body)
            self._cached[source] = found
            if len(self._cached) > MAX_CACHED:
                self._cached.popitem(last=False)
        self._cached.move_to_end(source)
        return found

    def _check_begins(self, found: llguidance.LLMatcher, body: GrammarBody) -> None:
        """What is too much to read shows at the first mask: here, and not between two steps of everybody's answers.

        Copies read on where others were: an expression of a million parts is too much for the second of them.
        """
        size = self._codec.vocab_size
        try:
            for _ in range(2):
                GrammarMatcher(found.deep_copy(), size).forbid(torch.zeros(size))
        except EngineError as error:
            raise SpecError(self._fault(body, str(error))) from error

    def _of_codec(self) -> llguidance.LLTokenizer:
        # Built for the first grammar: requests without one do not pay for it.
        if self._tokenizer is None:
            words = llguidance.TokenizerWrapper(_Words(self._codec, self._end_ids))
            self._tokenizer = llguidance.LLTokenizer(words, eos_token=self._end_ids)
        return self._tokenizer

    def _fault(self, body: GrammarBody, message: str) -> str:
        message = " ".join(message.split())[:300]
        if body.json_schema is None:
            return f"the {body.kind} cannot be used: {message}"
        place, words = self._place(body.json_schema, message)
        return f"the JSON schema cannot be used at {place}: {words}"

    def _place(self, schema: dict[str, Any], message: str) -> tuple[str, str]:
        """The innermost part of a refused schema that is refused by itself, and why."""
        shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        place, left = "#", MAX_PROBES
        part: Any = schema
        while True:
            for step, inner in _parts(part):
                left -= 1
                if left < 0:
                    return place, message
                fault = self._refusal(shared | inner)
                if fault:
                    place, part, message = f"{place}/{step}", inner, fault
                    break
            else:
                return place, message

    def _refusal(self, schema: dict[str, Any]) -> str:
        is_refused, words = llguidance.LLMatcher.validate_grammar_with_warnings(
            _of_schema(schema), self._of_codec(), limits=_limits()
        )
        return " ".join(words[0].split())[:300] if is_refused else ""


class _Words:
    """The vocabulary as llguidance reads it: bytes, and control tokens behind 0xff."""

    bos_token_id = None

    def __init__(self, codec: TextCodec, end_ids: list[int]) -> None:
        self.eos_token_id = end_ids[0]
        texts = [codec.token_bytes(token_id) for token_id in range(codec.vocab_size)]
        self.special_token_ids = [token_id for token_id, text in enumerate(texts) if not text]
        self.tokens = [text or b"\xff" + f"<{token_id}>".encode() for token_id, text in enumerate(texts)]
        self._encode = codec.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())


def _limits() -> llguidance.LLParserLimits:
    return llguidance.LLParserLimits(
        # Some 100 ms of reading expressions (ten times as much let one hold every answer up for 7 s), 20 of walking them in
        # one step.
        initial_lexer_fuel=100_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _of_schema(schema: dict[str, Any]) -> str:
    # As overrides: a schema's own "x-guidance" must not make us lenient.
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)
    except ValueError as error:
        raise SpecError(f"the JSON schema cannot be used: {' '.join(str(error).split())[:300]}") from error


def _source_of(body: GrammarBody) -> str:
    if body.json_schema is not None:
        if never_ends(body.json_schema):
            raise SpecError(
                "the JSON schema cannot be used: no answer could end, for whatever matches it holds another of the same; "
                "leave a property of that circle out of required, or let an array of it be empty"
            )
        return _of_schema(body.json_schema)
    if body.regex is not None:
        return llguidance.LLMatcher.grammar_from_regex(body.regex)
    if body.choice is not None:
        lines = " | ".join(json.dumps(text, ensure_ascii=False) for text in body.choice)
        return llguidance.LLMatcher.grammar_from_lark(f"start: {lines}")
    if body.grammar is not None:
        return llguidance.LLMatcher.grammar_from_lark(body.grammar)
    return _of_schema({"type": "object"})


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ONE:
        if isinstance(schema.get(name), dict):
            yield name, schema[name]
    for name in LISTS:
        for place, inner in enumerate(schema[name] if isinstance(schema.get(name), list) else ()):
            if isinstance(inner, dict):
                yield f"{name}/{place}", inner
    for name in NAMED:
        for key, inner in (schema[name] if isinstance(schema.get(name), dict) else {}).items():
            if isinstance(inner, dict):
                yield f"{name}/{key}", inner
