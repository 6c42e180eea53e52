"""Usage and quotas in Django's admin, to read."""

from __future__ import annotations

from django.contrib import admin

from accounts.admin import ReadOnlyAdmin
from gateway.models import Quota, Usage


@admin.register(Usage)
class UsageAdmin(ReadOnlyAdmin):
    """One request a line."""

    list_display = [
        "at",
        "team",
        "deployment",
        "domain",
        "prompt_tokens",
        "completion_tokens",
        "finish_reason",
    ]
    list_filter = ["finish_reason"]
    search_fields = ["request_id"]


@admin.register(Quota)
class QuotaAdmin(ReadOnlyAdmin):
    """Tokens of a key in a month."""

    list_display = ["token", "month", "used", "reserved"]
