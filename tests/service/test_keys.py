"""API keys: what is stored of them, and which headers open what."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from time import time

import pytest
from redis.asyncio import Redis

from service.control import keyspace
from service.control.keys import Caller, Key, KeyRing, KeyState, KeyStore, Scope, is_exposed, parse_keys
from service.errors import ForbiddenError, StoreUnavailableError, UnauthenticatedError
from service.hardware.budget import Budget

pytestmark = pytest.mark.anyio

EVERYTHING = frozenset(Scope)
FOREIGN = "Host 'example.org' is neither an address nor localhost"


@pytest.fixture
async def store(redis: Redis) -> AsyncIterator[KeyStore]:
    await redis.delete(keyspace.KEYS)
    yield KeyStore(redis)
    await redis.delete(keyspace.KEYS)


def ring_of(*keys: Key, exposed: bool = True, allow_anonymous: bool = False) -> KeyRing:
    ring = KeyRing(exposed=exposed, allow_anonymous=allow_anonymous)
    ring.replace(keys)
    return ring


def reason(ring: KeyRing, authorization: str | None) -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        ring.caller(authorization)
    assert caught.value.headers["WWW-Authenticate"] == "Bearer"
    return str(caught.value.members["reason"])


async def test_key_has_256_random_bits_and_only_their_hash_is_stored(store: KeyStore, redis_url: str) -> None:
    key, shown = await store.create("alice", [Scope.CLASSIFY])
    found = re.fullmatch(r"qd_([0-9a-f]{8})_([A-Za-z0-9_-]{43})", shown)
    assert found is not None
    assert found[1] == key.id
    other, _ = await store.create("alice", [Scope.CLASSIFY])
    assert other.id != key.id
    assert other.sha256 != key.sha256
    # Every command that ever wrote anything, plainly.
    log = b"".join(file.read_bytes() for file in Path(redis_url.removeprefix("unix://")).parent.glob("*/*.aof"))
    assert key.sha256.encode() in log
    assert found[2].encode() not in log


async def test_key_opens_what_its_scopes_say_and_nothing_else(store: KeyStore) -> None:
    key, shown = await store.create("a", [Scope.HARDWARE, Scope.CLASSIFY], requests_per_minute=7, shots_per_day=2048)
    caller = ring_of(*await store.all()).caller(f"Bearer {shown}")
    assert caller == Caller(key.id, frozenset({Scope.CLASSIFY, Scope.HARDWARE}), 7, Budget(key.id, 2048))
    caller.require(Scope.CLASSIFY)
    caller.require(Scope.HARDWARE)
    with pytest.raises(ForbiddenError, match="the scope 'classify' and 'hardware', expected 'admin'") as caught:
        caller.require(Scope.ADMIN)
    assert caught.value.members == {"scope": "admin"}


async def test_admin_implies_no_other_scope(store: KeyStore) -> None:
    _, shown = await store.create("a", [Scope.ADMIN])
    caller = ring_of(*await store.all()).caller(f"Bearer {shown}")
    for scope in (Scope.CLASSIFY, Scope.HARDWARE):
        with pytest.raises(ForbiddenError):
            caller.require(scope)


async def test_zero_is_no_limit(store: KeyStore) -> None:
    _, shown = await store.create("a", [Scope.HARDWARE], requests_per_minute=0, shots_per_day=0)
    caller = ring_of(*await store.all()).caller(f"Bearer {shown}")
    assert caller.requests_per_minute == 0
    assert caller.budget is None


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
async def test_scheme_is_read_in_any_case(store: KeyStore, scheme: str) -> None:
    key, shown = await store.create("a", [Scope.CLASSIFY])
    assert ring_of(*await store.all()).caller(f"{scheme}{shown}").key == key.id


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "Bearer",
        "Bearer ",
        "{}",
        "Basic {}",
        "Bearer{}",
        "Bearer x{}",
        "Bearer {}x",
        "Bearer {}\n{}",
        "Bearer {} {}",
        "Bearer é",
        "Bearer " + "qd_" * 100_000,
    ],
)
async def test_malformed_header_opens_nothing(store: KeyStore, pattern: str) -> None:
    _, shown = await store.create("a", [Scope.CLASSIFY])
    assert reason(ring_of(*await store.all()), pattern.replace("{}", shown)) == "unknown"


async def test_wrong_secret_and_unknown_id_are_told_alike(store: KeyStore) -> None:
    key, shown = await store.create("a", [Scope.CLASSIFY])
    ring = ring_of(*await store.all())
    details = set()
    for wrong in (shown[:-1] + ("a" if shown[-1] != "a" else "b"), shown.replace(key.id, "00000000")):
        with pytest.raises(UnauthenticatedError) as caught:
            ring.caller(f"Bearer {wrong}")
        assert caught.value.members["reason"] == "unknown"
        details.add(caught.value.detail)
    assert len(details) == 1


async def test_secret_is_compared_in_constant_time_also_where_there_is_no_such_key(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return hmac_compare(a, b)

    hmac_compare = hmac.compare_digest
    key, shown = await store.create("a", [Scope.CLASSIFY])
    ring = ring_of(*await store.all())
    monkeypatch.setattr(hmac, "compare_digest", compare)
    ring.caller(f"Bearer {shown}")
    assert reason(ring, f"Bearer {shown.replace(key.id, '00000000')}") == "unknown"
    (known, stored), (unknown, dummy) = compared
    assert known == stored == key.sha256
    assert unknown == known
    assert len(dummy) == len(stored)
    assert dummy != stored


async def test_expired_key_says_so_to_whoever_has_its_secret(store: KeyStore) -> None:
    key, shown = await store.create("a", [Scope.CLASSIFY], expires_at=time() - 1)
    _, later = await store.create("b", [Scope.CLASSIFY], expires_at=time() + 3600)
    ring = ring_of(*await store.all())
    assert reason(ring, f"Bearer {shown}") == "expired"
    assert reason(ring, f"Bearer {shown[:12]}{'A' * 43}") == "unknown"
    assert key.state is KeyState.EXPIRED
    ring.caller(f"Bearer {later}").require(Scope.CLASSIFY)


async def test_revoked_key_opens_nothing_and_stays_on_record_with_its_first_time(store: KeyStore) -> None:
    key, shown = await store.create("a", [Scope.CLASSIFY])
    revoked = await store.revoke(key.id)
    assert revoked is not None
    assert revoked.revoked_at == pytest.approx(time(), abs=60)
    assert await store.revoke(key.id) == revoked
    assert await store.all() == [revoked]
    ring = ring_of(*await store.all(), exposed=False)
    assert reason(ring, f"Bearer {shown}") == "revoked"
    # The last key was revoked, which must not open the service to all.
    assert reason(ring, None) == "missing"


async def test_unknown_id_is_not_revoked(store: KeyStore) -> None:
    assert await store.revoke("00000000") is None
    assert await store.all() == []


async def test_keys_are_listed_the_oldest_first(store: KeyStore) -> None:
    made = [(await store.create(name, [Scope.CLASSIFY]))[0] for name in "abc"]
    assert await store.all() == made


@pytest.mark.parametrize("record", ["{}", "no JSON", '{"schema_version": 2, "scopes": ["root"]}', "[]", ""])
async def test_record_of_another_version_opens_nothing_and_yet_is_a_key(
    store: KeyStore, redis: Redis, record: str, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.hset(keyspace.KEYS, "0badc0de", record)
    (key,) = await store.all()
    assert key.state is KeyState.UNREADABLE
    ring = ring_of(exposed=False)
    with caplog.at_level(logging.WARNING, "service.control.keys"):
        for _ in range(3):
            ring.replace(parse_keys({"0badc0de": record}))
    (line,) = caplog.records
    assert line.__dict__["fields"] == {"keys": ["0badc0de"]}
    assert reason(ring, None) == "missing"
    assert reason(ring, f"Bearer qd_0badc0de_{'A' * 43}") == "unknown"
    assert await store.revoke("0badc0de") is None
    assert await redis.hget(keyspace.KEYS, "0badc0de") == record


async def test_record_counts_under_the_id_that_it_is_stored_under(store: KeyStore) -> None:
    key, shown = await store.create("a", [Scope.CLASSIFY])
    (moved,) = parse_keys({"11111111": key.model_dump_json()})
    ring = ring_of(moved)
    assert reason(ring, f"Bearer {shown}") == "unknown"
    assert ring.caller(f"Bearer {shown.replace(key.id, '11111111')}").key == "11111111"


def test_without_any_key_a_service_of_this_machine_is_open() -> None:
    ring = ring_of(exposed=False)
    for authorization in (None, f"Bearer qd_00000000_{'A' * 43}", "nonsense"):
        assert ring.caller(authorization) == Caller(None, EVERYTHING)


def test_open_service_asks_for_a_key_where_it_goes_by_a_name_that_anybody_may_have() -> None:
    ring = ring_of(exposed=False)
    with pytest.raises(UnauthenticatedError) as caught:
        ring.caller(None, foreign=FOREIGN)
    assert caught.value.detail.endswith(f"; without keys the service is open to this machine only, and {FOREIGN}")


async def test_where_there_are_keys_no_other_reason_is_given(store: KeyStore) -> None:
    key, _ = await store.create("a", [Scope.CLASSIFY])
    for ring in (ring_of(key, exposed=False), ring_of()):
        with pytest.raises(UnauthenticatedError) as caught:
            ring.caller(None, foreign=FOREIGN)
        assert caught.value.detail == "the request has no key, expected `Authorization: Bearer qd_...`"


@pytest.mark.parametrize("authorization", ["Bearer qd_nope", "Basic YTpi"])
def test_header_of_another_form_is_told_the_form(authorization: str) -> None:
    with pytest.raises(UnauthenticatedError, match="is not of the form `Bearer qd_<id>_<secret>`"):
        ring_of().caller(authorization)


def test_without_any_key_a_service_of_other_machines_opens_nothing() -> None:
    assert reason(ring_of(), None) == "missing"


async def test_anonymous_callers_may_classify_and_use_hardware_but_never_administer(store: KeyStore) -> None:
    key, shown = await store.create("a", [Scope.ADMIN])
    for ring in (
        ring_of(allow_anonymous=True),
        ring_of(key, allow_anonymous=True),
        ring_of(key, exposed=False, allow_anonymous=True),
        KeyRing(exposed=True, allow_anonymous=True),
    ):
        assert ring.caller(None) == Caller(None, frozenset({Scope.CLASSIFY, Scope.HARDWARE}))
    # A key that is shown is what counts.
    ring = ring_of(key, allow_anonymous=True)
    assert ring.caller(f"Bearer {shown}").scopes == {Scope.ADMIN}
    assert reason(ring, "Bearer nonsense") == "unknown"


def test_until_the_keys_are_known_other_machines_are_told_to_come_back() -> None:
    ring = KeyRing(exposed=True, allow_anonymous=False)
    assert not ring.is_ready
    for authorization in (None, f"Bearer qd_00000000_{'A' * 43}"):
        with pytest.raises(StoreUnavailableError) as caught:
            ring.caller(authorization)
        assert int(caught.value.headers["Retry-After"]) > 0


def test_until_the_keys_are_known_this_machine_may_classify_only() -> None:
    ring = KeyRing(exposed=False, allow_anonymous=False)
    with pytest.raises(StoreUnavailableError):
        ring.caller(None, foreign=FOREIGN)
    assert ring.caller(None) == Caller(None, frozenset({Scope.CLASSIFY}))
    assert ring.is_ready
    ring.replace([])
    assert ring.caller(None).scopes == EVERYTHING


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST"])
def test_loopback_is_not_exposed(host: str) -> None:
    assert not is_exposed(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.example.org", ""])
def test_any_other_address_or_name_is(host: str) -> None:
    assert is_exposed(host)


async def test_key_whose_answer_was_lost_is_made_once() -> None:
    class Repeating:
        """Loses the first answer, as the client then sends the same call again."""

        def __init__(self) -> None:
            self.stored: dict[str, str] = {}

        async def hsetnx(self, name: str, field: str, value: str) -> int:
            self.stored.setdefault(field, value)
            return 0

        async def hget(self, name: str, field: str) -> str | None:
            return self.stored.get(field)

    redis = Repeating()
    key, _ = await KeyStore(redis).create("alice", [Scope.CLASSIFY])  # type: ignore[arg-type]
    assert redis.stored.keys() == {key.id}
