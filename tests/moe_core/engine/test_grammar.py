"""Answers that must match a schema, an expression or a choice do so, whatever the model prefers."""

from __future__ import annotations

import json
import re
import time

import pytest
import torch

from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.engine.engine import Engine
from moe_core.engine.events import Done
from moe_core.engine.grammar import MAX_CACHED, GrammarCompiler
from moe_core.engine.requests import GrammarBody
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.sequence import FinishReason
from moe_core.errors import EngineError, SpecError
from tests.moe_core.engine.conftest import Run, serve_spec
from tests.moe_core.engine.model_dirs import NUM_TOKENS, tiny_model, write_byte_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["new", "old"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("codec")
    write_byte_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def compiler(codec) -> GrammarCompiler:
    return GrammarCompiler(codec, [256, 258])


def answers(model, codec, compiler, body: GrammarBody, number: int = 4, **options) -> list[str]:
    """Whole answers of a random model that is hot enough to say anything."""
    run = Run(Engine(serve_spec(), model, end_tokens=[256, 258]))
    params = SamplingParams(**({"max_tokens": 400, "temperature": 1.5, "seed": 1} | options))
    chosen = [(codec.stream(), matcher) for matcher in compiler.matchers(body, number)]
    sequences = run.engine.submit_choices([65, 66, 67], params, chosen)
    run.until_done()
    ends = [run.ends[one.id] for one in sequences]
    assert all(isinstance(end, Done) and end.reason is FinishReason.STOP for end in ends), ends
    return [run.texts[one.id] for one in sequences]


def test_a_schema_holds_for_every_answer(model, codec, compiler) -> None:
    for text in answers(model, codec, compiler, GrammarBody(json_schema=PERSON)):
        found = json.loads(text)
        assert set(found) == {"name", "age", "tags"}
        assert len(found["name"]) <= 8
        assert 0 <= found["age"] <= 150
        assert set(found["tags"]) <= {"new", "old"}


@pytest.mark.parametrize("separators", [None, (",", ":")], ids=["spaced", "compact"])
@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (PERSON, {"name": "a, b: c", "age": 7, "tags": ["new", "old"]}),
        (PERSON, {"name": "", "age": 0, "tags": []}),
        ({"type": "object"}, {"a": {"b": [1.5e-07, None, {}, [[]], True]}, "c": "  two  blanks\n"}),
        ({"enum": ["a b", {"x": [1, 2]}]}, {"x": [1, 2]}),
        ({"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}]}, [-2, "\u00fc", {"k": 1}]),
        ({"$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}, {"n": {"n": {}}}),
    ],
)
def test_what_python_writes_is_taken_with_its_blanks_and_without(
    codec, compiler, schema, value, separators
) -> None:
    text = json.dumps(value, separators=separators, ensure_ascii=False)
    assert first_refused(codec, compiler, schema, text) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"name":  "a", "age": 1, "tags": []}',
        '{ "name": "a", "age": 1, "tags": []}',
        '{"name" : "a", "age": 1, "tags": []}',
        '{"name": "a", "age": 1, "tags": [ ]}',
        '{"name": "a",\n"age": 1, "tags": []}',
        '{"name": "a", "age":\t1, "tags": []}',
    ],
)
def test_a_blank_that_says_nothing_is_not_taken(codec, compiler, text) -> None:
    refused = first_refused(codec, compiler, PERSON, text)
    assert refused is not None
    assert text[refused] in " \n\t"


def first_refused(codec, compiler, schema, text: str) -> int | None:
    """The place of the first token that may not stand there; None when the text is a whole answer."""
    [matcher] = compiler.matchers(GrammarBody(json_schema=schema), 1)
    for place, token in enumerate(codec.encode(text)):
        scores = torch.zeros(NUM_TOKENS)
        matcher.forbid(scores)
        if not torch.isfinite(scores[token]):
            return place
        matcher.advance(token)
    scores = torch.zeros(NUM_TOKENS)
    if not matcher.is_complete:
        matcher.forbid(scores)
    assert torch.isfinite(scores[256]), f"{text} is not taken as a whole answer"
    return None


