"""OpenAI's own Python client against a real web process and a real engine."""

from __future__ import annotations

from collections.abc import Iterator

import openai
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
        row.completion_tokens == 3 and row.prompt_tokens > 0 and row.first_token_ms > 0 for row in rows
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
