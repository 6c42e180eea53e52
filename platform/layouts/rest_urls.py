"""REST routes of the layouts app."""

from __future__ import annotations

from rest_framework.routers import SimpleRouter

from layouts.rest import LayoutViewSet

router = SimpleRouter()
router.register("layouts", LayoutViewSet, basename="layout")
urlpatterns = router.urls
