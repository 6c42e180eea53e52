"""REST routes of the jobs app."""

from __future__ import annotations

from rest_framework.routers import SimpleRouter

from jobs.rest import JobViewSet

router = SimpleRouter()
router.register("jobs", JobViewSet, basename="job")
urlpatterns = router.urls
