"""Each page's answer in one sentence: what works first, then what does not."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from deployments.models import Deployment
from deployments.selectors import Standing, standing_of
from deployments.sentences import condition_sentence, error_words
from deployments.states import Phase


@dataclass(frozen=True, slots=True)
class Verdict:
    """A lamp, a strong sentence and the rest."""

    state: str
    strong: str
    rest: str = ""


def verdict_of(deployment: Deployment, standing: Standing) -> Verdict:
    """Does it answer, and with what?"""
    live, wanted = str(deployment.live_version or ""), str(deployment.desired_version)
    words = {"live": live, "wanted": wanted, "ready": standing.ready, "count": standing.wanted}
    strong, rest = _SENTENCES[standing.phase](deployment, standing)
    return Verdict(standing.lamp, strong % words, rest % words if rest else "")


def _pending(deployment: Deployment, standing: Standing) -> tuple[str, str]:
    return _("%(wanted)s waits for a place to run."), _capacity_words(deployment)


def _starting(deployment: Deployment, standing: Standing) -> tuple[str, str]:
    return _("%(wanted)s is starting."), _("Requests are refused until it is ready.")


def _ready(deployment: Deployment, standing: Standing) -> tuple[str, str]:
    if standing.silent:
        return _("%(live)s was serving when its node was last heard of."), _(
            "Whether it still answers is unknown."
        )
    found = ngettext(
        "%(live)s answers on %(count)s replica.", "%(live)s answers on %(count)s replicas.", standing.wanted
    )
    return found, ""


def _updating(deployment: Deployment, standing: Standing) -> tuple[str, str]:
    if deployment.live_version_id == deployment.desired_version_id:
        return _("%(live)s still answers with its old settings."), _(
            "It switches when the new replicas are ready."
        )
    return _("%(live)s still answers while %(wanted)s starts."), _("Requests switch when it is ready.")


def _degraded(deployment: Deployment, standing: Standing) -> tuple[str, str]:
    return (
        _("%(live)s answers on %(ready)s of the %(count)s replicas that are wanted."),
        _capacity_words(deployment),
    )


def _blocked(deployment: Deployment, standing: Standing) -> tuple[str, str]:
    why = _why(standing)
    sentence = _("%(wanted)s could not be started: %(why)s")
    return _("%(live)s still answers."), sentence.replace("%(why)s", why.replace("%", "%%"))


def _failed(deployment: Deployment, standing: Standing) -> tuple[str, str]:
    sentence = _("%(wanted)s could not be started: %(why)s")
    return _("Nothing answers."), sentence.replace("%(why)s", _why(standing).replace("%", "%%"))


def _stopping(deployment: Deployment, standing: Standing) -> tuple[str, str]:
    return _("It is stopping."), _("Running answers are finished first.")


def _stopped(deployment: Deployment, standing: Standing) -> tuple[str, str]:
    return _("It is stopped."), _("Scale it to one replica, and it answers again.")


_SENTENCES = {
    Phase.PENDING: _pending,
    Phase.STARTING: _starting,
    Phase.READY: _ready,
    Phase.UPDATING: _updating,
    Phase.DEGRADED: _degraded,
    Phase.BLOCKED: _blocked,
    Phase.FAILED: _failed,
    Phase.STOPPING: _stopping,
    Phase.STOPPED: _stopped,
}


def _why(standing: Standing) -> str:
    first = standing.failed[0]
    return error_words(first.error, first.error_detail)


def _capacity_words(deployment: Deployment) -> str:
    found = next((one for one in deployment.conditions if one["type"] == "capacity"), None)
    return condition_sentence(found).replace("%", "%%") if found else ""


def list_verdict(deployments: list[Deployment]) -> Verdict:
    """Do all of them answer?"""
    if not deployments:
        return Verdict("off", _("Nothing is deployed yet."), _("Deploy a version, and programs can call it."))
    standings = [(one, standing_of(one)) for one in deployments]
    dark = [one for one, standing in standings if standing.wanted and not standing.ready]
    worse = [one for one, standing in standings if standing.phase in (Phase.DEGRADED, Phase.BLOCKED)]
    if dark:
        sentence = ngettext(
            "%(name)s does not answer.",
            "%(count)s deployments do not answer, %(name)s among them.",
            len(dark),
        )
        return Verdict("danger", sentence % {"name": dark[0].name, "count": len(dark)})
    if worse:
        sentence = ngettext(
            "%(name)s is not as wanted, but answers.",
            "%(count)s deployments are not as wanted, but answer; %(name)s is one.",
            len(worse),
        )
        return Verdict("caution", sentence % {"name": worse[0].name, "count": len(worse)})
    serving = sum(standing.ready > 0 for _one, standing in standings)
    if serving == 0:
        return Verdict("off", _("Every deployment is stopped."))
    sentence = ngettext(
        "%(count)s deployment answers, as wanted.", "%(count)s deployments answer, as wanted.", serving
    )
    return Verdict("ok", sentence % {"count": serving})
