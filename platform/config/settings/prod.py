"""A server: refuses to start without its secrets, and speaks only through TLS."""

from __future__ import annotations

from config import env

from .base import *  # noqa: F403
from .base import database_from_url

SECRET_KEY = env.required(
    "TURNOUT_SECRET_KEY", "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(48))'"
)
DATABASES = {
    "default": database_from_url(env.required("DATABASE_URL", "Give the address of a PostgreSQL 18 server."))
}
REDIS_URL = env.required("REDIS_URL", "Give the address of a Valkey or Redis server.")
ALLOWED_HOSTS = env.words("TURNOUT_HOSTS") or [
    env.required("TURNOUT_HOSTS", "Name the hosts that this server answers for.")
]

SESSION_COOKIE_SECURE = True
CSRF_COOKIE_SECURE = True
SECURE_SSL_REDIRECT = env.flag("TURNOUT_SSL_REDIRECT", True)
SECURE_HSTS_SECONDS = env.integer("TURNOUT_HSTS_S", 31_536_000, low=0, high=63_072_000)
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SECURE_HSTS_PRELOAD = True
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
WHITENOISE_USE_FINDERS = False
