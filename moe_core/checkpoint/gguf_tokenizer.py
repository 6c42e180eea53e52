"""A tokenizer.json out of a GGUF file's metadata: byte-level BPE and SentencePiece vocabularies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from moe_core.checkpoint.atomic import write_json
from moe_core.checkpoint.chat import recognise
from moe_core.checkpoint.gguf_config import CONTROL_TOKEN, end_tokens
from moe_core.checkpoint.gguf_header import GgufHead
from moe_core.checkpoint.gguf_sentencepiece import sentencepiece_tokenizer
from moe_core.checkpoint.layout import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from moe_core.checkpoint.tokenizer_config import ChatFormatConfig, TokenizerConfig
from moe_core.checkpoint.tokenizer_json import check_vocabulary
from moe_core.errors import FormatError
from moe_core.spec import ModelSpec

USER_DEFINED_TOKEN = 4
# What llama.cpp calls the two kinds.
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Words with one leading mark, numbers of so many digits, marks, spaces.
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = "|".join(
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}{upper}{_LOWER}{lower}{_CONTRACTIONS}?"
    for upper, lower in (("*", "+"), ("+", "*"))
)
# By llama.cpp's name, one expression after the other.
_SPLITS: Mapping[str, tuple[str, ...]] = {
    "llama-bpe": (_WORDS % "{1,3}",),
    "qwen2": (_WORDS % "",),
    "gpt-4o": (_CASED + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES,),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
        r" ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
    ),
}
_PLAIN = ("gpt-2", "gpt2", "olmo")
_DIGITS = ("smollm", "starcoder")


def write_tokenizer(directory: Path, head: GgufHead, spec: ModelSpec, name: str) -> None:
    """Write tokenizer.json and tokenizer_config.json; FormatError for a vocabulary of another kind."""
    tokenizer = build_tokenizer(head.metadata, name)
    check_vocabulary(tokenizer.get_vocab_size(), spec, name)
    # Through plain data, so that equal vocabularies are equal bytes.
    text = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (directory / TOKENIZER_FILE).write_text(text, encoding="utf-8")
    write_json(directory / TOKENIZER_CONFIG_FILE, config_from(head.metadata).model_dump(mode="json"))


def build_tokenizer(said: Mapping[str, Any], name: str) -> Tokenizer:
    """The tokenizer that the metadata describes."""
    kind = said.get("tokenizer.ggml.model")
    if kind not in (BYTE_LEVEL, SENTENCEPIECE):
        raise FormatError(
            f"{name}: tokenizer {str(kind)[:40]!r} is not served; known are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece)"
        )
    tokens = _texts(said, "tokenizer.ggml.tokens", name)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise FormatError(f"{name}: the vocabulary names a token twice")
    if kind == SENTENCEPIECE:
        tokenizer = sentencepiece_tokenizer(said, vocabulary, name)
    else:
        tokenizer = _byte_level(said, vocabulary, name)
    _add_tokens(tokenizer, tokens, said.get("tokenizer.ggml.token_type"), name)
    return tokenizer


def _byte_level(said: Mapping[str, Any], vocabulary: Mapping[str, int], name: str) -> Tokenizer:
    pairs = [_pair(merge, vocabulary, name) for merge in _texts(said, "tokenizer.ggml.merges", name)]
    splitter = str(said.get("tokenizer.ggml.pre", "gpt-2"))
    tokenizer = Tokenizer(models.BPE(dict(vocabulary), pairs, ignore_merges=splitter == "llama-bpe"))
    tokenizer.pre_tokenizer = _splitter(splitter, name)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _texts(said: Mapping[str, Any], key: str, name: str) -> list[str]:
    value = said.get(key)
    if not isinstance(value, list) or not value:
        raise FormatError(f"{name}: {key} must be a list of texts")
    return value


def _pair(merge: str, vocabulary: Mapping[str, int], name: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
        raise FormatError(f"{name}: the merge {merge[:80]!r} is not of tokens in the vocabulary")
    return left, right


def _splitter(pre: str, name: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut before merging; the names are llama.cpp's."""
    if pre in _PLAIN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    if pre in _SPLITS:
        splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in _SPLITS[pre]]
        return pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    known = ", ".join((*_PLAIN, *_DIGITS, *_SPLITS))
    raise FormatError(f"{name}: splitter {pre[:40]!r} is not served; known are {known}")


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: Any, name: str) -> None:
    if kinds is None:
        return
    if len(kinds) != len(tokens):
        raise FormatError(f"{name}: {len(tokens)} tokens but {len(kinds)} token types")
    control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    custom = [t for t, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in custom])


def config_from(said: Mapping[str, Any]) -> TokenizerConfig:
    """Begin, end and padding tokens and the chat format out of the metadata."""
    tokens: list[str] = said.get("tokenizer.ggml.tokens", [])
    ends = [tokens[index] for index in end_tokens(said) if index < len(tokens)]
    template, kind = said.get("tokenizer.chat_template"), said.get("tokenizer.ggml.model")
    chat = recognise(template if isinstance(template, str) else None, set(tokens), has_eos=bool(ends))
    return TokenizerConfig(
        bos_token=_token(said, tokens, "bos"),
        eos_token=ends[0] if ends else None,
        more_eos_tokens=tuple(ends[1:]),
        pad_token=_token(said, tokens, "padding"),
        # llama.cpp begins SentencePiece prompts with it unless told otherwise.
        add_bos_token=said.get("tokenizer.ggml.add_bos_token", kind == SENTENCEPIECE) is True,
        chat_format=ChatFormatConfig.of(chat),
    )


def _token(said: Mapping[str, Any], tokens: list[str], role: str) -> str | None:
    index = said.get(f"tokenizer.ggml.{role}_token_id")
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None
