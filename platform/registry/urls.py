"""Pages of the registry app."""

from __future__ import annotations

from django.urls import path

from registry import views

app_name = "registry"
urlpatterns = [
    path("models/", views.model_list, name="list"),
    path("models/upload/", views.upload, name="upload"),
    path("models/upload/<int:pk>/delete/", views.upload_delete, name="upload_delete"),
    path("models/<int:pk>/", views.model_detail, name="detail"),
    path("models/<int:pk>/edit/", views.model_edit, name="edit"),
    path("models/<int:pk>/aliases/", views.alias_set, name="alias_set"),
    path("models/<int:pk>/aliases/remove/", views.alias_remove, name="alias_remove"),
    path("versions/<int:pk>/", views.version_detail, name="version"),
    path("versions/<int:pk>/note/", views.version_note, name="version_note"),
    path("versions/<int:pk>/verify/", views.version_verify, name="version_verify"),
    path("versions/<int:pk>/files/<str:name>/", views.version_file, name="version_file"),
]
