"""API keys: who may do what, and how much of it.

A key reads `qd_<id>_<secret>`. Redis holds the SHA-256 of its secret, which is 256 random bits: nothing can be guessed
that a slow hash would protect. Requests are checked against a copy in memory, `KeyRing`, that is replaced every
second, so that keys work while Redis is away.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from time import time
from typing import Any

from pydantic import Field, ValidationError
from redis.asyncio import Redis

from service.control import keyspace
from service.errors import ForbiddenError, StoreUnavailableError, UnauthenticatedError
from service.hardware.budget import Budget
from service.hardware.records import Record
from service.listening import is_loopback

REQUESTS_PER_MINUTE = 600
SHOTS_PER_DAY = 1_024_000

_RETRY_SECONDS = 5
_AUTHORIZATION = re.compile(r"bearer +qd_([0-9a-f]{8})_([A-Za-z0-9_-]{43})", re.IGNORECASE | re.ASCII)
_FORM = "`Bearer qd_<id>_<secret>`"
_EXPECTED = "expected `Authorization: Bearer qd_...`"

logger = logging.getLogger(__name__)


class Scope(StrEnum):
    """What a key may be for; none implies another."""

    CLASSIFY = "classify"
    """Classify texts, read tasks and jobs."""
    HARDWARE = "hardware"
    """Run circuits on hardware, and cancel jobs."""
    ADMIN = "admin"
    """Switch backends and load bundles."""


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"
    UNREADABLE = "unreadable"
    """Its record was written by another version of the service."""


class Key(Record):
    """What is kept of a key.

    Attributes:
        id: Eight hexadecimal digits; part of the key, and no secret.
        name: Whose it is, for people.
        sha256: Of the secret's characters, in hexadecimal; empty if the record cannot be read, so that nothing fits.
        expires_at: Seconds since the epoch; None if it does not expire.
        revoked_at: Likewise; None if it has not been revoked.
        requests_per_minute: Most requests in a minute; 0 for any number.
        shots_per_day: Most shots that it may bring into the hardware's queue in a day (UTC); 0 for any number.
    """

    id: str
    name: str = Field(min_length=1, max_length=64)
    sha256: str
    scopes: tuple[Scope, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    requests_per_minute: int = Field(default=REQUESTS_PER_MINUTE, ge=0)
    shots_per_day: int = Field(default=SHOTS_PER_DAY, ge=0)

    @property
    def state(self) -> KeyState:
        """Its state now."""
        if not self.sha256:
            return KeyState.UNREADABLE
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and self.expires_at <= time():
            return KeyState.EXPIRED
        return KeyState.ACTIVE


@dataclass(frozen=True)
class Caller:
    """Who makes a request, and what they may do.

    Attributes:
        key: Id of their key; None without one.
        requests_per_minute: Most requests in a minute; 0 for any number.
        budget: What they may spend on hardware; None for any amount.
    """

    key: str | None
    scopes: frozenset[Scope]
    requests_per_minute: int = 0
    budget: Budget | None = None

    def require(self, scope: Scope) -> None:
        """Do nothing for a caller with the scope.

        Raises:
            ForbiddenError: Otherwise; names the scope.
            StoreUnavailableError: If it is not known yet what callers need.
        """
        if scope in self.scopes:
            return
        if self is _UNKNOWN:
            raise StoreUnavailableError("Redis, which holds the API keys, does not answer", _RETRY_SECONDS)
        found = " and ".join(repr(one.value) for one in Scope if one in self.scopes) or "none"
        who = "a caller without a key" if self.key is None else f"the key {self.key}"
        raise ForbiddenError(f"{who} has the scope {found}, expected {scope.value!r}", scope=scope.value)


class KeyRing:
    """The keys that requests are checked against.

    A service without any key is *open* if only this machine reaches it: every caller may do everything.

    Args:
        exposed: Whether other machines reach the service.
        allow_anonymous: Whether callers without a key may classify, on hardware too, where there are keys or other
            machines reach the service.
    """

    def __init__(self, *, exposed: bool, allow_anonymous: bool) -> None:
        self._exposed = exposed
        self._allow_anonymous = allow_anonymous
        self._keys: dict[str, Key] | None = None
        self._unreadable: set[str] = set()

    def replace(self, keys: Iterable[Key]) -> None:
        """Check against these keys from now on."""
        self._keys = {key.id: key for key in keys}
        unreadable = {key.id for key in self._keys.values() if key.state is KeyState.UNREADABLE}
        if unreadable - self._unreadable:
            logger.warning("keys of another version open nothing", extra={"fields": {"keys": sorted(unreadable)}})
        self._unreadable = unreadable

    @property
    def is_ready(self) -> bool:
        """Whether anybody can be let in: the keys are known, or not everybody needs one."""
        return self._keys is not None or self._allow_anonymous or not self._exposed

    def caller(self, authorization: str | None, *, foreign: str | None = None) -> Caller:
        """Who sends this Authorization header.

        Args:
            foreign: Why the request may come from elsewhere, in words; None if it names the service by an address or as
                localhost. An open service is open to no other name: a web page could have its own point here, and would
                speak for whoever reads it.

        Raises:
            UnauthenticatedError: If a key is needed and this is none that opens anything; its member `reason` is
                `missing`, `unknown`, `expired` or `revoked`, the last two only for whoever has the secret.
            StoreUnavailableError: If a key is needed and the keys are not known yet.
        """
        if self._keys is None:
            if self._allow_anonymous:
                return _ANONYMOUS
            if self._exposed or foreign is not None:
                raise StoreUnavailableError("Redis, which holds the API keys, does not answer", _RETRY_SECONDS)
            return _UNKNOWN
        closed = ""
        if not self._keys and not self._exposed:
            if foreign is None:
                return _OPEN
            closed = f"; without keys the service is open to this machine only, and {foreign}"
        if authorization is None and self._allow_anonymous:
            return _ANONYMOUS
        return _caller(_authenticate(self._keys, authorization, closed))


class KeyStore:
    """The keys in Redis.

    Args:
        redis: Decodes its answers.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        expires_at: float | None = None,
        requests_per_minute: int = REQUESTS_PER_MINUTE,
        shots_per_day: int = SHOTS_PER_DAY,
    ) -> tuple[Key, str]:
        """Make a key; returns its record and the key itself, which is not stored and cannot be shown again."""
        secret = secrets.token_urlsafe(32)
        asked = set(scopes)
        while True:
            key = Key(
                id=secrets.token_hex(4),
                name=name,
                sha256=_sha256(secret),
                scopes=tuple(scope for scope in Scope if scope in asked),
                created_at=time(),
                expires_at=expires_at,
                requests_per_minute=requests_per_minute,
                shots_per_day=shots_per_day,
            )
            record = key.model_dump_json()
            # It may be there although it was not set now: the client repeats a call whose answer was lost.
            is_new = await self._redis.hsetnx(keyspace.KEYS, key.id, record)
            if is_new or await self._redis.hget(keyspace.KEYS, key.id) == record:
                return key, f"qd_{key.id}_{secret}"

    async def all(self) -> list[Key]:
        """Every key, the oldest first."""
        stored = await self._redis.hgetall(keyspace.KEYS)
        keys = parse_keys({str(key_id): str(record) for key_id, record in stored.items()})
        return sorted(keys, key=lambda key: (key.created_at, key.id))

    async def revoke(self, key_id: str) -> Key | None:
        """Make a key open nothing from now on; its record stays. None if there is none of this id that can be read."""
        stored = await self._redis.hget(keyspace.KEYS, key_id)
        if stored is None:
            return None
        key = _parse(key_id, str(stored))
        if key.state is KeyState.UNREADABLE:
            return None
        if key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": time()})
            await self._redis.hset(keyspace.KEYS, key_id, key.model_dump_json())
        return key