def test_a_greedy_answer_holds_it_too(model, codec, compiler) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}
    [text] = answers(model, codec, compiler, GrammarBody(json_schema=schema), 1, temperature=0.0)
    assert [type(one) for one in json.loads(text)] == [bool] * 3


def test_a_regular_expression_is_matched_as_a_whole(model, codec, compiler) -> None:
    pattern = r"[A-F]{2}-\d{4}(-x)?"
    for text in answers(model, codec, compiler, GrammarBody(regex=pattern)):
        assert re.fullmatch(pattern, text)


def test_one_of_the_choices_is_said_word_for_word(model, codec, compiler) -> None:
    choice = ["yes", 'no "never"', "vielleicht: ü", "or\nnot"]
    found = answers(model, codec, compiler, GrammarBody(choice=choice), 16)
    assert set(found) <= set(choice)
    assert len(set(found)) > 1


def test_a_grammar_in_lark_is_followed(model, codec, compiler) -> None:
    body = GrammarBody(grammar='start: "sum(" NUMBER ("," NUMBER){0,2} ")"\nNUMBER: /[1-9][0-9]{0,2}/')
    for text in answers(model, codec, compiler, body):
        assert re.fullmatch(r"sum\([1-9]\d{0,2}(,[1-9]\d{0,2}){0,2}\)", text)


def test_any_object_ends_and_can_be_read(model, codec, compiler) -> None:
    # The scores of a random model are hot: an object may take long.
    bias = tuple((token, 6.0) for token in b'{}"')
    for text in answers(
        model, codec, compiler, GrammarBody(json_object=True), max_tokens=1500, logit_bias=bias
    ):
        assert isinstance(json.loads(text), dict)


def test_tokens_beyond_the_tokenizer_are_never_allowed(compiler) -> None:
    [matcher] = compiler.matchers(GrammarBody(regex="ab"), 1)
    scores = torch.zeros(NUM_TOKENS + 30)
    matcher.forbid(scores)
    assert torch.isfinite(scores).nonzero().flatten().tolist() == [ord("a")]


def test_where_nothing_may_follow_the_answer_is_complete(compiler) -> None:
    [matcher] = compiler.matchers(GrammarBody(regex="ab?"), 1)
    matcher.advance(ord("a"))
    assert not matcher.is_complete
    matcher.advance(ord("b"))
    assert matcher.is_complete


def test_a_token_that_may_not_follow_is_noticed(compiler) -> None:
    [matcher] = compiler.matchers(GrammarBody(regex="ab"), 1)
    matcher.advance(ord("z"))
    with pytest.raises(EngineError, match="the grammar cannot go on"):
        matcher.forbid(torch.zeros(NUM_TOKENS))


@pytest.mark.parametrize(
    "body",
    [
        GrammarBody(regex="(a{1000}){1000}"),
        GrammarBody(json_schema={"type": "string", "pattern": "^(a{900}){900}$"}),
        GrammarBody(grammar="start: A\nA: /(a{800}){800}/"),
        GrammarBody(json_schema={"type": "integer", "minimum": 10**30}),
    ],
    ids=["regex", "pattern", "lark", "number"],
)
def test_what_is_too_much_to_read_is_refused_before_an_answer_begins(compiler, body) -> None:
    with pytest.raises(SpecError, match="cannot be used"):
        compiler.matchers(body, 1)


