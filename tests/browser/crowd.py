"""How the dashboard feels while a thousand jobs are submitted and wait. `python -m tests.browser.crowd`."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import expect

from tests.browser.driver import Driver, main

TURNS = 12
WATCH = """
window.long = [];
new PerformanceObserver(list => window.long.push(...list.getEntries().map(one => one.duration))).observe({type: "longtask"});
"""
CLICKED = """href => new Promise(resolve => {
  const begun = performance.now();
  document.querySelector(`#nav a[href="${href}"]`).click();
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begun)));
})"""
FILLED = """([href, wanted]) => new Promise(resolve => {
  const begun = performance.now();
  document.querySelector(`#nav a[href="${href}"]`).click();
  const look = () => document.querySelectorAll(wanted).length ? resolve(performance.now() - begun) : setTimeout(look, 4);
  setTimeout(look);
})"""


HIDE = """hidden => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def hidden(d: Driver) -> int:
    """How often the page asks while nobody looks at it, in longer than all its rhythms; it goes on when somebody does."""
    d.go("/")
    expect(d.page.locator(".tile").first).to_be_visible()
    d.page.evaluate(HIDE, True)
    d.page.wait_for_timeout(1000)  # what was under way
    asked: list[str] = []
    d.page.on("request", lambda request: asked.append(request.url))
    d.page.wait_for_timeout(11000)
    count = len(asked)
    with d.page.expect_request("**/v1/stats"):
        d.page.evaluate(HIDE, False)
    return count


def walk(d: Driver, settings: dict[str, Any]) -> None:
    """Sign in, go to and fro while they are submitted, and turn the pages of the list."""
    d.page.goto(d.url)
    d.page.evaluate(WATCH)
    d.page.get_by_label("Token").fill(settings["token"])
    d.page.keyboard.press("Enter")
    expect(d.page.locator(".tile").first).to_be_visible()
    d.facts["clicked_ms"] = [d.page.evaluate(CLICKED, href) for _ in range(TURNS) for href in ("#/jobs", "#/")]
    d.facts["filled_ms"] = [d.page.evaluate(FILLED, [href, wanted]) for _ in range(TURNS)
                            for href, wanted in (("#/jobs", "main tbody tr"), ("#/", "main .tile"))]
    d.go("/")
    d.wait("() => /^1.?050 pending$/.test(document.querySelector('.tile small').textContent)")
    d.facts["pending"] = d.text(".tile small")
    d.go("/jobs?state=PENDING")
    expect(d.page.locator("main tbody tr")).to_have_count(50)
    seen = set(d.page.locator("main tbody a").evaluate_all("links => links.map(link => link.href)"))
    for page in range(1, 4):
        d.page.get_by_role("button", name="Older").click()
        d.see(f"{page * 50 + 1} to {page * 50 + 50}")
        more = set(d.page.locator("main tbody a").evaluate_all("links => links.map(link => link.href)"))
        assert not more & seen and len(more) == 50
        seen |= more
    d.page.get_by_role("button", name="Newer").click()
    d.see("101 to 150")
    d.facts["asked_while_hidden"] = hidden(d)
    d.facts["long_ms"] = d.page.evaluate("window.long")
    d.facts["nodes"] = d.page.evaluate("document.querySelectorAll('*').length")
    d.shot("crowd")


if __name__ == "__main__":
    main(walk)
