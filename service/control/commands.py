"""`qdserve keys`: makes, lists and revokes API keys, in the Redis that the service uses."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from redis.exceptions import RedisError

from service.control.audit import COMMAND, Entry, Ledger
from service.control.keys import REQUESTS_PER_MINUTE, SHOTS_PER_DAY, Key, KeyState, KeyStore, Scope
from service.embedded import reach_redis
from service.errors import CommandError
from service.hardware.connection import connect
from service.settings import Settings

_PERIOD = re.compile(r"(\d{1,6})([hd])", re.ASCII)
_HOURS = {"h": 1, "d": 24}
_MAX_NAME = 64
_HEADINGS = ("ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "STATE", "REQUESTS/MIN", "SHOTS/DAY")


async def create(
    settings: Settings,
    name: str,
    scopes: Sequence[str],
    expires: str | None,
    *,
    requests_per_minute: int = REQUESTS_PER_MINUTE,
    shots_per_day: int = SHOTS_PER_DAY,
) -> tuple[str, str]:
    """Make a key; returns it, which nothing shows again, and what is to be known of it.

    Raises:
        ServiceError: If it cannot be made; nothing is changed then.
    """
    if not (0 < len(name) <= _MAX_NAME and name.isprintable() and name.strip()):
        raise CommandError(f"NAME is {name[:_MAX_NAME]!r}, expected 1 to {_MAX_NAME} printable characters")
    wanted = [_scope(scope) for scope in scopes]
    expires_at = None if expires is None else expiry(expires)
    for option, value in (("--requests-per-minute", requests_per_minute), ("--shots-per-day", shots_per_day)):
        if value < 0:
            raise CommandError(f"{option} is {value}, expected at least 0")
    async with _store(settings, may_begin=True) as (store, ledger):
        key, shown = await store.create(
            name,
            wanted,
            expires_at=expires_at,
            requests_per_minute=requests_per_minute,
            shots_per_day=shots_per_day,
        )
        # From here on there is a key, and whoever asked for it must get it.
        is_first, is_noted = False, True
        try:
            is_first = len(await store.all()) == 1
            await ledger.note(_entry("create-key", {}, key))
        except RedisError:
            is_noted = False
    until = "does not expire" if key.expires_at is None else f"expires {_at(key.expires_at)} UTC"
    facts = f"Key {key.id} for {_scopes(key)}, {until}. It is not shown again: only its hash is kept."
    if settings.redis_url is None:
        facts += f"\nIt is kept in {settings.state_dir.absolute()} (QD_STATE_DIR)."
    if 0 < shots_per_day < settings.shots:
        facts += f"\nNot even one circuit of QD_SHOTS ({settings.shots}) fits into its {shots_per_day} shots a day."
    if is_first:
        facts += "\nIt is the first: from now on the service asks for a key."
    if not is_noted:
        facts += "\nRedis went away meanwhile: the audit does not hold it."
    return shown, facts


async def show(settings: Settings) -> str:
    """Every key in a table, the oldest first, without what opens anything."""
    async with _store(settings) as (store, _):
        return table(await store.all())


async def revoke(settings: Settings, key_id: str) -> str:
    """Make a key open nothing from now on; returns what was done.

    Raises:
        CommandError: If there is none of this id.
    """
    async with _store(settings) as (store, ledger):
        key = await store.revoke(key_id)
        if key is not None:
            await ledger.note(_entry("revoke-key", {"key": key_id}, key))
    if key is None:
        raise CommandError(f"there is no key {key_id[:_MAX_NAME]!r}; `qdserve keys list` shows those that there are")
    assert key.revoked_at is not None
    return f"Key {key.id} ({key.name}) is revoked since {_at(key.revoked_at)} UTC."


def expiry(text: str) -> float:
    """Seconds since the epoch of a period from now (`30d`, `12h`) or an ISO date or time, UTC unless it says otherwise.

    Raises:
        CommandError: If it is neither, or over already.
    """
    try:
        period = _PERIOD.fullmatch(text)
        if period:
            at = datetime.now(UTC) + timedelta(hours=int(period[1]) * _HOURS[period[2]])
        else:
            at = datetime.fromisoformat(text)
            at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandError(
            f"--expires is {text[:_MAX_NAME]!r}, expected a period such as 30d or 12h, or a date such as 2030-01-31"
        ) from None
    if at <= datetime.now(UTC):
        raise CommandError(f"--expires is {text!r}, which is over already; expected a time to come")
    return at.timestamp()


def table(keys: Sequence[Key]) -> str:
    """Keys in columns; times are UTC."""
    rows = [_HEADINGS, *(_row(key) for key in keys)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _entry(action: Literal["create-key", "revoke-key"], before: dict[str, Any], key: Key) -> Entry:
    shown = key.model_dump(mode="json", exclude={"schema_version", "sha256"})
    return Entry(by=COMMAND, action=action, before=before, after={"key": shown}, request_id="")


def _row(key: Key) -> tuple[str, ...]:
    if key.state is KeyState.UNREADABLE:
        return (key.id, key.name, "-", "-", "-", key.state.value, "-", "-")
    return (
        key.id,
        key.name,
        _scopes(key),
        _at(key.created_at),
        "never" if key.expires_at is None else _at(key.expires_at),
        key.state.value,
        str(key.requests_per_minute or "any"),
        str(key.shots_per_day or "any"),
    )


def _scopes(key: Key) -> str:
    return ",".join(key.scopes)


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _scope(name: str) -> Scope:
    try:
        return Scope(name)
    except ValueError:
        known = ", ".join(Scope)
        raise CommandError(f"--scope is {name[:_MAX_NAME]!r}, expected one of {known}") from None


@asynccontextmanager
async def _store(settings: Settings, *, may_begin: bool = False) -> AsyncIterator[tuple[KeyStore, Ledger]]:
    """The keys in the Redis of the settings, or in the embedded one, and where changes are written down.

    Only with `may_begin` is there an embedded one where there never was.
    """
    if settings.redis_url is not None:
        async with _connected(settings.redis_url.get_secret_value()) as both:
            yield both
    elif not settings.embedded:
        raise CommandError("keys are kept in Redis: set QD_REDIS_URL, as QD_EMBEDDED is false")
    else:
        async with reach_redis(settings.state_dir, may_begin=may_begin) as url, _connected(url) as both:
            yield both


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[tuple[KeyStore, Ledger]]:
    redis = connect(url)
    try:
        yield KeyStore(redis), Ledger(redis)
    except RedisError as exc:
        raise CommandError(f"Redis, which holds the keys, does not answer: {exc}") from exc
    finally:
        await redis.aclose()
