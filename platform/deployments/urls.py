"""Pages of the deployments app."""

from __future__ import annotations

from django.urls import path

from deployments import views

app_name = "deployments"
urlpatterns = [
    path("deployments/", views.deployment_list, name="list"),
    path("deployments/new/", views.deployment_new, name="new"),
    path("deployments/new/fit/", views.fit, name="fit"),
    path("deployments/<int:pk>/", views.deployment_detail, name="detail"),
    path("deployments/<int:pk>/update/", views.deployment_update, name="update"),
    path("deployments/<int:pk>/scale/", views.deployment_scale, name="scale"),
    path("deployments/<int:pk>/delete/", views.deployment_delete, name="delete"),
    path("deployments/<int:pk>/rollback/<int:number>/", views.deployment_rollback, name="rollback"),
    path("deployments/<int:pk>/<slug:action>/", views.deployment_action, name="action"),
]
