"""REST routes of the routing app."""

from __future__ import annotations

from rest_framework.routers import SimpleRouter

from routing.rest import MapViewSet

router = SimpleRouter()
router.register("domain-maps", MapViewSet, basename="domain-map")
urlpatterns = router.urls
