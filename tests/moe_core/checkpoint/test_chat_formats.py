"""Each chat format against its template, which transformers runs: the same ids, and answers alone are learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from moe_core.checkpoint.chat import ChatFormat, recognise
from moe_core.checkpoint.chat_formats import WORDINGS
from moe_core.checkpoint.gguf_tokenizer import config_from
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.errors import SpecError
from tests.moe_core.checkpoint.chat_models import CASES, HARMONY_CASE, Case, chat_tokenizer, rust_tokenizer

SYSTEM = {"role": "system", "content": "\nBe brief. Hé"}
ASKED = {"role": "user", "content": " Hello?\n"}
SAID = {"role": "assistant", "content": "Hi there\n"}
AGAIN = [{"role": "user", "content": "\nHow"}, {"role": "assistant", "content": "So"}]
TALKS = [[ASKED, SAID], [SYSTEM, ASKED, SAID], [ASKED, SAID, *AGAIN], [SYSTEM, ASKED, SAID, *AGAIN]]
Talk = list[dict[str, str]]
KIMI_THINKS = (*CASES["kimi_thinking"].control, *CASES["kimi_thinking"].thoughts)


def their_ids(case: Case, talk: Talk, *, asks: bool = False) -> list[int]:
    """What transformers makes of a conversation by the template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rust_tokenizer(case), bos_token=case.control[0], eos_token=case.control[1]
    )

    def said(part: Talk) -> str:
        text = tokenizer.apply_chat_template(
            part, chat_template=case.template, tokenize=False, add_generation_prompt=asks
        )
        assert isinstance(text, str)
        return text

    text = said(talk)
    if case.forgets_system and talk[0] == SYSTEM and talk[-1]["role"] == "assistant":
        # The question with the system's words, as it was asked, and the answer.
        text = said(talk[:-1]) + said(talk[1:]).removeprefix(said(talk[1:-1]))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def learnt(tokenizer: Tokenizer, talk: Talk) -> str:
    tokens = tokenizer.log_tokens(talk)
    return "".join(
        tokenizer.token_text(token) for token, says in zip(tokens.ids, tokens.learnt, strict=True) if says
    )


def test_every_format_is_compared() -> None:
    assert {"chatml", "harmony", *CASES} == set(WORDINGS)


@pytest.mark.parametrize("talk", TALKS, ids=["short", "system", "long", "long, system"])
@pytest.mark.parametrize("name", CASES)
def test_a_conversation_has_the_ids_of_the_template(name: str, talk: Talk, tmp_path: Path) -> None:
    case = CASES[name]
    tokenizer = chat_tokenizer(case, tmp_path, case.template)
    assert tokenizer.chat_format is not None and tokenizer.chat_format.name == name
    assert tokenizer.format_chat(talk[:-1]) == their_ids(case, talk[:-1], asks=True)
    assert tokenizer.format_chat(talk, add_generation_prompt=False) == their_ids(case, talk)


def test_mistrals_system_prompt_moves_to_the_last_question(tmp_path: Path) -> None:
    case = CASES["mistral_v3"]
    tokenizer = chat_tokenizer(case, tmp_path, case.template)
    talk = [{"role": "system", "content": "Be brief."}, ASKED, SAID, {"role": "user", "content": "How"}]
    text = "".join(map(tokenizer.token_text, tokenizer.format_chat(talk))).replace("▁", " ")
    assert text == "<s>[INST]  Hello?\n[/INST] Hi there</s>[INST] Be brief.\n\nHow[/INST]"
    assert tokenizer.format_chat(talk) == their_ids(case, talk)


@pytest.mark.parametrize("name", ["mistral", "mistral_spaced", "mistral_v3"])
def test_a_first_space_stands_at_the_start_of_the_text_alone(name: str, tmp_path: Path) -> None:
    case = replace(CASES[name], prepends_first=True)
    tokenizer = chat_tokenizer(case, tmp_path, case.template)
    for talk in TALKS:
        assert tokenizer.log_tokens(talk).ids == their_ids(case, talk)


def test_plain_logs_begin_as_a_prompt_does(tmp_path: Path) -> None:
    case = replace(CASES["mistral"], prepends_first=True)
    tokenizer = chat_tokenizer(case, tmp_path, None)
    ids = tokenizer.log_tokens(TALKS[2]).ids
    end = tokenizer.eos_ids[0]
    begin = tokenizer.encode("User:  Hello?\n\n\nAssistant: Hi there\n")
    assert ids[: len(begin) + 1] == [*begin, end]
    assert tokenizer.token_text(ids[len(begin) + 1]) == "U"


