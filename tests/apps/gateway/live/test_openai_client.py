"""OpenAI's own Python client against a real web process and a real engine."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
import openai
import pydantic
import pytest

from gateway.models import Usage
from tests.apps.deployments.stack import until
from tests.apps.gateway.served import Instance

pytestmark = pytest.mark.django_db
MODEL = "tiny"


@pytest.fixture(scope="module")
def served(instance: Instance) -> Instance:
    instance.serve(MODEL)
    return instance


@pytest.fixture
def client(served: Instance) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.web.address}/v1", api_key=served.key(), max_retries=0) as made:
        yield made


def test_it_lists_the_models_of_the_team(client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == (MODEL, "house")
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_chat_is_answered_at_once(client):
    reply = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=7, temperature=0
    )
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("length", "stop")
    assert reply.usage.completion_tokens <= 7
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_says_the_same_as_the_whole_and_ends_with_its_usage(client):
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 24,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


def test_a_text_is_completed_streaming_and_not(client):
    asked = {"model": MODEL, "prompt": "once upon", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_request_names_its_domain_in_the_body_or_in_a_header(client, served):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "domains"}], "max_tokens": 3}
    client.chat.completions.create(**asked, extra_body={"domain": "support"})
    client.chat.completions.create(**asked, extra_headers={"X-Turnout-Domain": "copy"})
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(**asked, extra_body={"domain": "law"})
    assert (refusal.value.code, refusal.value.param) == ("unknown_domain", "domain")
    assert "support, copy" in refusal.value.message
    rows = Usage.objects.filter(domain__in=("support", "copy"), deployment=served.deployments[MODEL])
    until(lambda: rows.count() == 2)
    assert all(
        (row.completion_tokens == 3 or row.finish_reason == "stop")
        and row.prompt_tokens > 0
        and row.first_token_ms > 0
        for row in rows
    )


def test_log_probabilities_come_in_the_shape_that_the_client_reads(client):
    reply = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=3, temperature=0, logprobs=True,
        top_logprobs=2,
    )  # fmt: skip
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in content)
    text = client.completions.create(model=MODEL, prompt="x", max_tokens=3, temperature=0, logprobs=2)
    assert len(text.choices[0].logprobs.tokens) == 3


def test_a_seed_makes_an_answer_repeatable(client):
    asked = {"model": MODEL, "prompt": "seed", "max_tokens": 12, "temperature": 1.0, "seed": 5}
    texts = {client.completions.create(**asked).choices[0].text for _ in range(3)}
    assert len(texts) == 1


def test_errors_arrive_as_the_exceptions_of_the_client(client, served):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    stranger = openai.OpenAI(base_url=f"{served.web.address}/v1", api_key="tt_wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    reader = openai.OpenAI(
        base_url=f"{served.web.address}/v1", api_key=served.key("owner", "read"), max_retries=0
    )
    with pytest.raises(openai.PermissionDeniedError):
        reader.models.list()
    outsider = openai.OpenAI(
        base_url=f"{served.web.address}/v1", api_key=served.key("outsider"), max_retries=0
    )
    assert outsider.models.list().data == []
    with pytest.raises(openai.NotFoundError):
        outsider.completions.create(model=MODEL, prompt="x")


def test_several_answers_come_with_their_numbers_streamed_and_not(client, served):
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 6,
        "seed": 3,
        "n": 3,
    }
    whole = client.chat.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    streamed, ends = ["", "", ""], []
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        streamed[choice.index] += choice.delta.content or ""
        ends += [choice.index] * (choice.finish_reason is not None)
    assert streamed == texts
    assert sorted(ends) == [0, 1, 2]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 6
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    alone = client.chat.completions.create(**asked | {"n": 1})
    assert alone.choices[0].message.content == texts[0]
    rows = Usage.objects.filter(request_id=whole.id.removeprefix("chatcmpl-"))
    until(lambda: rows.count() == 1)
    assert rows.get().completion_tokens == whole.usage.completion_tokens


def test_routed_experts_come_in_sglangs_shape_streamed_and_not(client):
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 0,
        "n": 2,
    }
    more = {"return_routed_experts": True, "ignore_eos": True}
    whole = client.chat.completions.create(**asked, extra_body=more)
    tokens = whole.usage.prompt_tokens + 5 - 1
    first = np.frombuffer(base64.b64decode(whole.choices[0].routed_experts), "<i4").reshape(tokens, -1, 2)
    assert 0 <= first.min() < first.max() < 4
    assert whole.sglext == {"routed_experts": whole.choices[0].routed_experts}
    chunks = list(client.chat.completions.create(**asked, extra_body=more, stream=True))
    told = {one.choices[0].index: one for one in chunks if one.choices[0].finish_reason}
    assert [told[i].choices[0].routed_experts for i in (0, 1)] == [
        one.routed_experts for one in whole.choices
    ]
    assert [one.sglext for one in chunks if hasattr(one, "sglext")] == [whole.sglext]
    plain = client.chat.completions.create(**asked)
    assert not hasattr(plain, "sglext")
    assert not hasattr(plain.choices[0], "routed_experts")
    with pytest.raises(openai.BadRequestError, match="routed_experts_start_len needs return_routed_experts"):
        client.chat.completions.create(**asked, extra_body={"routed_experts_start_len": 1})
    with pytest.raises(openai.BadRequestError, match="is beyond the prompt of"):
        client.chat.completions.create(**asked, extra_body={**more, "routed_experts_start_len": 4000})


def test_an_answer_keeps_to_a_schema(client):
    schema = {
        "type": "object",
        "properties": {
            "city": {"enum": ["Ulm", "Bonn"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema, "strict": True}}
    reply = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "x"}], response_format=wanted, seed=1, n=4
    )
    for choice in reply.choices:
        found = json.loads(choice.message.content)
        assert set(found) == {"city", "days"}
        assert found["city"] in ("Ulm", "Bonn")
        assert 1 <= found["days"] <= 9
        assert choice.finish_reason == "stop"


class Trip(pydantic.BaseModel):
    """What the client's own `parse` asks for."""

    model_config = pydantic.ConfigDict(extra="forbid")
    city: Literal["Ulm", "Bonn"]
    nights: bool


