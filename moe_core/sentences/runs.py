"""Lines of a run's log that people read; `moe_core.training.progress` sends them with code and values."""

from __future__ import annotations

from collections.abc import Mapping

RUNS: Mapping[str, str] = {
    "converting": "converting {name} to safetensors",
    "rounded_to_16_bits": (
        "the files hold floats that bfloat16 does not (float32, float16), and they are rounded; import with dtype float32 "
        "to keep them"
    ),
    "operation_begins": "operation {operation} begins; models: {count}",
    "measuring_begins": "measuring begins; models: {count}",
    "prompts_taken": "prompts taken from {file}, by domain: {counts}",
    "plain_logs": "the model has no chat format; logs are read as plain paragraphs with the role in words",
    "no_domain_named": "no row of {file} names a domain; nothing is measured on it",
    "resumed": "resumed in stage {stage} after step {step}",
    "passed_over": "{checkpoint} was passed over: {why}",
    "other_environment": (
        "{checkpoint} was made with {then}, this process has {now}: results may differ in their last digits"
    ),
}