def test_what_people_ask_for_is_within_the_limits(compiler) -> None:
    fields = {f"f{place}": {"type": "string", "pattern": "^[A-Za-z ]{0,500}$"} for place in range(20)}
    for body in (
        GrammarBody(json_schema={"type": "object", "properties": fields, "required": sorted(fields)}),
        GrammarBody(json_schema={"enum": [f"value number {place}" for place in range(2000)]}),
        GrammarBody(regex=r"[a-zA-Z0-9_.+-]{1,64}@[a-zA-Z0-9-]{1,63}(\.[a-zA-Z0-9-]{1,63}){1,5}"),
        GrammarBody(regex=".{0,4000}"),
    ):
        assert compiler.matchers(body, 2)


@pytest.mark.parametrize(
    ("schema", "place", "words"),
    [
        ({"type": "objct"}, "#", "objct"),
        (PERSON | {"properties": {"name": {"type": "strin"}}}, "#/properties/name", "strin"),
        (
            {"type": "object", "properties": {"list": {"type": "array", "items": {"anyOf": [{}, {"not": {}}]}}}},
            "#/properties/list/items/anyOf/1",
            "not",
        ),
        ({"$defs": {"a": {"type": "number", "minimum": 5, "maximum": 1}}, "$ref": "#/$defs/a"}, "#/$defs/a", "minimum"),
        ({"properties": {"a": {"$ref": "http://other.example/schema"}}}, "#/properties/a", "fetch"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "#/properties/a", "none"),
        ({"type": "string", "pattern": "(a"}, "#", "unclosed group"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_used_is_refused_with_its_place(compiler, schema, place, words) -> None:
    with pytest.raises(SpecError) as refusal:
        compiler.matchers(GrammarBody(json_schema=schema), 1)
    assert f"cannot be used at {place}: " in str(refusal.value)
    assert words in str(refusal.value)


@pytest.mark.parametrize("pattern", ["(a", "(?=a)b", "[z-a]"])
def test_an_expression_that_cannot_be_used_is_refused(compiler, pattern) -> None:
    with pytest.raises(SpecError, match="the regex cannot be used"):
        compiler.matchers(GrammarBody(regex=pattern), 1)


def test_work_is_bounded_where_a_grammar_is_small_but_vast(codec, compiler) -> None:
    began = time.process_time()
    vast = {"type": "array", "minItems": 30_000, "items": {"type": "array", "minItems": 30_000}}
    for body in (
        GrammarBody(regex="((a{0,1000}b){0,1000}c){0,1000}"),
        GrammarBody(regex="(.*a.{500})|(.*b.{600})"),
        GrammarBody(json_schema=vast),
    ):
        try:
            [matcher] = compiler.matchers(body, 1)
            for _ in range(40):
                scores = torch.zeros(NUM_TOKENS)
                matcher.forbid(scores)
                matcher.advance(int(scores.argmax()))
        except (SpecError, EngineError):
            continue
    assert time.process_time() - began < 10


def test_a_grammar_is_compiled_once_and_only_the_newest_are_kept(compiler) -> None:
    first = GrammarBody(regex="once")
    compiler.matchers(first, 2)
    kept = compiler._cached[next(iter(compiler._cached))]
    compiler.matchers(first, 1)
    assert next(iter(compiler._cached.values())) is kept
    for number in range(MAX_CACHED + 5):
        compiler.matchers(GrammarBody(regex=f"a{number}"), 1)
    assert len(compiler._cached) == MAX_CACHED


def test_answers_of_one_request_do_not_disturb_each_other(compiler) -> None:
    one, other = compiler.matchers(GrammarBody(regex="ab"), 2)
    one.advance(ord("a"))
    scores = torch.zeros(NUM_TOKENS)
    other.forbid(scores)
    assert int(scores.argmax()) == ord("a")


@pytest.mark.parametrize(
    "fields",
    [{}, {"regex": "a", "choice": ["a"]}, {"json_schema": {"enum": ["x" * 70_000]}}, {"regex": "a" * 9000}, {"choice": []}],
)  # fmt: skip
def test_exactly_one_grammar_of_bounded_size_is_taken(fields) -> None:
    with pytest.raises(ValueError):
        GrammarBody(**fields)
