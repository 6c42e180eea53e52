"""Who is let in, what a body may hold, and what each refusal says."""

from __future__ import annotations

import contextlib
import http.client
import json

import pytest
from django.test import Client

from accounts.models import ApiToken
from tests.apps.deployments.stack import until
from tests.apps.gateway.served import Instance

pytestmark = pytest.mark.django_db
MODEL = "tiny"
CHAT = "/v1/chat/completions"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
PATHS = (
    "/v1/models",
    f"/v1/models/{MODEL}",
    CHAT,
    "/v1/completions",
    "/v1/turnout/trace",
    "/v1/nowhere",
    "/v2/health",
)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


@pytest.fixture(scope="module")
def served(instance: Instance) -> Instance:
    instance.serve(MODEL)
    return instance


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_a_stranger_is_refused_everywhere_by_every_method(served, path, method):
    status, headers, _body = served.ask(method, path, {} if method in ("POST", "PUT", "PATCH") else None)
    assert status == 401
    assert headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nowhere", 404, "unknown_url"),
        ("POST", "/v1/nowhere", 404, "unknown_url"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v2/models", 404, "unknown_url"),
    ],
)
def test_a_wrong_address_is_an_openai_error_object(served, method, path, status, code):
    found, headers, body = served.ask(method, path, key=served.key())
    assert (found, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"temperature": 9}, "invalid_value", "temperature"),
        ({"temperature": "warm"}, "invalid_value", "temperature"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": True}, "invalid_value", "max_tokens"),
        ({"max_tokens": 10**9}, "invalid_value", "max_tokens"),
        ({"n": 1_000_000}, "invalid_value", "n"),
        ({"top_p": 1.5}, "invalid_value", "top_p"),
        ({"logit_bias": {"1": 500}}, "invalid_value", "logit_bias.1"),
        ({"logit_bias": {"many": 5}}, "invalid_value", "logit_bias.many"),
        ({"logit_bias": {"900000": 5}}, "invalid_request", "logit_bias"),
        ({"stop_token_ids": [900_000]}, "invalid_request", "stop_token_ids"),
        (
            {"return_routed_experts": True, "routed_experts_start_len": 9000},
            "invalid_request",
            "routed_experts_start_len",
        ),
        ({"presence_penalty": 3}, "invalid_value", "presence_penalty"),
        ({"frequency_penalty": "much"}, "invalid_value", "frequency_penalty"),
        ({"repetition_penalty": 0}, "invalid_value", "repetition_penalty"),
        ({"min_p": -0.1}, "invalid_value", "min_p"),
        ({"n": 0}, "invalid_value", "n"),
        ({"stop_token_ids": [-1]}, "invalid_value", "stop_token_ids.0"),
        ({"priority": 10**6}, "invalid_value", "priority"),
        ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
        ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format.json_schema"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "invalid_value", None),
        ({"guided_regex": "(a"}, "invalid_grammar", "guided_regex"),
        ({"guided_json": {"properties": {"a": {"type": "wat"}}}}, "invalid_grammar", "guided_json"),
        ({"chat_template": "{{7*7}}"}, "unknown_parameter", "chat_template"),
        ({"api_base": "http://evil"}, "unknown_parameter", "api_base"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_value", "messages.0.role"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", None),
        ({"domain": "no such"}, "invalid_value", "domain"),
        ({"domain": "law"}, "unknown_domain", "domain"),
    ],
)
def test_what_is_out_of_bounds_or_unknown_is_refused_by_name(served, change, code, param):
    status, _headers, body = served.ask("POST", CHAT, ASK | change, key=served.key())
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, code, param)


@pytest.mark.parametrize(
    "change",
    [
        {"user": "u-1", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "logit_bias": {},
            "n": 1,
            "tools": [],
            "tool_choice": "none",
        },
        {
            "response_format": {"type": "text"},
            "max_completion_tokens": 1,
            "stop": ["\n"],
            "seed": 7,
            "top_k": 5,
        },
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
                *ASK["messages"],
            ]
        },
        {"stream": False, "logprobs": None, "stop": None, "temperature": 1},
    ],
)
def test_what_clients_send_as_a_matter_of_course_is_taken(served, change):
    status, _headers, body = served.ask("POST", CHAT, ASK | change, key=served.key())
    assert status == 200, body


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{" * 70, "too_deep"),
        (b"[1,2]", "not_json"),
        (b"not json", "not_json"),
        (b'{"model": "tiny", "model": "other"}', "duplicate_key"),
        (b'{"temperature": 1e999}', "not_finite"),
        (b'{"temperature": NaN}', "not_finite"),
        (b'{"model": "\\ud800"}', "bad_text"),
        (b'{"model": "\\u0000"}', "bad_text"),
        (b'{"model": "\xff"}', "not_utf8"),
        (b"", "not_json"),
    ],
)
def test_json_that_only_some_would_accept_is_refused(served, body, code):
    status, _headers, answer = served.ask("POST", CHAT, body, key=served.key())
    assert (status, answer["error"]["code"]) == (400, code)


def test_a_body_over_the_limit_is_refused_by_its_length_and_by_its_bytes(served):
    key = served.key()
    status, _headers, body = served.ask("POST", CHAT, b'"' + b"x" * (5 * 2**20) + b'"', key=key)
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    link = http.client.HTTPConnection("127.0.0.1", served.web.port, timeout=30)
    chunks = (b"x" * 2**16 for _ in range(80))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        # A server that stops reading may close before we have sent all.
        link.request("POST", CHAT, chunks, {"authorization": f"Bearer {key}"}, encode_chunked=True)
        reply = link.getresponse()
        assert reply.status == 413
    link.close()