@pytest.mark.parametrize("name", CASES)
def test_logs_say_no_more_than_they_say_and_only_answers_are_learnt(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    tokenizer = chat_tokenizer(case, tmp_path, case.template)
    assert tokenizer.log_tokens(TALKS[3]).ids == their_ids(case, TALKS[3])
    answers = [
        case.lead + (text.strip() if case.strips else text) + case.end for text in ("Hi there\n", "So")
    ]
    assert learnt(tokenizer, TALKS[3]).replace("▁", " ") == "".join(answers).replace("▁", " ")
    # A system prompt that the template would add stays out.
    assert "system" not in tokenizer.decode(tokenizer.log_tokens(TALKS[2]).ids)


def test_gpt_oss_reads_logs_and_is_not_chatted_with(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(HARMONY_CASE, tmp_path, HARMONY_CASE.template)
    assert tokenizer.config.chat == ChatFormat("harmony")
    for talk in TALKS:
        assert tokenizer.log_tokens(talk).ids == their_ids(HARMONY_CASE, talk)
    assert learnt(tokenizer, TALKS[3]) == "Hi there\n<|end|>So<|return|>"
    with pytest.raises(SpecError, match="send a prompt instead"):
        tokenizer.format_chat(TALKS[0][:1])


@pytest.mark.parametrize("name", CASES)
def test_without_a_template_a_base_model_reads_logs_plainly(name: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(CASES[name], tmp_path, None)
    assert tokenizer.chat_format is None
    assert "Assistant:" in tokenizer.decode(tokenizer.log_tokens(TALKS[0]).ids)


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_file_says_the_same(name: str) -> None:
    case = CASES[name]
    tokens = [*case.control[:2], *case.control[2:], *case.thoughts]
    said = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": case.template,
    }
    chat = config_from(said).chat
    assert chat is not None and chat.name == name


@pytest.mark.parametrize(
    ("name", "tokens", "change"),
    [
        ("llama3", CASES["llama3"].control[:3], ("", "")),
        ("tulu", (*CASES["tulu"].control, "<|user|>"), ("", "")),
        ("tulu", CASES["tulu"].control, ("message['content'] + '\\n'", "message['content'] + eos_token")),
        ("mistral", (*CASES["mistral"].control, "[INST]", "[/INST]"), ("", "")),
        ("llama3", CASES["llama3"].control, (" | trim", "")),
        ("mistral", CASES["mistral"].control, ("[INST] '", "[INST] <<SYS>>'")),
        ("mistral", CASES["mistral"].control, ("+ eos_token }}", "+ eos_token + ' ' }}")),
        ("mistral_v3", ("<s>", "</s>"), ("", "")),
        ("mistral_v3", CASES["mistral_v3"].control, ("loop.last", "loop.first")),
        ("mistral_v3", CASES["mistral_v3"].control, ('"[INST] " + message', '"[INST]" + message')),
        ("mistral_v3", CASES["mistral_v3"].control, ("|trim", "")),
        # A prompt of its own where none is given, which our format would leave out.
        (
            "mistral_v3",
            CASES["mistral_v3"].control,
            ("{%- else %}", '{%- else %}{%- set system_message = "You are Bob." %}'),
        ),
        ("deepseek_v3_1", CASES["deepseek_v3_1"].control, ("", "")),
        ("kimi", CASES["kimi"].control, ("message['content']", "'<think></think>' + message['content']")),
        # Kimi-K2.5 begins the thoughts for the model.
        ("kimi_thinking", KIMI_THINKS, ("<|im_middle|>\n{%- endif", "<|im_middle|><think>\n{%- endif")),
        ("kimi_thinking", CASES["kimi_thinking"].control, ("", "")),
    ],
)
def test_what_only_looks_like_a_format_is_none(
    name: str, tokens: tuple[str, ...], change: tuple[str, str]
) -> None:
    assert recognise(CASES[name].template.replace(*change), set(tokens)) is None


def test_a_format_with_an_end_token_needs_one() -> None:
    assert recognise(CASES["mistral"].template, {"<s>"}, has_eos=False) is None


def test_a_model_distilled_into_a_vocabulary_with_chatml_is_no_chatml() -> None:
    tokens = {"<|im_start|>", "<|im_end|>", *CASES["deepseek_r1"].control, "<think>"}
    assert recognise(CASES["deepseek_r1"].template, tokens) == ChatFormat("deepseek_r1", begins=True)
