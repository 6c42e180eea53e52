"""Pages of the corpora app."""

from __future__ import annotations

from django.urls import path

from corpora import views

app_name = "corpora"
urlpatterns = [
    path("data/", views.corpus_list, name="list"),
    path("data/samples/", views.corpus_samples, name="samples"),
    path("data/upload/<int:pk>/", views.file_upload, name="upload"),
    path("data/<int:pk>/", views.corpus_detail, name="detail"),
    path("data/<int:pk>/rows/", views.corpus_rows, name="rows"),
    path("data/<int:pk>/delete/", views.corpus_delete, name="delete"),
    path("data/<int:pk>/download/<slug:side>/", views.corpus_download, name="download"),
    path("data/<int:pk>/files/<int:file_id>/domain/", views.file_domain, name="file_domain"),
    path("data/<int:pk>/files/<int:file_id>/remove/", views.file_remove, name="file_remove"),
    path("data/<int:pk>/files/<int:file_id>/refusals/", views.refusals, name="refusals"),
    path("data/<int:pk>/files/<int:file_id>/refusals.csv", views.refusals_download, name="refusals_csv"),
]