def is_exposed(host: str) -> bool:
    """Whether other machines reach a service that listens on a host."""
    return not is_loopback(host)


def parse_keys(raw: Mapping[str, str]) -> list[Key]:
    """The keys of the hash `keyspace.KEYS`.

    A record that cannot be read becomes a key that opens nothing: were it left out, the service could seem to have no
    key at all, and be open.
    """
    return [_parse(key_id, record) for key_id, record in raw.items()]


def _parse(key_id: str, record: str) -> Key:
    try:
        # The field decides: a record under another's id would be found, and revoked, under none.
        return Key.model_validate_json(record).model_copy(update={"id": key_id})
    except ValidationError:
        return Key(id=key_id, name="?", sha256="", scopes=(), created_at=0.0)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _authenticate(keys: Mapping[str, Key], authorization: str | None, closed: str) -> Key:
    """The key that a header shows; `closed` is said to whoever shows none."""
    if authorization is None:
        raise _unauthenticated(f"the request has no key, {_EXPECTED}{closed}", "missing")
    found = _AUTHORIZATION.fullmatch(authorization.strip())
    if found is None:
        raise _unauthenticated(f"the Authorization header is not of the form {_FORM}", "unknown")
    key = keys.get(found[1].lower())
    # A key that does not exist takes as long as one whose secret is wrong.
    fits = hmac.compare_digest(_sha256(found[2]), _DUMMY if key is None else key.sha256)
    if key is None or not fits:
        raise _unauthenticated("there is no such key", "unknown")
    if key.state is not KeyState.ACTIVE:
        raise _unauthenticated(f"the key {key.id} is {key.state.value}", key.state.value)
    return key


def _unauthenticated(detail: str, reason: str) -> UnauthenticatedError:
    members: dict[str, Any] = {"reason": reason}
    return UnauthenticatedError(detail, **members)


def _caller(key: Key) -> Caller:
    budget = Budget(key.id, key.shots_per_day) if key.shots_per_day else None
    return Caller(key.id, frozenset(key.scopes), key.requests_per_minute, budget)


# No secret has this digest's preimage: it is made of one that nobody kept.
_DUMMY = _sha256(secrets.token_urlsafe(32))
_OPEN = Caller(None, frozenset(Scope))
_ANONYMOUS = Caller(None, frozenset({Scope.CLASSIFY, Scope.HARDWARE}))
# Only this machine reaches the service, and whether there are keys is not known yet.
_UNKNOWN = Caller(None, frozenset({Scope.CLASSIFY}))
