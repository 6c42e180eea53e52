"""Hugging Face directories in: config.json, safetensors, tokenizer.json; nothing that can hold code is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from moe_core.checkpoint.atomic import new_directory, write_json
from moe_core.checkpoint.chat import recognise
from moe_core.checkpoint.chat_formats import THOUGHT
from moe_core.checkpoint.files import parse_json_object, read_bytes, read_json_object
from moe_core.checkpoint.gguf_config import END_TOKENS
from moe_core.checkpoint.layout import CONFIG_FILE, MAX_CONFIG_BYTES, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from moe_core.checkpoint.quantised import widened
from moe_core.checkpoint.reader import WeightReader
from moe_core.checkpoint.source import ignorable, source_slots, spec_in
from moe_core.checkpoint.store import TORCH_DTYPES, DtypeName, check_slots, fill, write_weights
from moe_core.checkpoint.tokenizer_config import ChatFormatConfig, TokenizerConfig
from moe_core.checkpoint.tokenizer_json import MAX_TOKENIZER_BYTES, check_tokenizer_json, check_vocabulary
from moe_core.errors import FormatError
from moe_core.model.decoder import Decoder
from moe_core.model.families import config_of, spec_of
from moe_core.spec import ModelSpec

TEMPLATE_FILE = "chat_template.jinja"
MAX_SOURCE_CONFIG_BYTES = 16 * MAX_CONFIG_BYTES


def import_hf(src_dir: Path | str, out_dir: Path | str, *, dtype: DtypeName = "bfloat16") -> ModelSpec:
    """Write a model directory from a Hugging Face directory of any known family.

    Symbolic links in the source are refused. A source without tokenizer.json gives a model without a tokenizer. A head
    that config.json ties and the files hold with weights of its own stays one: the specification given back is untied.
    Raises CheckpointError or FormatError.
    """
    source = Path(src_dir)
    spec = spec_of(read_json_object(source / CONFIG_FILE, MAX_CONFIG_BYTES, follow_links=False))
    with WeightReader(source, follow_links=False) as reader, new_directory(Path(out_dir)) as directory:
        weights = widened(reader)
        spec = spec_in(spec, weights)
        slots = source_slots(spec, weights)
        check_slots(slots, weights, ignorable=ignorable(spec, weights.names))
        model = fill(Decoder(spec, TORCH_DTYPES[dtype]), slots, weights)
        write_weights(directory, model, TORCH_DTYPES[dtype])
        write_json(directory / CONFIG_FILE, config_of(spec, dtype))
        if (source / TOKENIZER_FILE).exists():
            _import_tokenizer(source, directory, spec)
    return spec


def _import_tokenizer(source: Path, directory: Path, spec: ModelSpec) -> None:
    raw = read_bytes(source / TOKENIZER_FILE, MAX_TOKENIZER_BYTES, follow_links=False)
    check_tokenizer_json(parse_json_object(raw, TOKENIZER_FILE, MAX_TOKENIZER_BYTES))
    try:
        tokenizer = RustTokenizer.from_buffer(raw)
    except Exception as error:  # tokenizers raises bare Exception for every fault
        raise FormatError(f"{TOKENIZER_FILE}: {str(error)[:200]}") from error
    check_vocabulary(tokenizer.get_vocab_size(), spec, TOKENIZER_FILE)
    said: dict[str, Any] = {}
    if (source / TOKENIZER_CONFIG_FILE).exists():
        said = read_json_object(source / TOKENIZER_CONFIG_FILE, MAX_SOURCE_CONFIG_BYTES, follow_links=False)
    config = tokenizer_config_from(said, tokenizer, _template(source, said))
    (directory / TOKENIZER_FILE).write_bytes(raw)
    write_json(directory / TOKENIZER_CONFIG_FILE, config.model_dump(mode="json"))


def _template(source: Path, said: dict[str, Any]) -> str | None:
    if (source / TEMPLATE_FILE).exists():
        return read_bytes(source / TEMPLATE_FILE, MAX_CONFIG_BYTES, follow_links=False).decode(
            "utf-8", "replace"
        )
    template = said.get("chat_template")
    return template if isinstance(template, str) else None


def tokenizer_config_from(
    said: dict[str, Any], tokenizer: RustTokenizer, template: str | None
) -> TokenizerConfig:
    """Our closed subset out of whatever a tokenizer_config.json says; all else in it is left behind."""
    bos = _known(said.get("bos_token"), tokenizer)
    eos = _known(said.get("eos_token"), tokenizer)
    added = tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    more = tuple(token for token in END_TOKENS if token in special and token != eos)
    # Tokens around thoughts may be said by users, too.
    thought = {token.content for token in added} & set(THOUGHT)
    chat = recognise(template, special | thought, has_eos=eos is not None)
    opening = tokenizer.encode("", add_special_tokens=True).ids
    return TokenizerConfig(
        bos_token=bos,
        eos_token=eos,
        more_eos_tokens=more if eos else (),
        pad_token=_known(said.get("pad_token"), tokenizer),
        add_bos_token=bos is not None and opening[:1] == [tokenizer.token_to_id(bos)],
        chat_format=ChatFormatConfig.of(chat),
    )


def _known(token: Any, tokenizer: RustTokenizer) -> str | None:
    """A token's text, written plainly or as an object, when the vocabulary has it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and tokenizer.token_to_id(text) is not None else None
