"""`Idempotency-Key` on creating POSTs: the same key and body give the stored answer and create nothing twice.

Source: draft-ietf-httpapi-idempotency-key-header-07; Stripe's behaviour.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _

from common.models import IdempotentReply
from common.problems import answer

KEPT = timedelta(hours=24)
MAX_KEY = 255
MAX_STORED = 2**20
# Fields of answers that hold what is kept nowhere: a token, an invitation's link.
SHOWN_ONCE = ("secret", "link")


def idempotency(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware for POSTs under /api/v1 that carry the header."""

    def middleware(request: HttpRequest) -> HttpResponse:
        key = request.headers.get("Idempotency-Key", "")
        if request.method != "POST" or not key or not request.path.startswith("/api/v1/"):
            return get_response(request)
        if len(key) > MAX_KEY:
            return answer(request, 400, "bad_key", _("An Idempotency-Key has at most 255 characters."))
        return remembered(request, key, get_response)

    return middleware


def remembered(
    request: HttpRequest, key: str, get_response: Callable[[HttpRequest], HttpResponse]
) -> HttpResponse:
    """Answer from memory, or do it once and remember."""
    secret = request.headers.get("Authorization", "") or request.COOKIES.get("sessionid", "")
    caller = hashlib.sha256(secret.encode()).hexdigest()
    # A file is streamed to the store and must not be read here; its address and length stand for it.
    is_json = request.content_type == "application/json"
    body = request.body if is_json else request.headers.get("Content-Length", "").encode()
    body_hash = hashlib.sha256(request.get_full_path().encode() + b"\0" + body).hexdigest()
    IdempotentReply.objects.filter(created_at__lt=Now() - KEPT).delete()
    try:
        with transaction.atomic():
            mine = IdempotentReply.objects.create(caller=caller, key=key, request_hash=body_hash)
    except IntegrityError:
        return stored(request, IdempotentReply.objects.filter(caller=caller, key=key).first(), body_hash)
    try:
        response = get_response(request)
    except BaseException:
        mine.delete()
        raise
    if response.status_code >= 500 or response.streaming or len(response.content) > MAX_STORED:
        mine.delete()
    else:
        IdempotentReply.objects.filter(pk=mine.pk).update(
            status=response.status_code, body=without_secrets(response.content)
        )
    return response


def without_secrets(body: bytes) -> str:
    """Return the body as it may be kept: a secret is shown once, so a replay has null in its place."""
    if not any(f'"{name}"'.encode() in body for name in SHOWN_ONCE):
        return body.decode()
    data = json.loads(body)
    if not isinstance(data, dict):
        return body.decode()
    return json.dumps({name: None if name in SHOWN_ONCE else value for name, value in data.items()})


def stored(request: HttpRequest, reply: IdempotentReply | None, body_hash: str) -> HttpResponse:
    """Return the earlier answer, or say why it cannot be given."""
    if reply is None or (reply.request_hash == body_hash and reply.status is None):
        return answer(
            request, 409, "in_progress", _("The first request with this Idempotency-Key is still running.")
        )
    if reply.request_hash != body_hash:
        return answer(
            request,
            422,
            "key_reused",
            _("This Idempotency-Key was used for another request; choose a new one."),
        )
    return HttpResponse(
        reply.body,
        status=reply.status,
        content_type="application/json",
        headers={"Idempotent-Replay": "true"},
    )
