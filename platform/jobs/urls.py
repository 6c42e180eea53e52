"""Pages of the jobs app."""

from __future__ import annotations

from django.urls import path

from jobs import views

app_name = "jobs"
urlpatterns = [
    path("jobs/", views.job_list, name="list"),
    path("jobs/import/", views.import_model, name="import_model"),
    path("jobs/tune/", views.tune, name="tune"),
    path("jobs/tune/coverage/", views.tune_coverage, name="tune_coverage"),
    path("jobs/operate/", views.operate, name="operate"),
    path("jobs/operate/foreseen/", views.operate_foreseen, name="operate_foreseen"),
    path("jobs/<int:pk>/", views.job_detail, name="detail"),
    path("jobs/<int:pk>/log/", views.job_log, name="log"),
    path("jobs/<int:pk>/<slug:action>/", views.job_action, name="action"),
]
