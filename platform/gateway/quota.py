"""Monthly tokens of a key: reserved before a request in one statement, settled after it in another.

Check-then-spend lets fifty requests through a quota of ten; here the row's own condition decides.
"""

from __future__ import annotations

import datetime as dt

from django.db import connection

from common.loops import loop
from gateway.callers import Principal
from gateway.database import Database
from gateway.errors import too_many

# No request lives longer; what is left after that belongs to a process that died.
LIFE_S = 1200
RESERVE = """
WITH cap AS (
    SELECT monthly_token_limit AS tokens, date_trunc('month', now() AT TIME ZONE 'utc')::date AS month
      FROM accounts_apitoken WHERE id = %(token)s
), taken AS (
    INSERT INTO gateway_quota (token_id, month, used, reserved)
    SELECT %(token)s, month, 0, %(tokens)s FROM cap WHERE cap.tokens IS NULL OR %(tokens)s <= cap.tokens
    ON CONFLICT (token_id, month) DO UPDATE SET reserved = gateway_quota.reserved + excluded.reserved
     WHERE (SELECT tokens FROM cap) IS NULL
        OR gateway_quota.used + gateway_quota.reserved + excluded.reserved <= (SELECT tokens FROM cap)
    RETURNING id
)
INSERT INTO gateway_reservation (quota_id, request_id, tokens, expires_at)
SELECT id, %(request)s, %(tokens)s, now() + make_interval(secs => %(life)s) FROM taken
RETURNING id
"""
SETTLE = """
WITH gone AS (DELETE FROM gateway_reservation WHERE request_id = %(request)s RETURNING quota_id, tokens)
UPDATE gateway_quota SET reserved = reserved - gone.tokens, used = used + %(used)s
  FROM gone WHERE gateway_quota.id = gone.quota_id
"""
SWEEP = """
WITH gone AS (DELETE FROM gateway_reservation WHERE expires_at < now() RETURNING quota_id, tokens),
sums AS (SELECT quota_id, sum(tokens) AS tokens FROM gone GROUP BY quota_id)
UPDATE gateway_quota SET reserved = reserved - sums.tokens FROM sums WHERE gateway_quota.id = sums.quota_id
"""
STANDING = """
SELECT COALESCE(q.used, 0) AS used, t.monthly_token_limit AS cap FROM accounts_apitoken t
  LEFT JOIN gateway_quota q ON q.token_id = t.id AND q.month = date_trunc('month', now() AT TIME ZONE 'utc')::date
 WHERE t.id = %(token)s
"""
BUSY_RETRY_S = 5


async def reserve(database: Database, principal: Principal, request_id: str, tokens: int) -> None:
    """Take the tokens that a request may use at most.

    Raises:
        ApiError: 429 when they are not there.
    """
    values = {"token": principal.token_id, "tokens": tokens, "request": request_id, "life": LIFE_S}
    if await database.rows(RESERVE, values):
        return
    (standing,) = await database.rows(STANDING, {"token": principal.token_id})
    used, cap = standing["used"], standing["cap"]
    is_busy = cap is not None and used + tokens <= cap
    wait = BUSY_RETRY_S if is_busy else seconds_to_next_month()
    raise too_many(
        f"This key may use {cap} tokens a month and has used {used}; this request may need {tokens}. "
        "Ask for fewer with max_tokens, or use a key with a higher limit.",
        code="insufficient_quota",
        type="insufficient_quota",
        retry_after_s=wait,
    )


async def settle(database: Database, request_id: str, used: int) -> None:
    """Turn a reservation into what was really used; once only."""
    await database.rows(SETTLE, {"request": request_id, "used": used})


def seconds_to_next_month(now: dt.datetime | None = None) -> int:
    """How long until the quota begins anew."""
    now = now or dt.datetime.now(dt.UTC)
    first = (now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + dt.timedelta(days=32)).replace(
        day=1
    )
    return max(1, int((first - now).total_seconds()))


@loop("quota-sweep", every_s=60)
def sweep() -> None:
    """Give back what processes that died had reserved."""
    with connection.cursor() as cursor:
        cursor.execute(SWEEP)
