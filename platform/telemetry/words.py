"""What the live board says, and its verdicts: one set of sentences for the server and for the browser."""

from __future__ import annotations

from django.utils.translation import gettext_noop as _

QUIET = _("No token came in the last minute.")
QUIET_REST = _("Send a request, and the experts light up.")
NOTHING_SERVES = _("Nothing is deployed, so there is nothing to watch.")
DENSE = _("This version has no experts: there is no routing to watch.")
DENSE_REST = _("Its speed stands below; lay experts over it to see them light up.")
HOT = _("Layer {layer}, expert {expert} carries {ratio}× its fair share.")
HOT_ASLEEP = _("Layer {layer}, expert {expert} carries {ratio}× its fair share; {count} experts are asleep.")
HOT_ONE_ASLEEP = _("Layer {layer}, expert {expert} carries {ratio}× its fair share; {count} expert is asleep.")
LEVEL = _("The load is level: no expert carries more than {ratio}× its fair share.")
LEVEL_ASLEEP = _("No expert carries more than {ratio}× its fair share, but {count} are asleep.")
LEVEL_ONE_ASLEEP = _("No expert carries more than {ratio}× its fair share, but {count} is asleep.")
NO_ENGINE = _("No engine reports.")
NO_ENGINE_REST = _("Its page says what holds it up; the board follows by itself.")
DOMAIN = _("{share} of the tokens of {name} reach its own experts.")
DOMAIN_QUIET = _("No token of {name} came in the last minute.")

WORDS: tuple[str, ...] = (
    QUIET,
    QUIET_REST,
    DENSE,
    DENSE_REST,
    HOT,
    HOT_ASLEEP,
    HOT_ONE_ASLEEP,
    LEVEL,
    LEVEL_ASLEEP,
    LEVEL_ONE_ASLEEP,
    NO_ENGINE,
    NO_ENGINE_REST,
    DOMAIN,
    _("Even routing would give {chance}."),
    _("No token of {name} came in this window."),
    _("No token came in this window."),
    _("No such token came in this window."),
    _("Nothing serves here yet; the lamps appear with the first version."),
    _("{layers} layers × {experts} experts, {dense} layers without"),
    _("no sample yet"),
    _("no engine reports; last sample {ago}"),
    _("no engine"),
    _("none in this window"),
    _("tokens/s"),
    _("tokens/s; dashed: MaxVio, its scale ends at {value}"),
    _("Nothing to compare: no token came."),
    _("No experts here: every token passes this part."),
    _("quiet"),
    _("Own expert of"),
    _("no domain"),
    _("no token"),
    _("{count} tokens"),
    _("others"),
    _("Assignments"),
    _("This model has too many experts to tell its domains apart live; choose 10 min."),
    DOMAIN_QUIET,
    _("none named"),
    _("{layers} layers × {experts} experts"),
    _("{count} waiting"),
    _("median {value} ms"),
    _("prompt {value} /s"),
    _("{used} of {total} tokens"),
    _("{count} prompt tokens"),
    _("mean of the layers"),
    _("worst: L{layer} at {value}"),
    _("Load"),
    _("{ratio}× its fair share"),
    _("Tokens routed here"),
    _("Of its layer"),
    _("Mostly from"),
    _("Reading prompts"),
    _("Writing answers"),
    _("No expert is over 2×."),
    _("Every expert got tokens."),
    _("and {count} more"),
    _("no token in the last minute"),
    _("no token in this window"),
    _("Domain"),
    _("its own expert"),
    _("now"),
    _("{minutes} min ago"),
    _("all domains: {note}"),
    _("of all domains"),
    _(
        "Of the chosen tokens, layer {layer}, expert {expert} takes {ratio}× an even share; {count} experts get none."
    ),
    _("Layer {layer}, expert {expert}: none of the chosen tokens came"),
    _("none of the chosen tokens in the last minute"),
    _("none of the chosen tokens in this window"),
    _("over 2×"),
    _("over 2×, of the chosen tokens"),
    _("Not reached"),
    _("Asleep"),
    _("by the chosen tokens"),
    _("no token in the window"),
    _("Every expert got some of the chosen tokens."),
    _("Mostly from, all domains"),
)
