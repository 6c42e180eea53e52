"""REST routes of the corpora app."""

from __future__ import annotations

from rest_framework.routers import SimpleRouter

from corpora.rest import CorpusViewSet

router = SimpleRouter()
router.register("corpora", CorpusViewSet, basename="corpus")
urlpatterns = router.urls
