"""What moe_core and child processes said, in the reader's language.

Their errors are stored as they were said, in English, for they outlive the person who caused them. The common ones carry a
code and values (`moe_core.sentences`) and are said anew here; the rest is shown as the technical detail that it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypedDict

from django.utils.functional import Promise
from django.utils.translation import gettext, gettext_noop

from common.figures import is_chinese, listed, sentences
from common.told_complaints import COMPLAINTS
from common.told_files import FILES
from common.told_operations import OPERATIONS
from common.told_runs import RUNS
from common.told_serving import SERVING
from moe_core.errors import SpecError
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
# Places of sentences that hold lists.
LISTS = ("experts", "expert", "domains", "codes", "known", "counts")
# By place what the reader calls the values there.
Names = Mapping[str, Mapping[str, str | Promise]]
NO_NAMES: Names = {}
WORDS: Mapping[str, str] = {
    "top_k_over_experts": gettext_noop(
        "top-k (%(top_k)s) must not exceed the number of experts (%(num_experts)s)."
    ),
    "groups_uneven": gettext_noop(
        "The number of experts (%(num_experts)s) must be divisible by the number of groups (%(num_groups)s)."
    ),
    "tree_uneven": gettext_noop(
        "The number of experts (%(num_experts)s) must be divisible by the %(num_groups)s groups of all domains."
    ),
    "topk_group_over": gettext_noop(
        "A token may choose from %(topk_group)s groups, but there are only %(num_groups)s."
    ),
    "top_k_over_groups": gettext_noop(
        "top-k (%(top_k)s) must not exceed the %(experts)s experts of the %(groups)s groups that a token may choose from."
    ),
    "one_expert_a_token": gettext_noop(
        "The gate “%(gate)s” sends a token to one expert, and top-k is %(top_k)s; set it to 1."
    ),
    "two_experts_a_token": gettext_noop(
        "The gate “%(gate)s” sends a token to two experts, and top-k is %(top_k)s; set it to 2."
    ),
    "even_by_itself": gettext_noop(
        "The gate “%(gate)s” fills its experts evenly by itself; leave their room without a limit."
    ),
    "thresholds_are_kept": gettext_noop(
        "The gate “%(gate)s” stores the thresholds that it finds in the bias that picks experts; leave that bias on, or "
        "choose “softmax_topk”."
    ),
    "kinds_counted": gettext_noop("The kinds name %(kinds)s experts, but the layer has %(num_experts)s."),
    "kinds_without_feed_forward": gettext_noop(
        "At least one expert must have a feed-forward (SwiGLU or MLP)."
    ),
    "kinds_have_widths": gettext_noop("The kinds of experts have their widths; leave the common width out."),
    "two_temperatures": gettext_noop("Give a temperature or a schedule of it, not both."),
    "constant_temperature": gettext_noop(
        "A temperature that is held has one value: it starts at %(start)s, but ends at %(end)s."
    ),
    "shared_width_alone": gettext_noop("There is no shared expert whose width could be set."),
    "granularity_divides": gettext_noop(
        "%(name)s (%(value)s) must be divisible by the number of slices (%(granularity)s)."
    ),
    "granularity_sets_widths": gettext_noop(
        "Slices set the experts' width; choose a layout without widths and without a shared expert."
    ),
    "only_exploring": gettext_noop(
        "Noise, a room for experts and a hold on twins are for gates that explore; let them explore, or leave these out."
    ),
    "room_when_serving": gettext_noop(
        "The room when serving (%(factor)s) does nothing while gates learn, and a run's room is not saved with the model; "
        "leave it out, and set it in the layout."
    ),
    "hold_without_steps": gettext_noop(
        "A hold on twins (%(hold)s) falls to 0 from the router's first step to its last, and there are %(steps)s; give it 2 "
        "or more, or leave the hold out and release twins by hand."
    ),
    "layer_key": gettext_noop("A layer is named by its number, from 0 to 511, not by %(key)s."),
    "no_bias_to_move": gettext_noop(
        "A rate of %(rate)s moves the bias that picks experts, and the gate “%(gate)s” has none; give it one in the layout, "
        "or set the rate to 0."
    ),
    "bias_is_solved": gettext_noop(
        "A rate of %(rate)s would move nothing: while it explores, the gate “%(gate)s” finds the bias that picks experts by "
        "itself for each batch; set the rate to 0, or let the gate choose as when serving."
    ),
    "no_learned_overflow": gettext_noop(
        "The learnt correction comes with a layout that has it; set it in the layout, or choose another way here."
    ),
    "dense_has_no_experts": gettext_noop("The model is dense (%(family)s); make it a mixture first."),
    "not_packed": gettext_noop("The experts are not packed; there is nothing to give back."),
    "packed_experts": gettext_noop(
        "The experts are packed in %(bits)s bits and cannot be changed; give their floats back first, and quantise last."
    ),
    "experts_differ": gettext_noop(
        "The experts are of several kinds or widths; this operation is for experts that are alike."
    ),
    "gate_ties_experts": gettext_noop(
        "The gate “%(gate)s” ties experts to one another (slots, tables or groups), so that none can be taken by itself; "
        "use a version whose gate has a row for each expert, such as “softmax_topk”."
    ),
    "not_doubled": gettext_noop(
        "The number of experts (%(num_experts)s) must be %(old)s times a power of two; the next is %(next)s."
    ),
    "growth_needs_softmax": gettext_noop(
        "Both copies of an expert are given to a token (%(method)s), and the gate “%(gate)s” would not choose the two as it "
        "chose the one; grow by twins, or a version with the gate “softmax_topk” or “sigmoid_groups”."
    ),
    "growth_of_pickers": gettext_noop(
        "Under the gate “%(gate)s” experts pick their tokens, and copies would pick others than the one did; grow a version "
        "whose tokens choose."
    ),
    "growth_without_capacity": gettext_noop(
        "Growing needs a version without a limit for experts: copies with a room each would drop other tokens."
    ),
    "attention_unpackable": gettext_noop(
        "The maps of latent attention and of gated heads cannot be packed; leave attention in 16 bits."
    ),
    "has_hash_twins": gettext_noop(
        "Expert %(expert)s has twins already, among which a hash chooses; release the twins to the gate "
        "first."
    ),
    "hash_between_twins": gettext_noop(
        "The version has twins between which a hash chooses; release them to the gate first."
    ),
    "least_used_unknown": gettext_noop(
        "No expert is named; name one, or choose logs so that the least used one can be found."
    ),
    "loss_unmeasured": gettext_noop(
        "A bound on the rise of the loss needs logs to measure it; choose some, or leave the bound out."
    ),
    "usage_unmeasured": gettext_noop(
        "Logs tell how much each of the two experts is used; choose some, or merge them half and half."
    ),
    "not_tuned": gettext_noop("The gate “%(gate)s” cannot be tuned: %(why)s"),
    "tokens_of_the_batch": gettext_noop(
        "Whether an expert takes a token hangs on the other tokens of the batch, so that figures of one "
        "batch say nothing about others; choose a gate whose tokens choose, such as “quantile”."
    ),
    "slots_read_ahead": gettext_noop(
        "Its slots mix every token of a window, later ones included, so that learning rewards reading ahead; "
        "choose a gate that sends each token by itself, such as “softmax_topk”."
    ),
    "too_many_experts": gettext_noop(
        "%(num_experts)s experts are more than the %(most)s that a layer may have; make fewer."
    ),
    "top_k_doubled": gettext_noop(
        "Grown by “%(method)s”, top-k doubles with the experts, from %(top_k)s to %(doubled)s, and a token has at most "
        "%(most)s experts; grow to at most %(reach)s, or by twins."
    ),
    "other_twins": gettext_noop(
        "The version has twins; grown by “%(method)s” a token would see other twins than before. Grow it by twins."
    ),
    "other_groups": gettext_noop(
        "Grown by “%(method)s”, the gate would choose other groups than before. Grow the version by twins."
    ),
    "groups_tie_experts": gettext_noop(
        "The gate “%(gate)s” chooses among %(groups)s groups of one size, so that no expert comes or goes alone; "
        "use a version whose gate has one group."
    ),
    "groups_by_place": gettext_noop(
        "The gate “%(gate)s” chooses among %(groups)s groups of one size, so that no expert comes or goes alone; "
        "choose “The same in every group” (per_group)."
    ),
    "no_such_place": gettext_noop(
        "There is no expert %(expert)s; a group has %(num_experts)s, counted from 0."
    ),
    "floor_without_shares": gettext_noop(
        "The gate “%(gate)s” chooses by a table: no share can be kept for a domain. "
        "Let the domain map mask other experts, or do nothing."
    ),
    "no_twins": gettext_noop("The version has no twins to release; grow it by twins first."),
    "unsplit": gettext_noop("An expert of width %(width)s cannot be cut into %(parts)s equal parts."),
    "student_larger": gettext_noop(
        "A student may not be larger than its teacher: %(asked)s is more than %(own)s."
    ),
    "twins_are_never_idle": gettext_noop("Twins share their tokens, so that none of them is idle by itself."),
    "none_is_idle": gettext_noop("All %(num_experts)s experts are always chosen, so that none is idle."),
    "layers_differ": gettext_noop(
        "Layers differ in the shape of their attention, so none can be left out; keep all of them."
    ),
    "no_such_expert": gettext_noop(
        "There is no expert %(expert)s; a layer has %(num_experts)s, counted from 0."
    ),
    "one_for_each_layer": gettext_noop(
        "%(experts)s experts are named for %(layers)s layers with experts; name one for each, or one for all."
    ),
    "too_few_left": gettext_noop(
        "%(num_experts)s experts cannot lose one while each token goes to %(top_k)s of them."
    ),
    "merged_with_itself": gettext_noop("Expert %(expert)s cannot be merged with itself; name two."),
    "layers_are_kept": gettext_noop("Mixtures keep their layers with experts; leave the layers out."),
    "preview_without_logs": gettext_noop("A preview measures on logs; choose some."),
    "expert_repeated": gettext_noop("%(owner)s: an expert is named twice in %(experts)s."),
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
        "Stopped at step %(step)s of stage “%(stage)s”: %(why)s; no weight of that step was kept. Lower the learning rate "
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
    **COMPLAINTS,
    **FILES,
    **OPERATIONS,
    **RUNS,
    **SERVING,
}
BOOKS = (CORE, PROCESS, RUN)
PLACE = re.compile(r"%\((\w+)\)s")
HAN = re.compile(r"[\u3400-\u9fff]")
STOPS = (".", "!", "?", "…", "。", "！", "？")


def told(text: str, names: Names = NO_NAMES) -> str:
    """Return what an error said in the reader's language, as a sentence; "" for nothing. `names`: as in `line_told`."""
    text = text.strip()
    if not text:
        return ""
    if (known := _known(text, names)) is not None:
        return known
    # A sentence of the platform's own is a message of a catalogue, or was translated when it was stored.
    translated = gettext(text)
    if is_chinese() and translated == text and not HAN.search(text):
        return gettext("Technical detail, in English: %(detail)s") % {"detail": ended(text)}
    return ended(translated)


