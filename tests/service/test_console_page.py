"""The console as a page: keyboard, themes, a phone, and what the browser must not do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from browsing import MARKUP, Console, Seen, result, run, shown_scores
from needs import needs_chromium
from processes import until

pytestmark = needs_chromium

PHONE = {"width": 360, "height": 740}
# Of WCAG 2.2, for text that is not large.
AA = 4.5

# One of everything that is not on the page at the moment, so that its colours are compared too.
SAMPLES = """() => {
  const add = (html, parent) => {
    const made = new DOMParser().parseFromString(html, "text/html").body.firstChild;
    parent.append(made);
  };
  const panel = document.querySelector("#jobs .panel");
  for (const kind of ["", "warn", "good", "done", "failed", "cancelled", "queued", "running", "submitted"])
    add(`<span class="badge ${kind}">badge ${kind}</span>`, panel);
  add('<div class="held"><strong>held</strong> <span class="badge warn">held</span><p>why</p></div>', panel);
  add('<div class="absent"><strong>absent</strong><p class="hint">why</p></div>', panel);
  add('<p class="field-error">an error of a field</p>', panel);
  add('<button class="danger">danger</button>', panel);
  add('<li class="step ahead"><span class="name">ahead</span></li>', panel);
  add('<li class="step" aria-current="step"><span class="name">now</span></li>', panel);
}"""
# The contrast of every element with text of its own against the first ground behind it, by WCAG's formula.
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = channels(colour).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  for (const element of document.body.querySelectorAll("*")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!hasText || element.closest("svg, noscript, dialog, .unseen") || element.disabled) continue;
    const style = getComputedStyle(element);
    const [dark, light] = [luminance(style.color), luminance(ground(element))].sort((a, b) => a - b);
    const name = `${element.tagName}.${element.className} ${element.textContent.trim().slice(0, 30)}`;
    found[name] = (light + 0.05) / (dark + 0.05);
  }
  return found;
}"""


def test_the_keyboard_alone_is_enough(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("typed and run without a mouse")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "task"
    page.keyboard.press("ArrowDown")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Control+Enter")
    assert len(shown_scores(result(page, "simulator"))) == 3
    assert page.locator("#asked").inner_text().startswith("topic")
    page.get_by_role("button", name="API key").focus()
    page.keyboard.press("Enter")
    assert page.locator("#key-dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#key-dialog").is_visible()
    assert page.evaluate("document.activeElement.id") == "key-open"


def test_the_focus_stays_on_save_while_a_switch_is_saved_and_after(page: Any, console: Console) -> None:
    form = page.get_by_role("form", name="Backend of emotion")
    save = form.get_by_role("button", name="Save")
    sent: list[Any] = []

    def hold(route: Any) -> None:
        sent.append(route) if route.request.method == "PUT" else route.continue_()

    page.route("**/admin/tasks/emotion/backend", hold)
    try:
        form.get_by_label("Default backend").select_option("baihua")
        save.focus()
        page.keyboard.press("Enter")
        until(lambda: page.wait_for_timeout(20) or sent, 20)
        assert save.get_attribute("aria-disabled") == "true"
        page.keyboard.press("Enter")
        page.wait_for_timeout(100)
        assert len(sent) == 1
        sent[0].continue_()
        form.get_by_text("Saved.").wait_for()
        until(lambda: page.wait_for_timeout(20) or save.get_attribute("aria-disabled") is None, 20)
        assert save.evaluate("save => save === document.activeElement")
    finally:
        with console.http as http:
            http.put("/admin/tasks/emotion/backend", json={"backend": "simulator"})


@pytest.mark.parametrize("leave", ["Enter", "Escape"])
def test_the_focus_is_on_the_text_after_a_key_was_asked_for(new_page: Callable[..., Any], leave: str) -> None:
    problem = json.dumps({"title": "An API key is needed", "status": 401, "detail": "there is none"})

    def guard(route: Any) -> None:
        if route.request.headers.get("authorization"):
            return route.continue_()
        return route.fulfill(status=401, content_type="application/problem+json", body=problem)

    page = new_page("/docs")
    page.route("**/tasks", guard)
    page.goto(page.url.removesuffix("docs"))
    dialog = page.get_by_role("dialog", name="API key")
    dialog.wait_for()
    page.keyboard.type("qd_12345678_secret")
    page.keyboard.press(leave)
    dialog.wait_for(state="hidden")
    until(lambda: page.wait_for_timeout(20) or page.evaluate("document.activeElement.id") == "text", 20)


def test_every_control_has_a_name(page: Any) -> None:
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, select, input, textarea, a")].filter((e) =>
             !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim())).map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_a_text_is_never_taken_for_markup(page: Any) -> None:
    run(page, MARKUP)
    result(page, "baihua")
    assert MARKUP in page.locator("#asked").inner_text()
    page.get_by_label("angles for the text").check()
    page.locator("#drawing svg").wait_for()
    assert page.locator("img").count() == 0


def test_the_policy_stops_markup_that_the_page_would_have_let_in(page: Any, seen: Seen) -> None:
    page.evaluate("markup => document.body.insertAdjacentHTML('beforeend', markup)", MARKUP.replace("x ", "/livez "))
    until(lambda: page.wait_for_timeout(20) or any("Content Security Policy" in line for line in seen.wrong), 10)
    assert [line for line in seen.wrong if line.startswith("dialog")] == []
    seen.wrong.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_themes(new_page: Callable[..., Any], console: Console, scheme: str) -> None:
    page = new_page(color_scheme=scheme)
    page.get_by_label("Shots on baihua").fill("1")
    run(page, "contrast")
    page.locator("#baihua .problem").wait_for()
    page.get_by_label("Shots on baihua").fill("")
    page.evaluate(SAMPLES)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 40
    assert {name: ratio for name, ratio in found.items() if ratio < AA} == {}


def test_light_and_dark_differ_and_the_toggle_wins(new_page: Callable[..., Any]) -> None:
    def ground(page: Any) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, page = new_page(color_scheme="light"), new_page(color_scheme="dark")
    dark = ground(page)
    assert ground(light) != dark
    page.get_by_role("button", name="Theme: auto").click()
    assert ground(page) == ground(light)
    page.get_by_role("button", name="Theme: light").click()
    assert ground(page) == dark
    page.reload()
    assert page.get_by_role("button", name="Theme: dark").is_visible()


def test_nothing_overflows_on_a_phone(new_page: Callable[..., Any], console: Console) -> None:
    page = new_page(viewport=PHONE, has_touch=True)
    run(page, "a phone is narrow " * 30 + "x" * 400)
    result(page, "baihua")
    page.locator(".lane.recent .mark").first.wait_for(state="attached")
    page.locator("#jobs-rows tr").first.wait_for()
    page.locator("#drawing > svg").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator("#jobs-rows a").first.click()
    page.locator("#details .facts").first.wait_for()
    box = page.locator("#details").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    assert page.evaluate(
        "document.querySelector('#details').scrollWidth <= document.querySelector('#details').clientWidth"
    )


def test_files_are_served_with_a_strict_policy_and_revalidated(console: Console) -> None:
    with console.http as http:
        page = http.get("/")
        names = re.findall(r'"(/console/[^"]+)"', page.text)
        assert len(names) >= 4
        for answer in (page, *map(http.get, names)):
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] == "no-cache"
            again = http.get(str(answer.url), headers={"If-None-Match": f"W/{answer.headers['etag']}"})
            assert (again.status_code, again.content) == (304, b"")
        assert http.head("/").status_code == 200
        for path in ("/console/none.js", "/console/..%2Fapp.py", "/console/"):
            assert http.get(path).status_code == 404
