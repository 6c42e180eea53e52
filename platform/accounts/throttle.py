"""How often a password may be guessed. A try is taken from PostgreSQL before the password is looked at, and given back
when it was right; so however many web processes ask at once, no more than a bound's tries are looked at.

A browser that has signed in as this person before has a bound of its own: strangers who guess cannot keep it out.
Others are held by three bounds, and the one of a name with an address is the slowest: a stranger at one address cannot
use up a name for everybody, and nobody waits longer than a minute for the next try. Names that exist and names that do
not are treated alike.

Source: OWASP, "Slow Down Online Guessing Attacks with Device Cookies"; the bounds are leaky buckets (GCRA, ITU-T I.371).
"""

from __future__ import annotations

import ipaddress
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connection, transaction
from django.utils.crypto import salted_hmac
from django.utils.translation import ngettext

from common.errors import Busy
from common.loops import loop

TAKE = """
INSERT INTO accounts_signinlimit AS held (key, spent_until)
VALUES (%(key)s, now() + make_interval(secs => %(every)s))
ON CONFLICT (key) DO UPDATE
   SET spent_until = GREATEST(held.spent_until, now()) + make_interval(secs => %(every)s)
 WHERE GREATEST(held.spent_until, now()) + make_interval(secs => %(every)s)
       <= now() + make_interval(secs => %(every)s * %(tries)s)
RETURNING key
"""
WAIT = """
SELECT extract(epoch FROM spent_until - now())::float - %(every)s * (%(tries)s - 1)
  FROM accounts_signinlimit WHERE key = %(key)s
"""
GIVE_BACK = """
UPDATE accounts_signinlimit SET spent_until = spent_until - make_interval(secs => %(every)s) WHERE key = %(key)s
"""
SWEEP = "DELETE FROM accounts_signinlimit WHERE spent_until < now()"


@dataclass(frozen=True, slots=True)
class Bound:
    """So many tries at once, and one more every so many seconds."""

    kind: str
    tries: int
    every_s: int


KNOWN_BROWSER = Bound("browser", tries=10, every_s=30)
NAME_AT_ADDRESS = Bound("pair", tries=5, every_s=60)
ADDRESS = Bound("address", tries=30, every_s=6)
NAME = Bound("name", tries=20, every_s=15)

# Whoever has a session still has to guess the password that it was opened with.
ACCOUNT = Bound("account", tries=5, every_s=60)


@dataclass(frozen=True, slots=True)
class Try:
    """One try of one bound's key."""

    bound: Bound
    key: str

    @property
    def values(self) -> dict[str, str | int]:
        """What the statements take."""
        return {"key": self.key, "every": self.bound.every_s, "tries": self.bound.tries}


def tries_of(name: str, address: str, browser: str = "") -> list[Try]:
    """Return what a sign-in takes. `browser` is the number of a browser that is known to this name, "" for none."""
    name, network = folded(name), network_of(address)
    if browser:
        return [_try(KNOWN_BROWSER, browser)]
    # Always in this order: two requests never hold what the other one waits for.
    return [_try(NAME_AT_ADDRESS, name, network), _try(ADDRESS, network), _try(NAME, name)]


def tries_of_account(number: int) -> list[Try]:
    """Return what a signed-in person takes who gives their password once more."""
    return [_try(ACCOUNT, str(number))]


def _try(bound: Bound, *parts: str) -> Try:
    # Hashed: somebody may type a password where the name belongs.
    return Try(bound, salted_hmac(f"throttle.{bound.kind}", "\0".join(parts), algorithm="sha256").hexdigest())


def folded(name: str) -> str:
    """Return a name so that its spellings count together."""
    return unicodedata.normalize("NFKC", name[:254]).strip().casefold()


def network_of(address: str) -> str:
    """Return what one customer has: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(known, ipaddress.IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(ipaddress.ip_network((known, 64), strict=False))
    return str(known)


@transaction.atomic
def take(tries: Sequence[Try]) -> None:
    """Take one try of each bound, or none of them.

    Raises:
        Busy: with the seconds until the next try.
    """
    with connection.cursor() as cursor:
        for one in tries:
            cursor.execute(TAKE, one.values)
            if cursor.fetchone() is None:
                cursor.execute(WAIT, one.values)
                found = cursor.fetchone()
                raise held_back(max(1, math.ceil(found[0] if found else 1)))


def held_back(wait_s: int) -> Busy:
    """Return the refusal; it says nothing about whether the name exists."""
    sentence = ngettext(
        "Too many attempts have failed. Wait %(seconds)s second, then try again.",
        "Too many attempts have failed. Wait %(seconds)s seconds, then try again.",
        wait_s,
    )
    return Busy(sentence % {"seconds": wait_s}, code="too_many_signins", retry_after_s=wait_s)


@transaction.atomic
def give_back(tries: Sequence[Try]) -> None:
    """The password was right: these tries were no guesses."""
    with connection.cursor() as cursor:
        for one in tries:
            cursor.execute(GIVE_BACK, one.values)


@loop("signin-limits", every_s=60)
def sweep() -> None:
    """Forget the keys that have all of their tries again."""
    with connection.cursor() as cursor:
        cursor.execute(SWEEP)
