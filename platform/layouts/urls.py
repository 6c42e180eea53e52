"""Pages of the layouts app."""

from __future__ import annotations

from django.urls import path

from layouts import views

app_name = "layouts"
urlpatterns = [
    path("layouts/", views.layout_list, name="list"),
    path("layouts/new/", views.layout_new, name="new"),
    path("layouts/preview/", views.layout_preview, name="preview"),
    path("layouts/import/", views.layout_import, name="import"),
    path("layouts/<int:pk>/", views.layout_detail, name="detail"),
    path("layouts/<int:pk>/delete/", views.layout_delete, name="delete"),
    path("layouts/<int:pk>/export/", views.layout_export, name="export"),
]
