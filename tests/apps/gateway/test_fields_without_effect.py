"""The how-to names every field of a completion that is taken and changes nothing."""

from __future__ import annotations

import re
from pathlib import Path

from django.conf import settings

from gateway.bodies import Body, ChatBody, ChatMessage

SENT = {"model": "shop", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
# A value for each field that a chat may be sent; what must stand beside it comes first.
BESIDE = {"top_logprobs": {"logprobs": True}, "routed_experts_start_len": {"return_routed_experts": True}}
VALUES = {
    "temperature": 0.5, "top_p": 0.5, "top_k": 5, "max_tokens": 7, "max_completion_tokens": 7, "stop": "x", "seed": 1, "n": 2,
    "presence_penalty": 1.0, "frequency_penalty": 1.0, "logit_bias": {"5": 1.0}, "min_p": 0.1, "repetition_penalty": 1.5,
    "min_tokens": 2, "stop_token_ids": [5], "ignore_eos": True, "priority": 3, "return_routed_experts": True,
    "routed_experts_start_len": 1, "logprobs": True, "top_logprobs": 2, "user": "ann", "metadata": {"a": "b"},
    "service_tier": "flex", "safety_identifier": "ann", "prompt_cache_key": "k", "tool_choice": "auto",
    "function_call": "auto", "parallel_tool_calls": True, "modalities": ["text"],
}  # fmt: skip
# What the gateway itself goes by, and what is refused unless it is empty.
OF_THE_GATEWAY = {"model", "domain", "stream", "stream_options", "messages"}
NOT_DONE = {
    name
    for name, field in {**Body.model_fields, **ChatBody.model_fields}.items()
    if field.annotation is type(None)
}


def named() -> set[str]:
    """Fields in the paragraph of the how-to."""
    page = (Path(settings.ROOT) / "docs/how-to/use-the-api.md").read_text()
    paragraph = page[page.index("**Taken without effect**") :].split("\n\n")[0]
    return set(re.findall(r"`(\w+)`", paragraph)) - {"content", "stream_options"}


def for_engine(**more: object) -> dict[str, object]:
    return ChatBody.model_validate({**SENT, **more}).for_engine()


def test_every_field_that_changes_nothing_is_named_and_no_other() -> None:
    idle = {
        name
        for name, value in VALUES.items()
        if for_engine(**BESIDE.get(name, {}), **{name: value}) == for_engine(**BESIDE.get(name, {}))
    }
    message = {"role": "user", "content": "Hi"}
    for name, value in (("name", "ann"), ("annotations", [{}])):
        if ChatMessage.model_validate({**message, name: value}).plain() == message:
            idle.add(name)
    assert idle | {"include_obfuscation"} == named()


def test_no_field_is_forgotten() -> None:
    grammars = {"response_format", "structured_outputs"}
    left = set(ChatBody.model_fields) - set(VALUES) - OF_THE_GATEWAY - NOT_DONE - grammars
    assert {name for name in left if not name.startswith("guided_")} == set()