def told_faults(error: SpecError, prefix: str = "") -> dict[str, str]:
    """Return everything that is wrong with a specification, by the way to the field that it is about."""
    found: dict[str, list[str]] = {}
    for place, sentence in error.complaints:
        name = ".".join(map(str, (*filter(None, [prefix]), *place))) or "spec"
        found.setdefault(name, []).append(told(sentence))
    return {name: sentences(*said) for name, said in found.items()}


def ended(sentence: str) -> str:
    """Return a sentence with its full stop."""
    if not sentence or sentence.endswith(STOPS):
        return sentence
    return f"{sentence}。" if HAN.search(sentence[-1]) else f"{sentence}."


def line_told(text: str, names: Names = NO_NAMES) -> str:
    """Return one line of a log in the reader's language where it is a sentence of ours, else as it is.

    `names` are what the reader calls the values of some places, such as the kinds of operations.
    """
    return _known(text.strip(), names) or gettext(text) if text.strip() else text


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


def _known(text: str, names: Names = NO_NAMES) -> str | None:
    said = understood(text)
    return None if said is None else _spoken(said, names)


def _spoken(said: Understood, names: Names) -> str:
    values = {name: _value(name, value, names) for name, value in said["values"].items()}
    return gettext(WORDS[said["code"]]) % values


def _value(name: str, value: str | Understood, names: Names) -> str:
    if not isinstance(value, str):
        return _spoken(value, names)
    if name in LISTS:
        return listed(value.split(", "))
    return str(names[name].get(value, value)) if name in names else value
