"""A headless Chromium on a dashboard: starts it, watches for what must not happen, and tells how each step went."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, Response, expect, sync_playwright

TIMEOUT_MS = 15000
HURRY_MS = 1000  # once a step has failed: others may hang on it
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
  event => window.violations.push(event.violatedDirective + " " + event.blockedURI));
"""


@dataclass
class Seen:
    """What happened in the page that nobody asked for."""

    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)  # answers of 400 and more
    violations: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Note what this page does."""
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", self._asked)
        page.on("response", self._answered)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:  # told by `refused`
            self.console.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.hosts.add(urlsplit(request.url).netloc)

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.refused.append(f"{response.status} {response.request.method} {urlsplit(response.url).path}")

    def json(self) -> dict[str, Any]:
        return {**vars(self), "hosts": sorted(self.hosts)}


@dataclass
class Driver:
    """A page, and the steps taken on it: None for one that went well, else what went wrong."""

    page: Page
    context: BrowserContext
    url: str
    shots: Path | None
    seen: Seen = field(default_factory=Seen)
    steps: dict[str, str | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def step(self, name: str, work: Callable[[], object]) -> None:
        """Do it, and note how it went."""
        begun = time.monotonic()
        try:
            work()
            self.steps[name] = None
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{frame.name}:{frame.lineno}" for frame in frames if "browser" in frame.filename]
            self.steps[name] = f"{'/'.join(where)}: {str(error)[:500]}\nshown: {self.text('main')[:1000]}"
            self.shot(f"failed-{name}")
            self.context.set_default_timeout(HURRY_MS)
            expect.set_options(timeout=HURRY_MS)
        self.seconds[name] = round(time.monotonic() - begun, 2)

    def go(self, path: str) -> None:
        """Another page of the dashboard, within the same document."""
        self.page.evaluate("path => location.hash = path", f"#{path}")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def wait(self, condition: str, argument: object = None) -> Any:
        """Until this JavaScript is true; its value."""
        return self.page.wait_for_function(condition, arg=argument).json_value()

    def see(self, text: str, within: str = "body") -> None:
        """Until this text is shown."""
        self.page.locator(within).get_by_text(text).first.wait_for()

    def shot(self, name: str) -> None:
        if self.shots is not None:
            self.page.screenshot(path=self.shots / f"{name}.png", full_page=True)

    def collect(self) -> None:
        """Note what the page itself saw; before the document goes."""
        self.seen.violations += self.page.evaluate("window.violations.splice(0)")


@contextmanager
def driver(settings: dict[str, Any]) -> Iterator[Driver]:
    """A browser on the settings' `url`; `chromium` is its program, `shots` a folder for pictures or null."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=settings["chromium"], args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        context.add_init_script(WATCH)
        context.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        page = context.new_page()
        shots = settings.get("shots")
        made = Driver(page, context, settings["url"], Path(shots) if shots else None)
        made.seen.watch(page)
        try:
            yield made
        finally:
            browser.close()


def main(walk: Callable[[Driver, dict[str, Any]], None]) -> None:
    """Settings as JSON on standard input; what happened as JSON on standard output."""
    settings = json.load(sys.stdin)
    with driver(settings) as made:
        walk(made, settings)
        made.collect()
        told = {"steps": made.steps, "seconds": made.seconds, "seen": made.seen.json(), "facts": made.facts}
    json.dump(told, sys.stdout, default=repr)
