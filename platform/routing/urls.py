"""Pages of the routing app."""

from __future__ import annotations

from django.urls import path

from routing import views

app_name = "routing"
urlpatterns = [
    path("domains/", views.map_list, name="list"),
    path("domains/new/", views.map_new, name="new"),
    path("domains/example/", views.map_example, name="example"),
    path("domains/check/", views.map_check, name="check"),
    path("domains/<int:pk>/", views.map_detail, name="detail"),
    path("domains/<int:pk>/delete/", views.map_delete, name="delete"),
]
