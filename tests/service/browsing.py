"""A browser with the console open, before a service in processes of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from needs import CHROMIUM
from processes import COMMAND, QUICK, environment, serving, started, until

MARKUP = "<img src=x onerror=alert(1)>"
HELD = {"on": "submit", "fault": "http_500"}


@dataclass
class Console:
    """A browser, and the service and emulator behind the page."""

    browser: Any
    url: str
    emulator_url: str

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def classify(self, text: str, backend: str, task: str = "emotion") -> dict[str, Any]:
        with self.http as http:
            answer = http.post(f"/classify/{task}", params={"backend": backend, "wait": 30}, json={"inputs": text})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    @contextmanager
    def faults(self, *rules: dict[str, Any]) -> Iterator[None]:
        """Let the emulator misbehave."""
        assert httpx.put(f"{self.emulator_url}/emulator/faults", json=list(rules)).status_code == 200
        try:
            yield
        finally:
            httpx.delete(f"{self.emulator_url}/emulator/faults")


@dataclass
class Seen:
    """What a page did beside what it shows."""

    elsewhere: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def console(browser: Any, bundles_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A service with its own Valkey and worker, on an emulator that can be told to misbehave."""
    folder = tmp_path_factory.mktemp("console")
    with ExitStack() as stack:
        env = environment(bundles_dir, folder, **QUICK)
        emulator = stack.enter_context(started(folder, "emulator", [*COMMAND, "emulator", "--port", "0"], env))
        emulator_url = emulator.wait_for_output("\n").split("QD_QUAFU_URL=")[1].split()[0]
        own = {"QD_EMBEDDED": "true", "QD_QUAFU_URL": emulator_url}
        _, url = stack.enter_context(serving(bundles_dir, folder, **QUICK | own))
        until(lambda: httpx.get(f"{url}/readyz").json()["status"] == "ready")
        yield Console(browser, url, emulator_url)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def new_page(console: Console, seen: Seen) -> Iterator[Callable[..., Any]]:
    """Opens the console; whatever a test does, its page asks no other host and has no errors."""
    contexts = []

    def opened(path: str = "/", url: str = console.url, **options: Any) -> Any:
        context = console.browser.new_context(**{"reduced_motion": "reduce"} | options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: request.url.startswith(f"{url}/") or seen.elsewhere.add(request.url))
        page.on("console", lambda message: message.type in ("error", "warning") and seen.wrong.append(message.text))
        page.on("response", lambda answer: is_broken(answer) and seen.wrong.append(f"{answer.status} {answer.url}"))
        page.on("pageerror", lambda error: seen.wrong.append(str(error)))
        page.on("dialog", lambda dialog: seen.wrong.append(f"dialog: {dialog.message}"))
        page.goto(f"{url}{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert seen.elsewhere == set()
    assert [line for line in seen.wrong if not is_refusal(line)] == []


def is_refusal(line: str) -> bool:
    """Whether it is Chromium's note that an answer was no success, which pages cannot keep it from writing."""
    return line.startswith("Failed to load resource: ")


def is_broken(answer: Any) -> bool:
    """Whether it is a part of the page that is not there."""
    return answer.status >= 400 and ("/console/" in answer.url or answer.url.endswith("favicon.ico"))


@pytest.fixture
def page(new_page: Callable[..., Any]) -> Any:
    page = new_page()
    page.locator("#task option").first.wait_for(state="attached")
    return page


def run(page: Any, text: str) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Run on both").click()


def result(page: Any, backend: str) -> Any:
    """A backend's column, once it holds a result."""
    page.locator(f"#{backend}:not([aria-busy]) .label").wait_for()
    return page.locator(f"#{backend}")


def shown_scores(column: Any) -> dict[str, str]:
    lines = column.locator(".scores li").all()
    return {line.locator(".name").inner_text(): line.locator(".number").inner_text() for line in lines}


def api_scores(answer: dict[str, Any]) -> dict[str, str]:
    return {score["label"]: f"{score['score']:.4f}" for score in answer["results"][0]["scores"]}
