"""REST routes of the accounts app."""

from __future__ import annotations

from django.urls import path
from rest_framework.routers import SimpleRouter

from accounts.rest import MeView, TokenViewSet
from accounts.rest_people import AuditViewSet, InvitationViewSet, MemberViewSet

router = SimpleRouter()
router.register("tokens", TokenViewSet, basename="token")
router.register("members", MemberViewSet, basename="member")
router.register("invitations", InvitationViewSet, basename="invitation")
router.register("audit", AuditViewSet, basename="audit")
urlpatterns = [path("me/", MeView.as_view(), name="me"), *router.urls]
