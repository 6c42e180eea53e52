"""REST routes of the deployments app."""

from __future__ import annotations

from rest_framework.routers import SimpleRouter

from deployments.rest import DeploymentViewSet, FitViewSet

router = SimpleRouter()
router.register("deployments/fit", FitViewSet, basename="deployment-fit")
router.register("deployments", DeploymentViewSet, basename="deployment")
urlpatterns = router.urls
