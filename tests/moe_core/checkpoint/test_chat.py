"""Chat templates are compared as text and never run."""

from __future__ import annotations

import pytest

from moe_core.checkpoint.chat import ChatFormat, recognise

CHATML = {"<|im_start|>", "<|im_end|>"}
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "SYSTEM<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [SMOLLM, SMOLLM.replace("\n", "\\n")])
def test_a_known_template_gives_its_default_system_prompt(template: str) -> None:
    known = recognise(template.replace("SYSTEM", "You are kind."), CHATML)
    assert known == ChatFormat("chatml", "You are kind.")


@pytest.mark.parametrize(
    "template",
    [
        None,
        "",
        "{{ 7 * 7 }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        SMOLLM.replace("SYSTEM", "' + 7 * 7 + '"),
        SMOLLM.replace("SYSTEM", "{{ 7 * 7 }}"),
        SMOLLM.replace("SYSTEM", "hi") + "{{ 7 * 7 }}",
    ],
)
def test_any_other_template_is_left_aside(template: str | None) -> None:
    assert recognise(template, CHATML) == ChatFormat("chatml", None)


def test_without_the_tokens_of_a_format_a_model_cannot_chat() -> None:
    assert recognise(SMOLLM, set()) is None
