"""Pages of the accounts app."""

from __future__ import annotations

from django.urls import path

from accounts import entry, views

app_name = "accounts"
urlpatterns = [
    path("signin/", entry.SignIn.as_view(), name="signin"),
    path("signout/", entry.SignOut.as_view(), name="signout"),
    path("account/password/", entry.PasswordChange.as_view(), name="password"),
    path("setup/<str:token>/", entry.setup, name="setup"),
    path("join/<str:token>/", entry.join, name="join"),
    path("team/", views.team, name="team"),
    path("team/switch/", views.team_switch, name="team_switch"),
    path("team/members/<int:pk>/role/", views.member_role, name="member_role"),
    path("team/members/<int:pk>/remove/", views.member_end, name="member_remove"),
    path("team/invitations/<int:pk>/revoke/", views.invitation_end, name="invitation_revoke"),
    path("tokens/", views.tokens, name="tokens"),
    path("tokens/<int:pk>/revoke/", views.token_revoke, name="token_revoke"),
    path("audit/", views.audit, name="audit"),
]
