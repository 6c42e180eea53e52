"""What moe_core and child processes said, in the reader's language.

Their errors are stored as they were said, in English, for they outlive the person who caused them. The common ones carry a
code and values (`moe_core.sentences`) and are said anew here; the rest is shown as the technical detail that it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypedDict

from django.utils.translation import gettext, gettext_noop

from common.figures import is_chinese
from moe_core.sentences import CORE, RUN, Sentences

# How a child process ended that did not say so itself (`workers.runtime`).
PROCESS = Sentences(
    {
        "killed": "The process was ended by signal {signal} (SIGKILL, as the kernel does when memory runs out).",
        "signalled": "The process was ended by signal {signal} ({name}).",
        "ended": "The process ended with status {status} and without a result.",
        "worker_failed": "The worker failed: {why}",
    }
)
WORDS: Mapping[str, str] = {
    "top_k_over_experts": gettext_noop(
        "top-k (%(top_k)s) must not exceed the number of experts (%(num_experts)s)."
    ),
    "layers_unordered": gettext_noop("The layers must ascend and none may stand twice."),
    "layer_outside": gettext_noop(
        "Layer %(layer)s is outside the model's %(num_layers)s layers; choose layers from 0 to %(last)s."
    ),
    "already_a_mixture": gettext_noop(
        "The model is a mixture already (%(family)s); a layout needs a dense one."
    ),
    "needs_a_layout": gettext_noop("The model is dense; name a layout to lay over it."),
    "no_router": gettext_noop("A %(family)s model has no router to tune; lay experts over it first."),
    "expert_outside": gettext_noop(
        "Domain %(domain)s names expert %(expert)s, but the layout has %(num_experts)s experts (0 to %(last)s)."
    ),
    "general_expert_outside": gettext_noop(
        "General expert %(expert)s is outside the layout's %(num_experts)s experts."
    ),
    "domains_repeated": gettext_noop("No two domains may have one code; repeated: %(codes)s."),
    "no_derangement": gettext_noop(
        "There is no deranged map for a control, because the domains share experts; give at least two domains experts "
        "of their own."
    ),
    "no_window_for_expert": gettext_noop(
        "The training logs hold nothing for expert %(expert)s (%(domains)s); upload logs of that domain, or unmap it."
    ),
    "no_window_for_general": gettext_noop(
        "The training logs hold nothing for the general experts; upload more logs."
    ),
    "no_window": gettext_noop(
        "The training logs hold nothing for %(name)s; upload logs of that domain, or unmap it."
    ),
    "no_held_out_window": gettext_noop(
        "The held-out logs hold nothing; upload more logs, so that some can be held out."
    ),
    "loss_of_expert_not_finite": gettext_noop("the loss of expert %(expert)s is %(loss)s"),
    "loss_not_finite": gettext_noop("the loss is %(loss)s"),
    "gradient_not_finite": gettext_noop("the gradient of %(name)s is not finite"),
    "stopped_at_step": gettext_noop(
        "Stopped at step %(step)s of stage %(stage)s: %(why)s; no weight of that step was kept. Lower the learning rate "
        "(%(rate)s), or look for damaged logs."
    ),
    "prompt_too_long": gettext_noop(
        "The prompt has %(tokens)s tokens; this deployment takes at most %(most)s."
    ),
    "busy": gettext_noop("%(waiting)s requests wait already; at most %(most)s may: try again."),
    "wrong_hash": gettext_noop(
        "%(path)s: its SHA-256 is %(actual)s, expected %(expected)s; fetch the file again, or import it anew."
    ),
    "another_run": gettext_noop(
        "%(path)s: belongs to a run with other settings or inputs; resume with those, or start a new job."
    ),
    "killed": gettext_noop("The process was killed (signal %(signal)s), as happens when memory runs out."),
    "signalled": gettext_noop("The process was ended by signal %(signal)s (%(name)s)."),
    "ended": gettext_noop("The process ended with status %(status)s and without a result."),
    "worker_failed": gettext_noop("The worker failed: %(why)s"),
    "converting": gettext_noop("converting %(name)s to safetensors"),
    "operation_begins": gettext_noop("operation “%(operation)s” begins; models: %(count)s"),
    "prompts_taken": gettext_noop("prompts taken from %(file)s, by domain: %(counts)s"),
    "no_domain_named": gettext_noop("no row of %(file)s names a domain; nothing is measured on it"),
    "resumed": gettext_noop("resumed in stage “%(stage)s” after step %(step)s"),
    "passed_over": gettext_noop("%(checkpoint)s was passed over: %(why)s"),
    "other_environment": gettext_noop(
        "%(checkpoint)s was made with %(then)s, this process has %(now)s: results may differ in their last digits"
    ),
}
BOOKS = (CORE, PROCESS, RUN)
PLACE = re.compile(r"%\((\w+)\)s")
HAN = re.compile(r"[\u3400-\u9fff]")
STOPS = (".", "!", "?", "…", "。", "！", "？")


def told(text: str) -> str:
    """Return what an error said in the reader's language, as a sentence; "" for nothing."""
    text = text.strip()
    if not text:
        return ""
    if (known := _known(text)) is not None:
        return known
    # A sentence of the platform's own is a message of a catalogue, or was translated when it was stored.
    translated = gettext(text)
    if is_chinese() and translated == text and not HAN.search(text):
        return gettext("Technical detail, in English: %(detail)s") % {"detail": ended(text)}
    return ended(translated)


def ended(sentence: str) -> str:
    """Return a sentence with its full stop."""
    if not sentence or sentence.endswith(STOPS):
        return sentence
    return f"{sentence}。" if HAN.search(sentence[-1]) else f"{sentence}."


def line_told(text: str) -> str:
    """Return one line of a log in the reader's language where it is a sentence of ours, else as it is."""
    return _known(text.strip()) or gettext(text) if text.strip() else text


class Understood(TypedDict):
    """A sentence as data: its code, and values that may be sentences themselves."""

    code: str
    values: dict[str, str | Understood]


def understood(text: str) -> Understood | None:
    """Return code and values of a sentence, for readers in several languages at once; None for other texts."""
    found = next((hit for book in BOOKS if (hit := book.understand(text))), None)
    if found is None:
        return None
    code, values = found
    inner: dict[str, str | Understood] = dict(values)
    if "why" in values and (why := understood(values["why"])):
        inner["why"] = why
    return {"code": code, "values": inner}


def templates() -> dict[str, str]:
    """Return every sentence in the reader's language, with {name} where a value belongs, for scripts."""
    return {code: PLACE.sub(r"{\1}", gettext(words)) for code, words in WORDS.items()}


def _known(text: str) -> str | None:
    said = understood(text)
    return None if said is None else _spoken(said)


def _spoken(said: Understood) -> str:
    values = {
        name: value if isinstance(value, str) else _spoken(value) for name, value in said["values"].items()
    }
    return gettext(WORDS[said["code"]]) % values
