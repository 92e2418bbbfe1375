"""Pictures of the console of a running service, with one text run on both backends.

    python -m benchmarks.screenshots URL OUT_DIR [--text TEXT] [--task TASK] [--key KEY]

Writes console-light.png, console-dark.png and console-phone.png. Needs Debian's Chromium, or another at CHROMIUM.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
_TEXT = "my train is late again and i am so tired of this"
_DESKTOP = (1280, 900)
_PHONE = (360, 740)
_PICTURES: tuple[tuple[str, Literal["light", "dark"], tuple[int, int]], ...] = (
    ("console-light", "light", _DESKTOP),
    ("console-dark", "dark", _DESKTOP),
    ("console-phone", "light", _PHONE),
)
_WAIT_MILLISECONDS = 180_000.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="of the service")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--text", default=_TEXT, help="what to classify")
    parser.add_argument("--task", help="the task (the first that is served)")
    parser.add_argument("--key", help="API key, where one is needed")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, scheme, size in _PICTURES:
            path = options.out / f"{name}.png"
            _picture(browser, options.url, path, scheme, size, options.text, options.task, options.key)
            sys.stdout.write(f"{path}\n")
        browser.close()
    return 0


def _picture(
    browser: Browser,
    url: str,
    path: Path,
    scheme: Literal["light", "dark"],
    size: tuple[int, int],
    text: str,
    task: str | None,
    key: str | None,
) -> None:
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
    )
    if key is not None:  # where the console keeps it
        page.add_init_script(f"sessionStorage.setItem('qd-key', {json.dumps(key)})")
    page.goto(url)
    page.locator("#task option").first.wait_for(state="attached")
    if task is not None:
        page.get_by_label("Task").first.select_option(task)
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Run on both").click()
    for backend in ("simulator", "baihua"):
        page.locator(f"#{backend}:not([aria-busy]) .label").wait_for(timeout=_WAIT_MILLISECONDS)
    page.locator("#drawing > svg").wait_for()
    page.evaluate("scrollTo(0, 0)")  # the header sticks to the top of what is seen
    page.screenshot(path=path, full_page=True)
    page.close()


if __name__ == "__main__":
    raise SystemExit(main())
