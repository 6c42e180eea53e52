"""What moe_core and child processes said, in the reader's language.

Their errors are stored as they were said, in English, for they outlive the person who caused them. The common ones carry a
code and values (`moe_core.sentences`) and are said anew here; the rest is shown as the technical detail that it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from django.utils.translation import gettext, gettext_noop

from common.figures import is_chinese
from moe_core.sentences import CORE, Sentences

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
}
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


def _known(text: str) -> str | None:
    found = CORE.understand(text) or PROCESS.understand(text)
    if found is None:
        return None
    code, values = found
    if "why" in values:
        values["why"] = _known(values["why"]) or values["why"]
    return gettext(WORDS[code]) % values
