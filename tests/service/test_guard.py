"""The guard before endpoints: 401, 403, 429 and 503 as documents, headers and counts."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from serving import client_of, parts_of, sample
from starlette.datastructures import Headers

from service.app import create_app
from service.control.keys import Caller, Key, KeyRing, Scope, _sha256
from service.control.limits import Limits
from service.errors import BudgetExhaustedError
from service.guard import _foreign, require
from service.logs import request_facts
from service.settings import Settings

pytestmark = pytest.mark.anyio

SECRET = "s" * 43

_ids = itertools.count()


def key(*scopes: Scope, **fields: Any) -> Key:
    """A key that no other test has."""
    values = {"id": f"{next(_ids):08x}", "name": "a", "created_at": 0.0, "sha256": _sha256(SECRET)} | fields
    return Key(scopes=scopes, **values)


def shown(key: Key, secret: str = SECRET) -> dict[str, str]:
    return {"Authorization": f"Bearer qd_{key.id}_{secret}"}


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """An app with one more endpoint for what routes do with callers; its keys are those of `use`."""
    app = create_app(settings)
    parts_of(app).limits = Limits(None)

    @app.get("/twice", dependencies=[Depends(require(Scope.CLASSIFY)), Depends(require(Scope.CLASSIFY))])
    async def twice(
        caller: Annotated[Caller, Depends(require(Scope.HARDWARE))], scope: Scope, budget: bool = False
    ) -> dict[str, Any]:
        caller.require(scope)
        if budget:
            raise BudgetExhaustedError("spent", 60)
        facts = request_facts.get()
        assert facts is not None
        return {"key": caller.key, "logged": facts.key}

    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def use(app: FastAPI, *keys: Key, exposed: bool = True, allow_anonymous: bool = False) -> None:
    ring = KeyRing(exposed=exposed, allow_anonymous=allow_anonymous)
    ring.replace(keys)
    parts_of(app).keys = ring


def denied(app: FastAPI, reason: str) -> float:
    return sample(app, "qd_denied_total", reason=reason)


def all_denied(app: FastAPI) -> float:
    (metric,) = [each for each in parts_of(app).metrics.registry.collect() if each.name == "qd_denied"]
    return sum(sample.value for sample in metric.samples if sample.name == "qd_denied_total")


@pytest.mark.parametrize(
    ("reason", "fields", "secret"),
    [
        ("missing", {}, None),
        ("unknown", {}, "x" * 43),
        ("expired", {"expires_at": 1.0}, SECRET),
        ("revoked", {"revoked_at": 1.0}, SECRET),
    ],
)
async def test_no_key_that_opens_anything_is_answered_401_and_counted_by_reason(
    app: FastAPI, client: httpx.AsyncClient, reason: str, fields: dict[str, float], secret: str | None
) -> None:
    alice = key(Scope.CLASSIFY, **fields)
    use(app, alice)
    answer = await client.get("/tasks", headers={} if secret is None else shown(alice, secret))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/problem+json"
    document = answer.json()
    assert document["type"] == "urn:qd:problem:unauthenticated"
    assert document["reason"] == reason
    assert SECRET not in answer.text
    assert denied(app, reason) == all_denied(app) == 1


async def test_key_without_the_scope_is_answered_403_and_the_scope_is_named(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    alice = key(Scope.HARDWARE)
    use(app, alice)
    answer = await client.get("/tasks", headers=shown(alice))
    assert answer.status_code == 403
    assert answer.json()["type"] == "urn:qd:problem:forbidden"
    assert answer.json()["scope"] == "classify"
    assert denied(app, "scope") == all_denied(app) == 1


async def test_key_with_the_scope_is_let_through_and_told_what_is_left(app: FastAPI, client: httpx.AsyncClient) -> None:
    alice = key(Scope.CLASSIFY, requests_per_minute=5)
    use(app, alice)
    answer = await client.get("/tasks", headers=shown(alice))
    assert answer.status_code == 200
    assert answer.headers["RateLimit-Policy"] == '"requests";q=5;w=60'
    assert answer.headers["RateLimit"].startswith('"requests";r=4;t=')
    assert all_denied(app) == 0


async def test_one_request_too_many_is_answered_429_with_retry_after(app: FastAPI, client: httpx.AsyncClient) -> None:
    alice = key(Scope.CLASSIFY, requests_per_minute=1)
    use(app, alice)
    assert (await client.get("/tasks", headers=shown(alice))).status_code == 200
    answer = await client.get("/tasks", headers=shown(alice))
    assert answer.status_code == 429
    assert answer.json()["type"] == "urn:qd:problem:rate-limited"
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.headers["RateLimit"].startswith('"requests";r=0;t=')
    assert denied(app, "rate") == all_denied(app) == 1


async def test_answers_that_are_problems_have_the_rate_headers_too(app: FastAPI, client: httpx.AsyncClient) -> None:
    alice = key(Scope.CLASSIFY, requests_per_minute=5)
    use(app, alice)
    for path, status in (("/tasks/nothing", 404), ("/tasks/nothing/circuit?wrong=1", 404)):
        answer = await client.get(path, headers=shown(alice))
        assert answer.status_code == status
        assert "RateLimit" in answer.headers


async def test_nothing_is_told_of_tasks_to_those_without_a_key(app: FastAPI, client: httpx.AsyncClient) -> None:
    use(app, key(Scope.CLASSIFY))
    for path in ("/tasks/nothing", "/tasks/emotion/circuit.svg?wrong=1", "/jobs", "/jobs/nothing"):
        assert (await client.get(path)).status_code == 401


async def test_several_guards_of_one_request_count_it_once(app: FastAPI, client: httpx.AsyncClient) -> None:
    alice = key(Scope.CLASSIFY, Scope.HARDWARE, requests_per_minute=10)
    use(app, alice)
    answer = await client.get("/twice?scope=classify", headers=shown(alice))
    assert answer.json() == {"key": alice.id, "logged": alice.id}
    assert answer.headers["RateLimit"].startswith('"requests";r=9;')


async def test_refusals_of_the_endpoint_itself_are_counted_once(app: FastAPI, client: httpx.AsyncClient) -> None:
    alice = key(Scope.CLASSIFY, Scope.HARDWARE)
    use(app, alice)
    answer = await client.get("/twice?scope=admin", headers=shown(alice))
    assert answer.status_code == 403
    assert answer.json()["scope"] == "admin"
    assert denied(app, "scope") == all_denied(app) == 1
    answer = await client.get("/twice?scope=classify&budget=true", headers=shown(alice))
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "60"
    assert denied(app, "budget") == 1
    assert all_denied(app) == 2


async def test_until_the_keys_are_known_the_answer_is_503(app: FastAPI, client: httpx.AsyncClient) -> None:
    parts_of(app).keys = KeyRing(exposed=True, allow_anonymous=False)
    answer = await client.get("/tasks")
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:qd:problem:store-unavailable"
    assert int(answer.headers["Retry-After"]) > 0
    assert all_denied(app) == 0


async def test_jobs_are_read_with_classify_and_cancelled_with_hardware(app: FastAPI, client: httpx.AsyncClient) -> None:
    reader, runner = key(Scope.CLASSIFY), key(Scope.HARDWARE)
    use(app, reader, runner)
    for method, path, allowed, refused in (
        ("GET", "/jobs", reader, runner),
        ("GET", "/jobs/1", reader, runner),
        ("GET", "/jobs/1/events", reader, runner),
        ("DELETE", "/jobs/1", runner, reader),
    ):
        assert (await client.request(method, path, headers=shown(refused))).status_code == 403
        # This service has no hardware.
        assert (await client.request(method, path, headers=shown(allowed))).status_code == 501


async def test_what_operators_and_browsers_need_first_asks_for_no_key(app: FastAPI, client: httpx.AsyncClient) -> None:
    use(app, key(Scope.CLASSIFY))
    for path in ("/livez", "/metrics", "/docs", "/openapi.json"):
        assert (await client.get(path)).status_code == 200
    assert (await client.get("/readyz")).status_code == 503  # its lifespan has not begun


async def test_page_elsewhere_cannot_use_an_open_service_through_a_name_of_its_own(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    use(app, exposed=False)
    assert (await client.get("/tasks", headers={"Host": "127.0.0.1:8000"})).status_code == 200
    answer = await client.get("/tasks", headers={"Host": "rebound.example.org:8000"})
    assert answer.status_code == 401
    assert "open to this machine only, and Host 'rebound.example.org' is neither" in answer.json()["detail"]
    answer = await client.get("/tasks", headers={"Host": "127.0.0.1:8000", "Forwarded": "for=192.0.2.1"})
    assert "open to this machine only, and by its header Forwarded a proxy" in answer.json()["detail"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "localhost", "localhost:80", "a.localhost:80", "test", ""],
)
def test_addresses_and_names_of_this_machine_are_local(host: str) -> None:
    assert _foreign(Headers({"host": host})) is None


@pytest.mark.parametrize("host", ["example.org", "example.org:8000", "localhost.example.org", "127.0.0.1.nip.io"])
def test_names_that_anybody_may_have_are_not(host: str) -> None:
    name = host.removesuffix(":8000")
    assert _foreign(Headers({"host": host})) == f"Host {name!r} is neither an address nor localhost"


def test_long_name_is_cut_where_it_is_shown() -> None:
    assert _foreign(Headers({"host": f"{'a' * 100}.org"})) == f"Host {'a' * 64!r} is neither an address nor localhost"


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For"])
def test_what_a_proxy_passes_on_is_not_from_this_machine(header: str) -> None:
    said = _foreign(Headers({"host": "127.0.0.1:8000", header: "192.0.2.1"}))
    assert said == f"by its header {header} a proxy passed the request on"


async def test_openapi_names_the_scheme_on_guarded_endpoints_only(app: FastAPI, client: httpx.AsyncClient) -> None:
    use(app, exposed=False)
    document = (await client.get("/openapi.json")).json()
    scheme = document["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, method in (("/tasks", "get"), ("/tasks/{task}", "get"), ("/jobs", "get"), ("/jobs/{job_id}", "delete")):
        endpoint = document["paths"][path][method]
        assert endpoint["security"] == [{"key": []}]
        assert {"401", "403", "429", "503"} <= endpoint["responses"].keys()
    for path in ("/livez", "/readyz", "/metrics"):
        assert "security" not in document["paths"][path]["get"]


@pytest.mark.parametrize("body", [b"{bad", b"\xff", b"[" * 100_000], ids=["no JSON", "no UTF-8", "deep"])
async def test_body_that_cannot_be_read_needs_a_key_too_and_counts(
    app: FastAPI, client: httpx.AsyncClient, body: bytes
) -> None:
    alice = key(Scope.CLASSIFY, requests_per_minute=1)
    use(app, alice)
    json = {"Content-Type": "application/json"}
    answers = [
        await client.post("/classify/emotion", content=body, headers=json | headers)
        for headers in ({}, shown(alice), shown(alice))
    ]
    assert [answer.status_code for answer in answers] == [401, 400, 429]
    assert (denied(app, "missing"), denied(app, "rate"), all_denied(app)) == (1, 1, 2)
