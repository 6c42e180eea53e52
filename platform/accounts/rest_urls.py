"""REST routes of the accounts app."""

from __future__ import annotations

from django.urls import path
from rest_framework.routers import SimpleRouter

from accounts.rest import MeView, TokenViewSet

router = SimpleRouter()
router.register("tokens", TokenViewSet, basename="token")
urlpatterns = [path("me/", MeView.as_view(), name="me"), *router.urls]
