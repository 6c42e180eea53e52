"""REST routes of the registry app."""

from __future__ import annotations

from rest_framework.routers import SimpleRouter

from registry.rest import ModelViewSet, UploadViewSet, VersionViewSet

router = SimpleRouter()
router.register("models", ModelViewSet, basename="model")
router.register("versions", VersionViewSet, basename="version")
router.register("uploads", UploadViewSet, basename="upload")
urlpatterns = router.urls
