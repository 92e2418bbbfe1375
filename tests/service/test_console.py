"""The console in a browser: what a user clicks, types and sees."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import HELD, MARKUP, Console, Seen, api_scores, result, run, shown_scores
from needs import needs_chromium
from processes import COMMAND, QUICK, ROOT, Valkey, environment, serving, until

pytestmark = needs_chromium


def test_both_backends_answer_side_by_side_what_the_api_says(page: Any, console: Console) -> None:
    text = "what a lovely day for a walk"
    run(page, text)
    for backend in ("simulator", "baihua"):
        column = result(page, backend)
        answer = console.classify(text, backend)
        assert column.locator(".label").inner_text() == answer["results"][0]["label"]
        assert shown_scores(column) == api_scores(answer)
    facts = page.locator("#simulator .facts").inner_text()
    assert all(name in facts for name in ("embed", "circuit", "total", "emotion@"))
    assert page.locator("#verdict").inner_text().startswith(("Both say", "They disagree"))
    assert "emulated" in page.locator("#baihua .answer").inner_text()
    assert page.locator("#baihua .flip").inner_text().startswith("A rerun would give")
    assert text in page.locator("#asked").inner_text()
    assert "Baihua:" in page.locator("#live").inner_text()


def test_expectation_values_are_those_of_the_answer(page: Any, console: Console) -> None:
    text = "the expectation of rain"
    run(page, text)
    result(page, "baihua")
    measured = console.classify(text, "baihua")["results"][0]
    heads = page.locator(".expvals thead th").all_inner_texts()[2:]
    rows = [row.locator("td.number").all_inner_texts() for row in page.locator(".expvals tbody tr").all()]
    numbers = [[float(cell.replace("−", "-")) for cell in row] for row in rows]
    assert [row[heads.index("raw")] for row in numbers] == pytest.approx(measured["expvals_raw"], abs=5e-4)
    assert ("corrected" in heads) == measured["mitigated"]
    assert len(rows) == len(measured["expvals"])


def test_exact_expectation_values_are_compared_with_those_of_hardware(page: Any, console: Console) -> None:
    text = "something exact to compare with"
    run(page, text)
    result(page, "baihua")
    with console.http as http:
        answer = http.post("/classify/emotion", params={"expvals": True}, json={"inputs": text}).json()
    assert page.locator(".expvals thead th").all_inner_texts()[2:4] == ["exact", "raw"]
    cells = [row.locator("td.number").first.inner_text() for row in page.locator(".expvals tbody tr").all()]
    assert [float(cell.replace("−", "-")) for cell in cells] == pytest.approx(answer["results"][0]["expvals"], abs=5e-4)
    assert page.locator(".deviation").inner_text().startswith("Mean distance from exact: ")


def test_a_job_is_followed_to_its_result(page: Any, console: Console) -> None:
    with console.faults({"on": "status", "fault": "http_500"}):
        run(page, "a job to follow")
        page.locator("#baihua .step.submitted[aria-current=step]").wait_for()
        assert page.locator("#baihua").get_attribute("aria-busy") == "true"
        page.locator("#baihua .held").get_by_text("provider unreachable").wait_for()
        assert page.locator("#baihua").get_by_role("button", name="Cancel the job").is_visible()
        # The simulator does not wait for hardware.
        assert result(page, "simulator").locator(".label").count() == 1
    column = result(page, "baihua")
    assert column.locator(".step .name").all_inner_texts()[-1] == "done"
    assert re.search(r"\d m?s", column.locator(".step .time").first.inner_text())
    assert not column.get_by_role("button", name="Cancel the job").is_visible()


def test_a_lost_connection_is_resumed_after_the_last_event(page: Any, console: Console) -> None:
    asked: list[str | None] = []

    def lose_once(route: Any) -> None:
        asked.append(route.request.headers.get("last-event-id"))
        if len(asked) > 1:
            return route.continue_()
        job = route.request.url.rsplit("/", 2)[1]
        with console.http as http:
            body = http.get(f"/jobs/{job}").text
        # One event, and then the connection is over.
        return route.fulfill(content_type="text/event-stream", body=f"event: queued\ndata: {body}\nid: 1\n\n")

    with console.faults(HELD):
        page.route("**/jobs/*/events", lose_once)
        run(page, "a connection that is lost")
        page.get_by_text("The connection was lost").wait_for()
        until(lambda: page.wait_for_timeout(50) or len(asked) > 1, 20)
    result(page, "baihua")
    assert asked[:2] == [None, "1"]


def test_an_empty_text_is_not_sent(page: Any, seen: Seen) -> None:
    run(page, "   ")
    assert page.locator("#text-error").inner_text() == "Type a text first."
    assert page.get_by_label("Text", exact=True).get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "text"
    assert page.locator("#simulator .body").count() == 0
    page.get_by_label("Text", exact=True).fill("better")
    assert page.locator("#text-error").inner_text() == ""


def test_an_error_of_the_service_is_readable_and_counts_down(page: Any) -> None:
    problem = {
        "type": "urn:qd:problem:overloaded",
        "title": "Too many texts are waiting",
        "status": 429,
        "detail": f"1024 texts wait {MARKUP}",
    }
    headers = {"Retry-After": "7", "Content-Type": "application/problem+json"}
    page.route(
        "**/classify/*backend=simulator*",
        lambda route: route.fulfill(status=429, headers=headers, body=json.dumps(problem)),
    )
    run(page, "too much")
    said = page.locator("#simulator .problem")
    said.wait_for()
    assert all(part in said.inner_text() for part in (problem["title"], str(problem["detail"]), "429"))
    assert re.search(r"Try again in [1-7]\.\d s", said.inner_text())
    assert said.get_by_role("button", name="Try again").is_visible()
    result(page, "baihua")


def test_wrong_shots_are_refused_by_the_service_in_its_own_words(page: Any) -> None:
    page.get_by_label("Shots on baihua").fill("1000")
    run(page, "odd shots")
    page.locator("#baihua .problem").wait_for()
    assert "The backend does not take this number of shots" in page.locator("#baihua .problem").inner_text()
    result(page, "simulator")


def test_a_service_that_is_gone_is_named_as_such(page: Any) -> None:
    page.route("**/classify/**", lambda route: route.abort())
    run(page, "nobody there")
    page.locator("#simulator .problem").wait_for()
    assert "The service does not answer" in page.locator("#simulator .problem").inner_text()
    page.unroute("**/classify/**")


def test_jobs_are_filtered_and_one_is_cancelled_after_a_question(page: Any, console: Console) -> None:
    with console.faults(HELD), console.http as http:
        body = {"inputs": "to be cancelled"}
        job = http.post("/classify/topic", params={"backend": "baihua"}, json=body).json()["id"]
        row = page.locator(f"tr[data-job='{job}']")
        row.wait_for()  # the list is live
        page.get_by_label("State").select_option("done")
        row.wait_for(state="detached")
        page.get_by_label("State").select_option("queued")
        row.wait_for()
        page.locator("#jobs-task").select_option("emotion")
        row.wait_for(state="detached")
        page.locator("#jobs-task").select_option("topic")
        page.get_by_label("State").select_option("")
        row.get_by_text("held").wait_for()

        cancel = row.get_by_role("button", name=f"Cancel job {job[:8]}")
        cancel.click()
        page.get_by_role("dialog", name="Cancel this job?").wait_for()
        page.keyboard.press("Escape")
        assert http.get(f"/jobs/{job}").json()["status"] == "queued"
        cancel.click()
        page.get_by_role("button", name="Cancel the job").click()
        row.get_by_text("cancelled").wait_for()
        assert http.get(f"/jobs/{job}").json()["status"] == "cancelled"
        assert not cancel.is_visible()


def test_a_jobs_details_have_a_link_of_their_own(page: Any, console: Console, new_page: Callable[..., Any]) -> None:
    text = "details to look at"
    run(page, text)
    column = result(page, "baihua")
    column.get_by_role("link", name=re.compile("Job ")).click()
    details = page.locator("#details")
    details.locator(".label").wait_for()
    assert shown_scores(details) == shown_scores(column)
    link = page.evaluate("location.hash")
    page.keyboard.press("Escape")
    until(lambda: page.evaluate("location.hash") == "")  # a dialog tells that it has closed a moment later
    other = new_page(f"/{link}")
    other.locator("#details .label").wait_for()
    assert shown_scores(other.locator("#details")) == shown_scores(column)


def test_older_jobs_are_on_the_next_page(page: Any, console: Console) -> None:
    with console.faults(HELD), console.http as http:
        path = "/classify/topic?backend=baihua"
        jobs = [http.post(path, json={"inputs": f"page {number}"}).json()["id"] for number in range(13)]
        page.get_by_role("button", name="Refresh").click()
        page.locator(f"tr[data-job='{jobs[-1]}']").wait_for()
        assert page.locator(f"tr[data-job='{jobs[0]}']").count() == 0
        page.get_by_role("button", name="Older").click()
        page.locator(f"tr[data-job='{jobs[0]}']").wait_for()
        page.get_by_role("button", name="Newest").click()
        page.locator(f"tr[data-job='{jobs[-1]}']").wait_for()
        for job in jobs:
            http.delete(f"/jobs/{job}")


def test_latency_is_plotted_by_backend(page: Any) -> None:
    run(page, "how long does it take")
    result(page, "baihua")
    run(page, "how long does it take")
    page.locator(".lane.cached .mark").wait_for(state="attached")
    for lane, least in (("simulator", 2), ("cached", 1), ("job", 1)):
        assert page.locator(f".lane.{lane} .mark").count() >= least
        assert page.locator(f".lane.{lane} .median").count() == 1
    page.locator(".lane.recent .mark").first.wait_for(state="attached")
    assert re.search(
        r"simulator: median [\d.]+ m?s of 2 answers", page.get_by_role("img").last.get_attribute("aria-label")
    )
    # The median is within what the axis spans.
    box, plot = page.locator(".lane.job .median").bounding_box(), page.locator("#latency-plot").bounding_box()
    assert plot["x"] <= box["x"] <= plot["x"] + plot["width"]


def test_the_circuit_shows_symbols_or_angles_and_can_be_kept(page: Any, console: Console, tmp_path: Path) -> None:
    drawing = page.locator("#drawing > svg")
    drawing.wait_for()
    assert "θ0" in drawing.inner_html()
    page.get_by_label("Text", exact=True).fill("an angle for every qubit")
    page.get_by_label("angles for the text").check()
    until(lambda: page.wait_for_timeout(20) or "θ" not in drawing.inner_html(), 20)
    width = drawing.bounding_box()["width"]
    page.get_by_role("button", name="Zoom in").click()
    assert drawing.bounding_box()["width"] > width
    page.locator("#drawing").focus()
    page.keyboard.press("-")
    assert drawing.bounding_box()["width"] == pytest.approx(width)
    with page.expect_download() as download:
        page.get_by_role("button", name="QASM 3").click()
    download.value.save_as(tmp_path / "circuit")
    assert download.value.suggested_filename == "emotion-circuit.qasm3.qasm"
    with console.http as http:
        query = {"text": "an angle for every qubit", "version": "3"}
        assert (tmp_path / "circuit").read_text() == http.get("/tasks/emotion/circuit.qasm", params=query).text


def test_a_key_is_asked_for_and_sent(new_page: Callable[..., Any]) -> None:
    sent: list[str | None] = []
    problem = {"title": "An API key is needed", "status": 401, "detail": "there is no Authorization header"}

    def guard(route: Any) -> None:
        sent.append(route.request.headers.get("authorization"))
        if sent[-1] == "Bearer qd_12345678_secret":
            return route.continue_()
        return route.fulfill(status=401, content_type="application/problem+json", body=json.dumps(problem))

    page = new_page("/docs")
    for pattern in ("**/tasks", "**/classify/**", "**/jobs?*", "**/jobs/*/events"):
        page.route(pattern, guard)
    page.goto(page.url.removesuffix("docs"))
    dialog = page.get_by_role("dialog", name="API key")
    dialog.wait_for()
    assert "there is no Authorization header" in dialog.inner_text()
    field = dialog.get_by_label("Key", exact=True)
    assert field.get_attribute("type") == "password"
    field.fill("qd_12345678_secret")
    page.keyboard.press("Enter")
    page.locator("#task option").first.wait_for(state="attached")
    run(page, "with a key")
    result(page, "baihua")
    assert "qd_12345678_secret" not in page.content()
    page.reload()  # it is kept while the tab is open
    page.locator("#task option").first.wait_for(state="attached")
    assert sent[0] is None
    assert not dialog.is_visible()


def test_a_key_shows_what_its_scopes_open(
    new_page: Callable[..., Any], valkey: Valkey, bundles_dir: Path, tmp_path: Path
) -> None:
    settings = QUICK | {"QD_REDIS_URL": valkey.url, "QD_QUAFU_URL": "http://127.0.0.1:1"}
    command = [*COMMAND, "keys", "create", "a reader", "--scope", "classify"]
    env = environment(bundles_dir, tmp_path, **settings)
    made = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True)
    with serving(bundles_dir, tmp_path, **settings) as (_, url):
        page = new_page(url=url)
        dialog = page.get_by_role("dialog", name="API key")
        dialog.wait_for()
        assert "An API key is needed" in dialog.inner_text()
        dialog.get_by_label("Key", exact=True).fill(made.stdout.strip())
        dialog.get_by_role("button", name="Use key").click()
        page.locator("#task option").first.wait_for(state="attached")
        run(page, "let in")
        result(page, "simulator")
        page.locator("#baihua .problem").get_by_text("The API key does not open this").wait_for()
        page.locator("#switches .problem").get_by_text("The API key does not open this").wait_for()
        assert page.locator("#jobs-problem .problem").count() == 0
        page.get_by_role("button", name="API key set").click()
        dialog.get_by_role("button", name="Forget").click()
        page.locator("#tasks-problem .problem").get_by_text("An API key is needed").wait_for()


def test_a_key_that_may_switch_but_not_list_tasks_is_told_so_where_it_would_switch(
    new_page: Callable[..., Any], valkey: Valkey, bundles_dir: Path, tmp_path: Path
) -> None:
    settings = QUICK | {"QD_REDIS_URL": valkey.url, "QD_QUAFU_URL": "http://127.0.0.1:1"}
    command = [*COMMAND, "keys", "create", "an operator", "--scope", "admin"]
    env = environment(bundles_dir, tmp_path, **settings)
    made = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True)
    with serving(bundles_dir, tmp_path, **settings) as (_, url):
        page = new_page(url=url)
        dialog = page.get_by_role("dialog", name="API key")
        dialog.get_by_label("Key", exact=True).fill(made.stdout.strip())
        dialog.get_by_role("button", name="Use key").click()
        page.locator("#switches .problem").get_by_text("The API key does not open this").wait_for()
        assert "Listing tasks needs a key with the scope classify." in page.locator("#switches").inner_text()
        # It is said aloud once, by the part that was asked for.
        assert page.locator("#switches").get_by_role("alert").count() == 0


def test_an_operator_switches_a_task(page: Any, console: Console) -> None:
    form = page.get_by_role("form", name="Backend of emotion")
    backend, shadow = form.get_by_label("Default backend"), form.get_by_label("Shadow, %")
    form.get_by_text("from the settings").wait_for()
    path = "/admin/tasks/emotion/backend"
    with console.http as http:
        try:
            shadow.fill("12.5")
            form.get_by_role("button", name="Save").click()
            form.get_by_text("by open").wait_for()
            assert (http.get(path).json()["backend"], http.get(path).json()["shadow_percent"]) == ("simulator", 12.5)
            backend.select_option("baihua")
            assert shadow.is_disabled()
            form.get_by_role("button", name="Save").click()
            until(lambda: page.wait_for_timeout(20) or http.get(path).json()["backend"] == "baihua", 20)
            assert http.get(path).json()["shadow_percent"] == 0
            backend.select_option("simulator")
            shadow.fill("101")
            form.get_by_role("button", name="Save").click()
            form.locator(".problem").wait_for()
            assert "expected at most 100" in form.locator(".problem").inner_text()
            assert http.get(path).json()["backend"] == "baihua"
        finally:
            http.put(path, json={"backend": "simulator"})


def test_who_may_not_switch_is_told_why(new_page: Callable[..., Any]) -> None:
    problem = {"title": "The API key does not open this", "status": 403, "detail": "it lacks the scope admin"}
    page = new_page("/docs")
    page.route(
        "**/admin/tasks/*/backend",
        lambda route: route.fulfill(status=403, content_type="application/problem+json", body=json.dumps(problem)),
    )
    page.goto(page.url.removesuffix("docs"))
    page.locator("#switches .problem").wait_for()
    assert "it lacks the scope admin" in page.locator("#switches").inner_text()
    assert not page.get_by_role("dialog", name="API key").is_visible()
    page.locator("#switches").get_by_role("button", name="Enter an API key").click()
    assert page.get_by_role("dialog", name="API key").is_visible()


def test_without_hardware_the_simulator_still_answers(
    new_page: Callable[..., Any], bundles_dir: Path, tmp_path: Path
) -> None:
    with serving(bundles_dir, tmp_path) as (_, url):
        page = new_page(url=url)
        page.locator("#task option").first.wait_for(state="attached")
        run(page, "no chip here")
        result(page, "simulator")
        page.locator("#baihua .absent").wait_for()
        assert "The backend is not configured here" in page.locator("#baihua").inner_text()
        assert page.locator("#baihua .problem").count() == 0
        assert "there are no jobs" in page.locator("#jobs-problem").inner_text()
