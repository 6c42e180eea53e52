"""What JavaScript says, in every language: `js_words` hands these to the page, `t("…")` in boot.js looks them up."""

from __future__ import annotations

from django.utils.translation import gettext_noop as _

WORDS: tuple[str, ...] = (
    _("Undo"),
    _("Dismiss"),
    _("Copied"),
    _("Could not copy; select the text and copy it by hand"),
    _("just now"),
    _("{count} s ago"),
    _("{count} min ago"),
    _("{count} h ago"),
    _("{count} d ago"),
    _("live, {seconds} s behind"),
    _("live"),
    _("connecting"),
    _("connection lost, trying again in {seconds} s"),
    _("silent since {time}: what is shown may be out of date"),
    _("you have no access to this"),
    _("paused by you"),
    _("Pause"),
    _("Resume"),
    _("Layer"),
    _("Highest"),
    _("Lowest"),
    _("Over 2×"),
    _("Asleep"),
    _("asleep"),
    _("Show as table"),
    _("Hide the table"),
    _("Layer {layer}, expert {expert}: {ratio} times the fair share"),
    _("Layer {layer}, expert {expert}: asleep, no token came"),
    _("Layer {layer} has no experts: every token passes"),
    _("step {step}, expert {expert}: {ratio}×"),
    _("No answer from the server. Check the connection and try again."),
    _("The server refused this ({status})."),
    _("The stream ended before the answer was complete."),
    _("Nothing matches"),
)
