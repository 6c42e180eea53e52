"""Reasons, errors and events as whole sentences in the reader's language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, ngettext

from common.figures import bytes_parts, joined, number
from common.told import told
from deployments.models import DeploymentEvent

CONDITIONS: Mapping[str, str] = {
    "stopped": gettext_noop("It is stopped: no replica is wanted."),
    "nothing_ready": gettext_noop("No replica is ready, so requests are refused."),
    "silent": gettext_noop("Nothing was heard of %(node)s lately; whether it answers is unknown."),
    "serving_short": gettext_noop(
        "%(version)s answers on %(ready)s of the %(wanted)s replicas that are wanted."
    ),
    "failed": gettext_noop("%(version)s could not be started: %(why)s"),
    "starting": gettext_noop("%(version)s is starting."),
    "draining": gettext_noop("Running answers are being finished."),
    "waiting": gettext_noop("%(version)s waits for a place."),
    "settled": gettext_noop("What runs is what is wanted."),
    "no_node": gettext_noop("No worker is online that could run it. Start one, and it goes on by itself."),
    "no_memory": gettext_noop(
        "It needs %(need)s of memory, and %(node)s has %(free)s to spare. Choose fewer cache tokens, stop another"
        " deployment, or add a worker."
    ),
}
ERRORS: Mapping[str, str] = {
    "checksum": gettext_noop("the bytes in the store are not those that were registered."),
    "bad_model": gettext_noop("its files cannot be read as a model."),
    "bad_spec": gettext_noop("its settings do not fit the model."),
    "no_files": gettext_noop("its files are not in the store."),
    "killed": gettext_noop("the engine was killed, as happens when memory runs out."),
    "engine_broke": gettext_noop("the engine ended with an error; its log says more."),
    "node_silent": gettext_noop("its node was not heard of any more."),
}
EVENTS: Mapping[str, str] = {
    "created": gettext_noop("Deployed %(version)s with %(replicas)s wanted."),
    "revised": gettext_noop("Revision %(revision)s: %(version)s is wanted."),
    "rolled_back": gettext_noop("Rolled back to revision %(to)s: %(version)s is wanted."),
    "scaled": gettext_noop("Scaled from %(before)s to %(replicas)s replicas."),
    "stopped": gettext_noop("Stopped: no replica is wanted."),
    "retried": gettext_noop("Failed replicas are tried again."),
    "deleted": gettext_noop("Deleted."),
    "replica_planned": gettext_noop("Replica %(replica)s of %(version)s goes to %(node)s."),
    "replica_ready": gettext_noop("Replica %(replica)s answers after %(seconds)s s."),
    "replica_crashed": gettext_noop("Replica %(replica)s ended unexpectedly: %(why)s"),
    "replica_restarting": gettext_noop("Replica %(replica)s is started again."),
    "replica_failed": gettext_noop("Replica %(replica)s of %(version)s could not be started: %(why)s"),
    "replica_stopped": gettext_noop("Replica %(replica)s finished its answers and stopped."),
    "promoted": gettext_noop("Requests go to %(version)s now."),
    "dark": gettext_noop("Requests go nowhere now."),
    "node_silent": gettext_noop("Replica %(replica)s is given up: %(node)s was not heard of any more."),
}
EVENT_LAMPS: Mapping[str, str] = {
    "promoted": "ok",
    "replica_ready": "ok",
    "replica_failed": "danger",
    "replica_crashed": "caution",
    "node_silent": "caution",
    "replica_planned": "busy",
    "replica_restarting": "busy",
}


def error_words(code: str, detail: str = "") -> str:
    """Why an engine could not go on; the engine's own words follow in brackets."""
    words = _(ERRORS.get(code, ERRORS["engine_broke"]))
    return f"{words} ({told(detail)})" if detail else words


def condition_sentence(condition: Mapping[str, Any]) -> str:
    """What a condition says."""
    detail = dict(condition.get("detail", {}))
    reason = condition["reason"]
    if reason == "adding":
        count = int(detail["count"])
        return ngettext("%(count)s replica is starting.", "%(count)s replicas are starting.", count) % detail
    if reason == "serving":
        sentence = ngettext(
            "%(version)s answers on the %(wanted)s replica that is wanted.",
            "%(version)s answers on all %(wanted)s replicas that are wanted.",
            int(detail["wanted"]),
        )
        return sentence % detail
    if reason == "failed":
        detail["why"] = error_words(detail.get("error", ""), detail.get("detail", ""))
    for name in ("need", "free"):
        if name in detail:
            detail[name] = joined(bytes_parts(detail[name]))
    return _filled(CONDITIONS.get(reason, reason), detail)


def event_sentence(event: DeploymentEvent) -> str:
    """What a line of the timeline says."""
    detail = {"why": "", "seconds": "—", **event.detail}
    if "ready_seconds" in detail:
        detail["seconds"] = number(detail["ready_seconds"], 1)
    if "error" in detail:
        detail["why"] = error_words(detail["error"], detail.get("error_detail", ""))
    return _filled(EVENTS.get(event.kind, event.kind), detail)


def event_lamp(event: DeploymentEvent) -> str:
    """The lamp beside a line of the timeline."""
    return EVENT_LAMPS.get(event.kind, "off")


def _filled(sentence: str, detail: Mapping[str, Any]) -> str:
    try:
        return _(sentence) % detail
    except (KeyError, ValueError):
        # A row of an older release may lack a place; the code is still true.
        return sentence
