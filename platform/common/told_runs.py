"""What a run's log says and how its process ended, in the reader's language."""

from __future__ import annotations

from collections.abc import Mapping

from django.utils.translation import gettext_noop

RUNS: Mapping[str, str] = {
    "killed": gettext_noop("The process was killed (signal %(signal)s), as happens when memory runs out."),
    "signalled": gettext_noop("The process was ended by signal %(signal)s (%(name)s)."),
    "ended": gettext_noop("The process ended with status %(status)s and without a result."),
    "worker_failed": gettext_noop("The worker failed: %(why)s"),
    "converting": gettext_noop("converting %(name)s to safetensors"),
    "rounded_to_16_bits": gettext_noop(
        "the files hold floats that bf16 does not (float32, float16), and they are rounded; import in 32 bits to keep them"
    ),
    "operation_begins": gettext_noop("operation “%(operation)s” begins; models: %(count)s"),
    "measuring_begins": gettext_noop("measuring begins; models: %(count)s"),
    "prompts_taken": gettext_noop("prompts taken from %(file)s, by domain: %(counts)s"),
    "plain_logs": gettext_noop(
        "the model has no chat format; logs are read as plain paragraphs with the role in words"
    ),
    "no_domain_named": gettext_noop("no row of %(file)s names a domain; nothing is measured on it"),
    "resumed": gettext_noop("resumed in stage “%(stage)s” after step %(step)s"),
    "passed_over": gettext_noop("%(checkpoint)s was passed over: %(why)s"),
    "other_environment": gettext_noop(
        "%(checkpoint)s was made with %(then)s, this process has %(now)s: results may differ in their last digits"
    ),
}
