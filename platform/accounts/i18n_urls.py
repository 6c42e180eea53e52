"""The language switch."""

from __future__ import annotations

from django.urls import path
from django.views.i18n import set_language

from accounts.access import public

urlpatterns = [path("setlang/", public(set_language), name="set_language")]
