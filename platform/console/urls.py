"""Pages of the console app."""

from __future__ import annotations

from django.urls import path

from console import views

app_name = "console"
urlpatterns = [
    path("", views.overview, name="overview"),
    path("aspects/", views.aspects, name="aspects"),
    path("playground/", views.playground, name="playground"),
]
