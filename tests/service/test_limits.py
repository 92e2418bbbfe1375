"""Requests a minute of each key: over replicas, without Redis, and what the headers say."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import Valkey

from service.control.keys import Caller, Scope
from service.control.limits import Limits, rate_headers
from service.errors import RateLimitedError
from service.logs import RequestFacts, request_facts

pytestmark = pytest.mark.anyio

_ids = itertools.count()


@contextmanager
def request() -> Iterator[RequestFacts]:
    """A request, of whose answer the headers are noted."""
    facts = RequestFacts("request")
    token = request_facts.set(facts)
    yield facts
    request_facts.reset(token)


@pytest.fixture
async def shared(redis_url: str) -> AsyncIterator[tuple[Limits, Limits]]:
    """Two replicas on one Redis."""
    replicas = Limits(redis_url), Limits(redis_url)
    yield replicas
    for limits in replicas:
        await limits.close()


def caller(requests_per_minute: int) -> Caller:
    """A caller with a key that no other test has."""
    return Caller(f"{next(_ids):08x}", frozenset({Scope.CLASSIFY}), requests_per_minute)


async def test_replicas_count_together(shared: tuple[Limits, Limits]) -> None:
    one, other = shared
    alice = caller(3)
    await one.hit(alice)
    await other.hit(alice)
    await one.hit(alice)
    for limits in shared:
        with pytest.raises(RateLimitedError) as caught:
            await limits.hit(alice)
        assert 1 <= int(caught.value.headers["Retry-After"]) <= 60
        assert caught.value.members["limit"] == 3
    # Each key has its own.
    await other.hit(caller(3))
    assert not one.redis_is_away


async def test_headers_say_what_is_left_and_are_there_on_a_refusal_too(shared: tuple[Limits, Limits]) -> None:
    alice = caller(2)
    left = []
    for _ in range(2):
        with request() as facts:
            await shared[0].hit(alice)
        left.append(parsed(facts.headers["RateLimit"])["requests"]["r"])
        assert parsed(facts.headers["RateLimit-Policy"]) == {"requests": {"q": 2, "w": 60}}
    assert left == [1, 0]
    with request() as facts, pytest.raises(RateLimitedError) as caught:
        await shared[0].hit(alice)
    said = parsed(facts.headers["RateLimit"])["requests"]
    assert said["r"] == 0
    assert max(1, said["t"]) == int(caught.value.headers["Retry-After"])


async def test_first_request_of_a_key_says_the_whole_window(shared: tuple[Limits, Limits]) -> None:
    for _ in range(20):
        with request() as facts:
            await shared[0].hit(caller(600))
        assert parsed(facts.headers["RateLimit"]) == {"requests": {"r": 599, "t": 60}}


@pytest.mark.parametrize("nobody", [Caller(None, frozenset(Scope)), Caller("1", frozenset(Scope), 0)])
async def test_callers_without_a_limit_have_no_headers(nobody: Caller) -> None:
    limits = Limits(None)
    with request() as facts:
        for _ in range(100):
            await limits.hit(nobody)
    assert facts.headers == {}


async def test_without_redis_a_replica_counts_alone() -> None:
    one, other = Limits(None), Limits(None)
    alice = caller(1)
    await one.hit(alice)
    with pytest.raises(RateLimitedError):
        await one.hit(alice)
    await other.hit(alice)


async def test_while_redis_is_away_a_replica_counts_alone_and_asks_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    valkey = Valkey(tmp_path)
    valkey.start()
    limits = Limits(valkey.url)
    alice = caller(2)
    with caplog.at_level(logging.WARNING, "service.control.limits"):
        await limits.hit(alice)
        assert caplog.records == []
        valkey.kill()
        for _ in range(2):
            await limits.hit(alice)
            assert limits.redis_is_away
        with request() as facts, pytest.raises(RateLimitedError):
            await limits.hit(alice)
    assert len(caplog.records) == 1
    assert parsed(facts.headers["RateLimit"])["requests"]["r"] == 0
    # Whoever finds it back says so, and what it has counted counts again.
    valkey.start()
    limits.redis_is_away = False
    await limits.hit(alice)
    with pytest.raises(RateLimitedError):
        await limits.hit(alice)
    assert not limits.redis_is_away
    await limits.close()
    valkey.kill()


async def test_redis_that_is_known_to_be_away_is_not_asked() -> None:
    limits = Limits("redis://127.0.0.1:1")
    limits.redis_is_away = True
    alice = caller(1)
    await limits.hit(alice)
    with pytest.raises(RateLimitedError):
        await limits.hit(alice)
    await limits.close()


def test_headers_are_structured_fields() -> None:
    headers = rate_headers(600, 599, 42)
    assert parsed(headers["RateLimit-Policy"]) == {"requests": {"q": 600, "w": 60}}
    assert parsed(headers["RateLimit"]) == {"requests": {"r": 599, "t": 42}}


_STRING = r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"'
_PARAMETER = r";[ ]*([a-z*][a-z0-9_.*-]*)=(-?[0-9]{1,15})"


def parsed(field: str) -> dict[str, dict[str, int]]:
    """A list of strings with integer parameters, by the grammar of RFC 9651, sections 3.1 and 4.2."""
    found = {}
    for member in re.split(r"[ \t]*,[ \t]*", field):
        item = re.fullmatch(f"{_STRING}((?:{_PARAMETER})*)", member)
        assert item is not None, field
        found[item[1]] = {name: int(value) for name, value in re.findall(_PARAMETER, item[2])}
    return found
