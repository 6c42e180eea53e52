"""Settings shared by every way to run Turnout; secrets and addresses come from the environment alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from config import env

ROOT = Path(__file__).resolve().parents[3]
DATA_DIR = env.folder("TURNOUT_DATA_DIR", ROOT / "var")

DEBUG = False
ALLOWED_HOSTS = env.words("TURNOUT_HOSTS", "127.0.0.1,localhost,[::1]")
CSRF_TRUSTED_ORIGINS = env.words("TURNOUT_ORIGINS")

INSTALLED_APPS = [
    "accounts.admin_site.TurnoutAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "channels",
    "django_htmx",
    "rest_framework",
    "drf_spectacular",
    "common",
    "accounts",
    "registry",
    "layouts",
    "routing",
    "corpora",
    "jobs",
    "deployments",
    "telemetry",
    "gateway",
    "console",
    "api",
]

MIDDLEWARE = [
    "common.middleware.request_identity",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "common.middleware.security_headers",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "accounts.middleware.TeamAndAccessMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "api.idempotency.idempotency",
    "common.middleware.pages_of_actions",
    "common.middleware.domain_errors",
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "console.context.shell",
            ],
        },
    },
]

# --- PostgreSQL: the truth -------------------------------------------------------------------------
# A wait that is not bounded here piles up connections when a lock is held or a client vanishes.
SESSION_LIMITS = "-c statement_timeout=15s -c lock_timeout=5s -c idle_in_transaction_session_timeout=30s"


def database_from_url(url: str) -> dict[str, Any]:
    """Turn a libpq URL (TCP or unix socket) into Django's settings."""
    parts = conninfo_to_dict(url)
    known = {"host", "port", "user", "password", "dbname"}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.get("dbname", "turnout"),
        "USER": parts.get("user", ""),
        "PASSWORD": parts.get("password", ""),
        "HOST": parts.get("host", ""),
        "PORT": str(parts.get("port", "")),
        "CONN_MAX_AGE": 0,
        "OPTIONS": {
            **{key: value for key, value in parts.items() if key not in known},
            "options": SESSION_LIMITS,
            "pool": {"min_size": 1, "max_size": 12, "timeout": 10},
        },
    }


DATABASE_URL = env.text("DATABASE_URL", "postgresql:///turnout")
DATABASES = {"default": database_from_url(DATABASE_URL)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Valkey: a doorbell and a loudspeaker, never the truth -------------------------------------------
# redis:// for TCP, unix:///path for a socket. Celery spells the second redis+socket://.
REDIS_URL = env.text("REDIS_URL", "redis://127.0.0.1:6379/0")
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
CHANNEL_LAYERS = {
    # The pub/sub layer: the core layer with redis-py 8 drops idle sockets after 5-15 s.
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {
            "hosts": [{"address": REDIS_URL, "socket_timeout": None, "socket_connect_timeout": 2}],
            "prefix": "turnout",
        },
    }
}

CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://", 1)
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_RESULT_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_DEFAULT_QUEUE = "jobs"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 3600, "socket_connect_timeout": 2}
CELERY_TIMEZONE = "UTC"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False

# --- People ------------------------------------------------------------------------------------------
AUTH_USER_MODEL = "accounts.User"
LOGIN_URL = "accounts:signin"
LOGIN_REDIRECT_URL = "console:overview"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_HTTPONLY = True
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

# --- Languages ---------------------------------------------------------------------------------------
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]
USE_I18N = True
USE_TZ = True
TIME_ZONE = "UTC"

# --- Static files ------------------------------------------------------------------------------------
STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
WHITENOISE_USE_FINDERS = True

# --- Uploads and artifacts ---------------------------------------------------------------------------
STORE_DIR = env.folder("TURNOUT_STORE_DIR", DATA_DIR / "store")
RUN_DIR = env.folder("TURNOUT_RUN_DIR", DATA_DIR / "run")
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 * 2**20
# A domain map of 64 domains with every box of its matrix set sends some 4,600 fields.
DATA_UPLOAD_MAX_NUMBER_FIELDS = 5000
FILE_UPLOAD_MAX_MEMORY_SIZE = 2**20
FILE_UPLOAD_TEMP_DIR = None
MAX_BODY_BYTES = env.integer("TURNOUT_MAX_BODY_BYTES", 16 * 2**20, low=2**10, high=2**30)
MAX_UPLOAD_BYTES = env.integer("TURNOUT_MAX_UPLOAD_BYTES", 8 * 2**30, low=2**10, high=2**40)

# --- REST --------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "accounts.authentication.ApiTokenAuthentication",
        "accounts.authentication.ConsoleSessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["accounts.permissions.GrantedByRoleAndScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["common.strict_json.StrictJSONParser"],
    "DEFAULT_PAGINATION_CLASS": "common.pagination.NewestFirst",
    "DEFAULT_SCHEMA_CLASS": "api.schema.GrantedSchema",
    "EXCEPTION_HANDLER": "common.problems.exception_handler",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
    "PAGE_SIZE": 50,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Turnout",
    "DESCRIPTION": "Design, train, tune, serve and watch Mixture-of-Experts models.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": r"/api/v1",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "api.specifications.with_specifications",
    ],
    # Each of these is called "state" where it stands.
    "ENUM_NAME_OVERRIDES": {
        "InvitationStateEnum": "accounts.models.InvitationState",
        "VersionStateEnum": "registry.models.VersionState",
        "FileStateEnum": "corpora.models.FileState",
        "JobStateEnum": "jobs.choices.JobState",
        "ReplicaStateEnum": "deployments.states.ReplicaState",
    },
}

# --- Workers -----------------------------------------------------------------------------------------
NODE_NAME = env.text("TURNOUT_NODE", "node-1")
LEASE_TTL_S = env.integer("TURNOUT_LEASE_TTL_S", 15, low=1, high=3600)
# What one job's process may take of the machine's memory; 0 sets no limit.
JOB_MEMORY_BYTES = env.integer("TURNOUT_JOB_MEMORY_BYTES", 0, low=0, high=2**50)
IMPORT_ROOTS = [Path(root).resolve() for root in env.words("TURNOUT_IMPORT_ROOTS")]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "filters": {"secrets": {"()": "common.masking.MaskSecrets"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["secrets"]}},
    "root": {"handlers": ["stderr"], "level": env.text("TURNOUT_LOG_LEVEL", "INFO")},
    "loggers": {"django.server": {"level": "WARNING"}, "httpx": {"level": "WARNING"}},
}