def test_the_client_parses_answers_into_its_own_classes(client):
    reply = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "x"}], response_format=Trip, seed=2
    )
    assert isinstance(reply.choices[0].message.parsed, Trip)


@pytest.mark.parametrize(
    "extra", [{"guided_regex": r"[A-F]{3}-\d"}, {"structured_outputs": {"regex": r"[A-F]{3}-\d"}}]
)
def test_an_answer_matches_an_expression_under_both_of_vllms_names(client, extra):
    reply = client.completions.create(model=MODEL, prompt="x", max_tokens=20, seed=5, extra_body=extra)
    assert re.fullmatch(r"[A-F]{3}-\d", reply.choices[0].text)


def test_one_of_the_given_choices_is_said_in_a_stream(client):
    chunks = client.completions.create(
        model=MODEL, prompt="x", max_tokens=20, stream=True, extra_body={"guided_choice": ["ja", "nein"]}
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) in ("ja", "nein")


def test_a_schema_that_cannot_be_used_is_refused_with_its_place(client):
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "wat"}}}}
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "x"}],
            response_format={"type": "json_schema", "json_schema": {"name": "bad", "schema": schema}},
        )
    assert (refusal.value.code, refusal.value.param) == ("invalid_grammar", "response_format")
    assert "#/properties/a/items" in refusal.value.message


def test_biases_and_penalties_reach_the_engine(client):
    asked = {"model": MODEL, "prompt": "once", "max_tokens": 6, "temperature": 0}
    pushed = client.completions.create(**asked, logit_bias={str(ord("z")): 100})
    assert pushed.choices[0].text == "zzzzzz"
    varied = client.completions.create(
        **asked, logit_bias={str(ord("z")): 12}, frequency_penalty=2, presence_penalty=2
    )
    assert varied.choices[0].text.count("z") < 6
    hot = asked | {"temperature": 2, "seed": 8, "logprobs": 0}
    sure = client.completions.create(**hot, extra_body={"min_p": 1.0})
    greedy = client.completions.create(**asked)
    assert sure.choices[0].text == greedy.choices[0].text


def test_an_answer_stops_at_a_token_and_not_before_its_least_length(client):
    bias = {str(ord("z")): 100}
    asked = {"model": MODEL, "prompt": "x", "max_tokens": 9, "temperature": 0, "logit_bias": bias}
    stopped = client.completions.create(**asked, extra_body={"stop_token_ids": [ord("z")]})
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")
    longer = client.completions.create(**asked, extra_body={"stop_token_ids": [ord("z")], "min_tokens": 4})
    assert longer.usage.completion_tokens == 5
    assert "z" not in longer.choices[0].text


@pytest.mark.parametrize(
    ("extra", "param"), [({"echo": True}, "echo"), ({"suffix": "end"}, "suffix"), ({"best_of": 2}, None)]
)
def test_what_is_not_done_is_refused_with_the_way_out(client, extra, param):
    with pytest.raises(openai.BadRequestError, match="is not supported") as refusal:
        client.completions.create(model=MODEL, prompt="x", **extra)
    assert refusal.value.param == param


def test_tools_are_refused_by_name(client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="ask for a response_format") as refusal:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], tools=[tool])
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "tools")


def test_a_request_that_forbids_every_token_is_the_callers_to_mend(client):
    with pytest.raises(openai.BadRequestError, match="no token may follow") as refusal:
        client.completions.create(
            model=MODEL,
            prompt="x",
            max_tokens=9,
            extra_body={"guided_regex": "ab", "stop_token_ids": [ord("a")], "min_tokens": 5},
        )
    assert refusal.value.code == "no_way_on"
