"""The page that shows the API."""

from __future__ import annotations

from django.urls import path

from api.views import reference

app_name = "api"
urlpatterns = [path("", reference, name="reference")]
