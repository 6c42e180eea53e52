"""A tiny tokenizer and a template for each chat format, written after the published ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from moe_core.checkpoint.hf import tokenizer_config_from
from moe_core.checkpoint.tokenizer import Tokenizer

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
LLAMA = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
KIMI = ("[BOS]", "[EOS]", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|im_end|>")
DEEPSEEK = (BEGIN, END, "<｜User｜>", "<｜Assistant｜>")
HARMONY = ("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>")
DATES = "Cutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n"

_LLAMA_TURNS = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_LLAMA_SYSTEM = (
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\n" + DATES + "' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% set messages = messages[1:] %}{% endif %}"
    "{{ '<|eot_id|>' }}"
)
_DEEPSEEK_SYSTEM = "{{ bos_token }}{{ messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n\\n') }}"


def _deepseek(head: str, asks: str) -> str:
    return (
        _DEEPSEEK_SYSTEM + "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}"
        "{% elif message['role'] == 'assistant' %}" + head + "{{message['content'] + '" + END + "'}}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}" + asks + "{% endif %}"
    )


def _mistral(before: str) -> str:
    return (
        "{% set first = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}{{ bos_token }}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '" + before + "[INST] ' + (first if loop.index0 < 2 else '') + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ "
        + (f"'{before}' + " if before else "")
        + "message['content'] + eos_token }}{% endif %}{% endfor %}"
    )


_MISTRAL_V3 = (
    '{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}'
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}\n{%- for message in loop_messages %}\n"
    '    {%- if message["role"] == "user" %}{%- if loop.last and system_message is defined %}'
    '{{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}\n'
    '        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}'
    '{%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token}}'
    "{%- else %}{{- raise_exception('other roles') }}{%- endif %}{%- endfor %}"
)


@dataclass(frozen=True, slots=True)
class Case:
    """One format: its template, the control tokens (begin and end first), and what stands around an answer."""

    template: str
    control: tuple[str, ...]
    thoughts: tuple[str, ...] = ()
    lead: str = ""
    end: str = ""
    is_sentencepiece: bool = False
    # SentencePiece's first space before the first word of a text alone, as transformers 5 saves it.
    prepends_first: bool = False
    strips: bool = False
    # Its template says a system's words in a last question, and where an answer comes last nowhere.
    forgets_system: bool = False


CASES = {
    "llama3": Case("{{ bos_token }}" + _LLAMA_TURNS, LLAMA, end=LLAMA[1], strips=True),
    "llama3_1": Case("{{ bos_token }}" + _LLAMA_SYSTEM + _LLAMA_TURNS, LLAMA, end=LLAMA[1], strips=True),
    "tulu": Case(
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + '\\n' }}"
        "{% elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}"
        "{% elif not loop.last %}{{ '<|assistant|>\\n'  + message['content'] + eos_token + '\\n' }}"
        "{% else %}{{ '<|assistant|>\\n'  + message['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
        ("<|endoftext|>", "<|endoftext|>"),
        end="<|endoftext|>",
    ),
    "deepseek_v2": Case(
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
        "{% else %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        DEEPSEEK[:2],
        lead=" ",
        end=END,
    ),
    "deepseek_v3": Case(_deepseek("{{'<｜Assistant｜>'}}", "{{'<｜Assistant｜>'}}"), DEEPSEEK, end=END),
    "deepseek_r1": Case(
        _deepseek("{{ '<｜Assistant｜>' }}", "{{'<｜Assistant｜><think>\\n'}}"),
        DEEPSEEK,
        ("<think>", "</think>"),
        end=END,
    ),
    "deepseek_v3_1": Case(
        _deepseek("{{'<｜Assistant｜>'}}{{'</think>'}}", "{{'<｜Assistant｜>'}}{{'</think>'}}"),
        DEEPSEEK,
        ("<think>", "</think>"),
        end=END,
    ),
    "mistral": Case(_mistral(""), ("<s>", "</s>"), end="</s>", is_sentencepiece=True),
    "mistral_spaced": Case(_mistral(" "), ("<s>", "</s>"), lead=" ", end="</s>", is_sentencepiece=True),
    "mistral_v3": Case(
        _MISTRAL_V3,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        lead=" ",
        end="</s>",
        is_sentencepiece=True,
        prepends_first=True,
        strips=True,
        forgets_system=True,
    ),
    "kimi": Case(
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
        "{{ '<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>' }}{% endif %}"
        "{% if message['role'] == 'system' %}{{ '<|im_system|>system<|im_middle|>' }}"
        "{% elif message['role'] == 'user' %}{{ '<|im_user|>user<|im_middle|>' }}"
        "{% else %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}{{ message['content'] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}",
        KIMI,
        end="<|im_end|>",
    ),
    "kimi_thinking": Case(
        "{% macro render_content(one) -%}{{ one['content'] }}{%- endmacro -%}"
        "{% macro set_roles(one) -%}{%- set role_name = one['role'] -%}"
        "{%- if role_name == 'user' -%}<|im_user|>{{role_name}}<|im_middle|>"
        "{%- elif role_name == 'assistant' -%}<|im_assistant|>{{role_name}}<|im_middle|>"
        "{%- else -%}<|im_system|>{{role_name}}<|im_middle|>{%- endif -%}{%- endmacro -%}"
        "{%- if messages[0]['role'] != 'system' -%}"
        "<|im_system|>system<|im_middle|>You are Kimi.<|im_end|>{%- endif -%}"
        "{%- for message in messages -%}{{set_roles(message)}}{%- if message['role'] == 'assistant' -%}"
        "<think></think>{{render_content(message)}}{%- else -%}{{render_content(message)}}{%- endif -%}<|im_end|>"
        "{%- endfor -%}\n{%- if add_generation_prompt -%}\n  <|im_assistant|>assistant<|im_middle|>\n{%- endif -%}\n",
        KIMI,
        ("<think>", "</think>"),
        end="<|im_end|>",
    ),
}
# gpt-oss without the head that says date and effort, which logs do not have.
HARMONY_CASE = Case(
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    '{{ "<|start|>developer<|message|>" }}{{ "# Instructions\\n\\n" }}{{ message.content + "\\n\\n<|end|>" }}'
    "{% elif message['role'] == 'user' %}{{ '<|start|>user<|message|>' + message.content + '<|end|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}",
    HARMONY,
)


def rust_tokenizer(case: Case) -> RustTokenizer:
    """Bytes or SentencePiece's spelling, with a few pieces that reach over the borders of heads and messages."""
    tokenizer = _sentencepiece(case.prepends_first) if case.is_sentencepiece else _bytes()
    tokenizer.add_special_tokens([_added(text, special=True) for text in dict.fromkeys(case.control)])
    tokenizer.add_tokens([_added(text, special=False) for text in case.thoughts])
    return tokenizer


def chat_tokenizer(case: Case, folder: Path, template: str | None) -> Tokenizer:
    """Ours, as an import of a directory with that template leaves it."""
    rust = rust_tokenizer(case)
    said = {"bos_token": case.control[0], "eos_token": case.control[1]}
    config = tokenizer_config_from(said, rust, template)
    rust.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config.model_dump(mode="json")))
    return Tokenizer(folder)


def _added(text: str, *, special: bool) -> AddedToken:
    return AddedToken(text, special=special, normalized=False)


def _merged(characters: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    return {token: index for index, token in enumerate([*characters, *(a + b for a, b in pairs)])}


def _bytes() -> RustTokenizer:
    pairs = [("Ċ", "Ċ"), ("ĊĊ", "H"), ("Ġ", "H"), ("o", "Ċ")]
    tokenizer = RustTokenizer(models.BPE(_merged(sorted(pre_tokenizers.ByteLevel.alphabet()), pairs), pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(prepends_first: bool) -> RustTokenizer:
    pairs = [("▁", "["), ("▁", "H"), ("▁", "▁")]
    pieces = ["<unk>", "▁", *map(chr, range(33, 127)), *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(_merged(pieces, pairs), pairs, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = RustTokenizer(model)
    if prepends_first:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer
