"""A walk through the dashboard, as somebody would use it. `python -m tests.browser.dashboard` with settings on its input."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

from playwright.sync_api import expect

from tests.browser.driver import Driver, main

BROKEN = "kind: preset\nname: web-ours\npipeline: web-mp4\nparams: {width: 1280, heigth: 720}\n"
HOSTILE = "<img src=x onerror=alert(1)>"
PAGES = {"/": "main .u-over", "/jobs": "main tbody tr", "/submit": "#recipe", "/recipes": "main tbody tr", "/check": "#yaml",
         "/pipelines/web-mp4": "pre.yaml", "/jobs/LIVE": ".command"}  # and what is there once a page is whole


def sign_in(d: Driver, token: str) -> None:
    d.page.goto(d.url)
    d.page.get_by_label("Token").fill("not-a-token")
    d.page.get_by_role("button", name="Sign in").click()
    d.see("This is not a token of this server.")
    d.page.get_by_label("Token").fill(token)
    d.page.keyboard.press("Enter")
    expect(d.page.get_by_role("heading", name="Overview")).to_be_visible()
    expect(d.page.locator(".tile", has_text="Slots in use")).to_be_visible()


def refuse_a_bad_form(d: Driver, media: str) -> None:
    d.page.get_by_role("link", name="Submit", exact=True).click()
    d.page.get_by_label("Source", exact=True).fill(f"file://{media}/live.mov")
    d.page.get_by_label("Destination").fill(f"file://{media}/live.mp4")
    d.page.get_by_label("Preset or pipeline").select_option("pipeline slow")
    d.page.get_by_label("width").fill("3")
    d.page.get_by_role("button", name="Submit", exact=True).click()
    expect(d.page.get_by_label("width")).to_have_attribute("aria-invalid", "true")
    expect(d.page.get_by_label("width")).to_be_focused()
    assert "16" in d.text(".fault"), d.text(".fault")


def explain(d: Driver) -> None:
    d.page.get_by_label("width").fill("320")
    d.page.get_by_label("Labels").fill(f"album=2026\n{HOSTILE}=<b>bold</b>")
    d.page.get_by_role("button", name="Explain").click()
    d.see("What would run")
    assert any("libx264" in command and "scale=320:-2" in command for command in d.page.locator("pre").all_inner_texts())


def submit_and_watch(d: Driver) -> None:
    d.page.get_by_role("button", name="Submit", exact=True).click()
    expect(d.page.locator(".head .badge")).to_have_text("encoding")
    d.facts["live"] = d.page.url.rpartition("/")[2]
    d.wait("""() => { const done = document.querySelector('progress').value;  // fetched, and no stage behind the encode begun
                      return done > 0.1 && done < 0.84; }""")
    d.shot("running")
    expect(d.page.locator(".head .badge")).to_have_text("finished")
    assert d.text(".bar span") == "100 %"


def read_the_job(d: Driver) -> None:
    d.see("Commands")
    assert "libx264" in d.page.locator("pre").all_inner_texts()[1]
    probes = d.page.locator("table.probe")
    expect(probes.locator("thead th")).to_have_text(["Property", "Source", "live.mp4"])
    assert probes.locator("tr", has_text="Video").inner_text().count("h264") == 2
    expect(d.page.locator(".timeline li").first).to_contain_text("Attempt 1")
    d.page.locator(".command").nth(1).get_by_role("button", name="Copy").click()
    copied = d.page.evaluate("navigator.clipboard.readText()")
    assert copied == d.page.locator(".command pre").nth(1).inner_text(), copied
    d.shot("job")


def play(d: Driver) -> None:
    with d.page.expect_response(lambda response: "/v1/media" in response.url) as answered:
        d.page.get_by_role("button", name="Play").click()
    d.facts["media_status"] = answered.value.status
    d.facts["can_play"] = d.page.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.42E01E\"')")
    if d.facts["can_play"]:
        d.wait("() => document.querySelector('video').currentTime > 0.2")
        d.facts["size"] = d.page.evaluate("(v => [v.videoWidth, v.videoHeight])(document.querySelector('video'))")


def take_home(d: Driver) -> None:
    with d.page.expect_download() as coming:
        d.page.get_by_role("button", name="Download").click()
    d.facts["download"] = {"name": coming.value.suggested_filename, "bytes": coming.value.path().stat().st_size}


def find_the_failed_and_retry(d: Driver) -> None:
    d.page.get_by_role("link", name="Overview").click()
    d.page.get_by_role("link", name="input.not_media").click()
    expect(d.page.locator("main tbody tr")).to_have_count(1)
    expect(d.page.get_by_label("State")).to_have_value("ERROR")
    d.page.get_by_label("Error code").fill("source.not_found")
    d.page.keyboard.press("Enter")
    d.see("No job is like that.")
    d.page.get_by_label("Error code").fill("input.not_media")
    d.page.keyboard.press("Enter")
    d.page.get_by_role("link", name="broken.mp4").click()
    d.see("is not a media file")
    d.page.get_by_role("button", name="Retry").click()
    d.wait("() => document.querySelectorAll('ol[aria-label=Attempts] li').length === 2")
    expect(d.page.locator(".head .badge")).to_have_text("error")
    d.shot("failed")


def cancel(d: Driver, job: str) -> None:
    d.go(f"/jobs/{job}")
    d.page.get_by_role("button", name="Cancel").click()
    d.page.keyboard.press("Escape")
    expect(d.page.get_by_role("dialog")).to_have_count(0)
    d.page.get_by_role("button", name="Cancel").click()
    d.page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(d.page.locator(".head .badge")).to_have_text("cancelled")
    expect(d.page.get_by_role("button", name="Retry")).to_be_visible()


def check_yaml(d: Driver) -> None:
    d.go("/recipes")
    d.page.get_by_role("link", name="Check YAML").click()
    d.page.get_by_label("A preset or a pipeline").fill(BROKEN)
    d.page.get_by_role("button", name="Check").click()
    line = d.page.get_by_role("button", name="Line 4, column")
    line.click()
    d.facts["fault"] = d.page.locator(".box.bad").first.inner_text()
    selected = d.page.evaluate("(t => t.value.slice(t.selectionStart, t.selectionEnd))(document.querySelector('#yaml'))")
    assert "heigth" in selected, selected
    d.shot("check")
    d.page.get_by_label("A preset or a pipeline").fill(BROKEN.replace("heigth", "height"))
    d.page.get_by_role("button", name="Check").click()
    d.see("web-ours is right")
    d.go("/recipes")
    expect(d.page.get_by_role("link", name="web-480p")).to_be_visible()
    assert d.page.get_by_text("web-ours").count() == 0  # nothing was stored
    d.page.get_by_role("link", name="web-480p").click()
    expect(d.page.locator("pre.yaml")).to_contain_text("kind: preset")


def pause_and_resume(d: Driver) -> None:
    d.go("/")
    d.page.get_by_role("button", name="Pause").click()
    d.page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    expect(d.page.locator("#banner")).to_contain_text("Paused")
    d.shot("paused")
    d.page.get_by_role("button", name="Resume").click()
    expect(d.page.locator("#banner")).to_be_empty()


def hostile_names(d: Driver) -> None:
    d.go("/jobs")
    expect(d.page.get_by_role("link", name=f"{HOSTILE}.mov")).to_be_visible()
    d.see(f"{HOSTILE}=<b>bold</b>")
    assert d.page.evaluate("document.querySelectorAll('main img, main script, main b').length") == 0
    d.page.get_by_role("link", name=f"{HOSTILE}.mov").click()
    expect(d.page.get_by_role("heading", name=f"{HOSTILE}.mov")).to_be_visible()
    assert d.page.evaluate("document.querySelectorAll('main img, main script, main b').length") == 0


def visit(d: Driver) -> Iterator[str]:
    """Each page in turn, once it is whole."""
    for path, whole in PAGES.items():
        d.go(path.replace("LIVE", d.facts["live"]))
        d.page.locator(whole).first.wait_for()
        yield path


def narrow(d: Driver) -> None:
    d.page.set_viewport_size({"width": 320, "height": 640})
    wide = {}
    for path in visit(d):
        width = d.page.evaluate("document.documentElement.scrollWidth")
        if width > 320:
            wide[path] = width
        d.shot(f"phone{path.replace('/', '-')}")
    d.page.set_viewport_size({"width": 1280, "height": 900})
    assert wide == {}, wide


def dark(d: Driver) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = d.page.evaluate(colour)
    d.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    now = d.page.evaluate(colour)
    d.go("/")
    expect(d.page.locator(".u-over")).to_be_visible()
    d.shot("dark")
    d.page.emulate_media(color_scheme="light", reduced_motion="reduce")
    brightness = [sum(int(part) for part in text[4:-1].split(",")) for text in (light, now)]
    assert brightness[0] > 600 and brightness[1] < 120, (light, now)


def by_keyboard(d: Driver) -> None:
    """From the top of the page to a job and back, by Tab and Enter alone, the focus always to be seen."""
    d.go("/jobs")
    d.page.get_by_role("link", name="live.mov").first.wait_for()
    d.collect()
    d.page.reload()
    d.page.get_by_role("link", name="live.mov").first.wait_for()
    names = tab_until(d, "Skip to content")
    assert len(names) == 1, names
    d.page.keyboard.press("Enter")
    assert d.page.evaluate("document.activeElement.id") == "main"
    tab_until(d, "live.mov")
    d.page.keyboard.press("Enter")
    expect(d.page.get_by_role("heading", name="live.mov")).to_be_visible()
    assert d.page.evaluate("document.activeElement.id") == "main"
    tab_until(d, "Play")


def tab_until(d: Driver, name: str) -> list[str]:
    names = []
    for _ in range(60):
        d.page.keyboard.press("Tab")
        told = d.page.evaluate("""(() => { const e = document.activeElement, s = getComputedStyle(e);
            return {name: (e.innerText || e.ariaLabel || e.id || "").trim(), outline: s.outlineStyle,
                    width: parseFloat(s.outlineWidth), high: e.getBoundingClientRect().height}; })()""")
        names.append(told["name"])
        assert told["outline"] != "none" and told["width"] >= 2 and told["high"] > 0, told
        if told["name"].startswith(name):
            return names
    raise AssertionError(f"{name} is not reached: {names}")


def labelled(d: Driver) -> None:
    """Every control has a name, every table heads with a scope, every page one h1."""
    for path in visit(d):
        wrong = d.page.evaluate("""[
          ...[...document.querySelectorAll("main input, main select, main textarea")].filter(e => !e.labels.length)
            .map(e => e.outerHTML),
          ...[...document.querySelectorAll("button, main a")].filter(e => !(e.innerText || e.ariaLabel)).map(e => e.outerHTML),
          ...[...document.querySelectorAll("main th:not([scope])")].map(e => e.outerHTML),
          ...(document.querySelectorAll("h1").length === 1 ? [] : ["h1"])]""")
        assert wrong == [], (path, wrong)


def with_less(d: Driver, token: str) -> None:
    """A token that may only read sees no more than that; one that is revoked meanwhile is asked for again."""
    made = api(d, token, "POST", "/v1/tokens", {"name": "reader", "scopes": ["read"]})
    d.page.get_by_role("button", name="Sign out").click()
    d.page.get_by_label("Token").fill(made["token"])
    d.page.keyboard.press("Enter")
    expect(d.page.get_by_role("heading", name="live.mov")).to_be_visible()  # where one was
    d.go("/")
    expect(d.page.locator(".tile", has_text="Oldest pending")).to_be_visible()
    assert d.page.locator("#nav a").all_inner_texts() == ["Overview", "Jobs", "Presets"]
    assert d.page.get_by_role("button").all_inner_texts() == ["Sign out"]
    d.go(f"/jobs/{d.facts['live']}")
    expect(d.page.get_by_role("button", name="Play")).to_be_visible()
    assert d.page.get_by_text("Commands").count() == 0
    api(d, token, "DELETE", f"/v1/tokens/{made['id']}")
    d.go("/jobs")
    expect(d.page.get_by_role("heading", name="Sign in")).to_be_visible()
    d.see("This is not a token of this server.")
    d.shot("signed-out")
    assert d.page.evaluate("sessionStorage.length") == 0


def api(d: Driver, token: str, method: str, path: str, body: object = None) -> Any:
    """A call of somebody else's, past the browser."""
    request = urllib.request.Request(d.url + path, None if body is None else json.dumps(body).encode(), method=method,
                                     headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read()
        return json.loads(text) if text else None


def walk(d: Driver, settings: dict[str, Any]) -> None:
    """All steps, in an order in which each leaves what the next needs."""
    d.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=d.url)
    token, media = settings["token"], settings["media"]
    for work, *more in (
            (sign_in, token), (refuse_a_bad_form, media), (explain,), (submit_and_watch,), (read_the_job,), (play,),
            (take_home,), (find_the_failed_and_retry,), (cancel, settings["long"]), (check_yaml,), (pause_and_resume,),
            (hostile_names,), (labelled,), (narrow,), (dark,), (by_keyboard,), (with_less, token)):
        d.step(work.__name__, partial(work, d, *more))


if __name__ == "__main__":
    main(walk)