def test_a_chunked_body_within_the_limit_is_read(served):
    link = http.client.HTTPConnection("127.0.0.1", served.web.port, timeout=30)
    raw = json.dumps(ASK).encode()
    link.request(
        "POST",
        CHAT,
        iter([raw[:10], raw[10:]]),
        {"authorization": f"Bearer {served.key()}"},
        encode_chunked=True,
    )
    assert link.getresponse().status == 200
    link.close()


def test_a_prompt_longer_than_the_context_says_so(served):
    long = [{"role": "user", "content": "x" * 5000}]
    status, _headers, body = served.ask("POST", CHAT, ASK | {"messages": long}, key=served.key())
    assert (status, body["error"]["code"], body["error"]["param"]) == (
        400,
        "context_length_exceeded",
        "messages",
    )
    plain = {"model": ASK["model"], "prompt": "x" * 5000}
    status, _headers, body = served.ask("POST", "/v1/completions", plain, key=served.key())
    assert (status, body["error"]["code"], body["error"]["param"]) == (
        400,
        "context_length_exceeded",
        "prompt",
    )


def test_an_answer_names_its_request_and_its_version(served):
    status, headers, body = served.ask("POST", CHAT, ASK, key=served.key())
    assert status == 200
    assert headers["x-turnout-version"] == "tiny v1 r1"
    assert body["id"].endswith(headers["x-request-id"])
    assert body["system_fingerprint"] == "tiny v1 r1"


def test_a_crafted_host_header_changes_nothing(served):
    for host in ("127.0.0.1/v1/models?", "evil.example", "127.0.0.1:1/healthz"):
        assert served.ask("GET", "/v1/models", headers={"host": host})[0] == 401
        assert served.ask("GET", "/v1/models", key=served.key(), headers={"host": host})[0] == 200


def test_the_signed_in_browser_may_ask_when_it_shows_that_the_page_is_ours(served):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(served.people.teammate.user)
    browser.get("/signin/")
    cookies = {"sessionid": browser.cookies["sessionid"].value, "csrftoken": "a" * 32}
    cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
    assert served.ask("GET", "/v1/models", headers=cookie)[0] == 200
    status, _headers, body = served.ask("POST", CHAT, ASK, headers=cookie)
    assert (status, body["error"]["type"]) == (403, "permission_error")
    ours = cookie | {"x-csrftoken": cookies["csrftoken"]}
    assert served.ask("POST", CHAT, ASK, headers=ours)[0] == 200
    foreign = ours | {"origin": "https://evil.example"}
    assert served.ask("POST", CHAT, ASK, headers=foreign)[0] == 403
    assert served.ask("POST", CHAT, ASK, headers={"cookie": "sessionid=wrong"})[0] == 401


def test_a_trace_shows_the_experts_of_each_token(served):
    ask = {"model": MODEL, "prompt": "abcd", "domain": "support"}
    status, _headers, body = served.ask("POST", "/v1/turnout/trace", ask, key=served.key())
    assert status == 200
    assert body["tokens"] == ["a", "b", "c", "d"]
    assert [len(layer["ids"]) for layer in body["layers"]] == [4, 4, 4]
    assert all(len(ids) == 2 for layer in body["layers"] for ids in layer["ids"])


def test_nothing_inside_is_told_to_strangers(served):
    key = served.key()
    answers = [
        served.ask("POST", CHAT, ASK | {"domain": "law"}, key=key)[2],
        served.ask("POST", "/v1/turnout/trace", {"model": MODEL}, key=key)[2],
        served.ask("POST", CHAT, b"{", key=key)[2],
        served.ask("GET", "/v1/models/nobody", key=key)[2],
    ]
    for answer in answers:
        text = json.dumps(answer)
        assert not any(
            word in text for word in ("Traceback", "/tmp", ".sock", "SELECT", "0x7f", "site-packages")
        )


def test_another_teams_deployment_looks_like_none_at_all(served):
    served.serve("theirs", who="outsider")
    mine, other = served.key("owner"), served.key("outsider")
    assert [one["id"] for one in served.ask("GET", "/v1/models", key=mine)[2]["data"]] == [MODEL]
    assert [one["id"] for one in served.ask("GET", "/v1/models", key=other)[2]["data"]] == ["theirs"]
    for path, body in ((CHAT, ASK), ("/v1/completions", {"model": MODEL, "prompt": "x"}),
                       ("/v1/turnout/trace", {"model": MODEL, "prompt": "x"})):  # fmt: skip
        theirs = served.ask("POST", path, body, key=other)
        nobody = served.ask("POST", path, body | {"model": "none"}, key=other)
        assert (
            (theirs[0], theirs[2]["error"]["code"])
            == (nobody[0], nobody[2]["error"]["code"])
            == (404, "model_not_found")
        )


def test_a_revoked_key_is_refused_within_seconds(served):
    key = served.key()
    assert served.ask("GET", "/v1/models", key=key)[0] == 200
    ApiToken.objects.filter(pk=ApiToken.objects.latest("pk").pk).update(revoked_at="2020-01-01T00:00Z")
    until(lambda: served.ask("GET", "/v1/models", key=key)[0] == 401, patience_s=5)
