"""Forms of the accounts pages."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from accounts.access import Role
from accounts.invitations import DEFAULT_DAYS, MAX_DAYS, MAX_NOTE
from accounts.services import DEFAULT_CONCURRENT, MAX_MONTHLY_TOKENS, most_concurrent, scopes_of


class AccountForm(forms.Form):
    """A new account."""

    username = forms.CharField(
        label=_("User name"), max_length=150, widget=forms.TextInput(attrs={"autocomplete": "username"})
    )
    password = forms.CharField(
        label=_("Password"),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text=_("At least 10 characters."),
    )


class SetupForm(AccountForm):
    """The first admin and the first team."""

    team_name = forms.CharField(
        label=_("Team name"), max_length=80, widget=forms.TextInput(attrs={"autofocus": True})
    )
    field_order = ["team_name", "username", "password"]


class TokenForm(forms.Form):
    """A new API token."""

    name = forms.CharField(
        label=_("Name"), max_length=80, help_text=_("What uses it, for example “ci” or “website”.")
    )
    scopes = forms.MultipleChoiceField(
        label=_("Scopes"), widget=forms.CheckboxSelectMultiple, initial=["infer"]
    )
    days = forms.IntegerField(label=_("Life in days"), min_value=1, max_value=3650, initial=90)
    # Its bound follows from the role.
    max_concurrent = forms.IntegerField(label=_("Requests at once"), required=False)
    monthly_token_limit = forms.IntegerField(
        label=_("Tokens a month"), required=False, min_value=1, max_value=MAX_MONTHLY_TOKENS,
        help_text=_("Of prompts and answers together, by the calendar month in UTC. Empty: not limited."),
    )  # fmt: skip

    def __init__(self, *args: Any, role: Role, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["scopes"].choices = [(one.value, one.label) for one in scopes_of(role)]  # type: ignore[attr-defined]
        most = most_concurrent(role)
        more = _("More are refused until one ends. Empty: 16.")
        bounded = _("At most 16; an admin may allow more. Empty: 16.")
        self.fields["max_concurrent"] = forms.IntegerField(
            label=_("Requests at once"), required=False, min_value=1, max_value=most,
            help_text=bounded if most == DEFAULT_CONCURRENT else more,
        )  # fmt: skip


class RoleForm(forms.Form):
    """A role for a member."""

    role = forms.TypedChoiceField(label=_("Role"), choices=Role.choices, coerce=Role)


class InviteForm(RoleForm):
    """A new invitation."""

    note = forms.CharField(
        label=_("For"),
        max_length=MAX_NOTE,
        required=False,
        help_text=_("A name that tells the invitation apart in the list."),
    )
    days = forms.IntegerField(
        label=_("Life in days"), min_value=1, max_value=MAX_DAYS, initial=DEFAULT_DAYS,
        help_text=_("1 to 30; the link works once, and not after that time."),
    )  # fmt: skip
    field_order = ["note", "role", "days"]
