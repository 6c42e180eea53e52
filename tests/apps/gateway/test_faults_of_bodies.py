"""What a wrong body is told: the field, and what is accepted there."""

from __future__ import annotations

import json

import pytest

from gateway.bodies import ChatBody, CompletionBody
from gateway.errors import ApiError
from gateway.parsing import parsed

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
SAID = [
    (
        {"messages": [{"role": "user", "content": None}]},
        "messages.0.content",
        "a valid string or a valid list",
    ),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0.type", "should be 'text'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages.0.content.0.text",
        "required",
    ),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages.0.content.0", "a valid dictionary"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "at least 1 item"),
    ({"stop": [""]}, "stop.0", "at least 1 character"),
    ({"stop": ""}, "stop", "at least 1 character"),
    ({"stop": 5}, "stop", "a valid string or a valid list"),
    ({"stop": ["a", 5]}, "stop.1", "a valid string"),
]


def fault(kind, body) -> ApiError:
    with pytest.raises(ApiError) as refused:
        parsed(json.dumps(body).encode(), kind)
    return refused.value


@pytest.mark.parametrize(("wrong", "param", "words"), SAID)
def test_a_wrong_chat_is_told_what_is_accepted(wrong, param, words) -> None:
    error = fault(ChatBody, {"model": "m", "messages": [{"role": "user", "content": "hi"}], **wrong})
    assert (error.status, error.param) == (400, param), error.message
    assert words in error.message and "TextPart" not in error.message


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (["a", "b"], "2 prompts in one request are not supported: send one request for each"),
        ([[1, 2], [3]], "2 prompts in one request"),
        (5, "a valid string or a valid list"),
        ([1, -1], "greater than or equal to 0"),
    ],
)
def test_a_wrong_prompt_is_told_by_the_shape_that_was_meant(prompt, words) -> None:
    error = fault(CompletionBody, {"model": "m", "prompt": prompt})
    assert words in error.message, error.message


def test_one_prompt_may_stand_in_a_list() -> None:
    assert CompletionBody(model="m", prompt=["one"]).prompt_fields() == {"prompt": "one"}
    assert CompletionBody(model="m", prompt=[1, 2]).prompt_fields() == {"prompt_ids": [1, 2]}
