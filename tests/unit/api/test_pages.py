"""The dashboard's page and its files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nommerd
from nommerd.api.pages import dashboard_files
from tests.unit.api.calls import Api

OURS = Path(nommerd.__file__).parent / "dashboard"
FORBIDDEN = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "srcdoc")


def test_the_dashboard_may_run_its_own_files_and_nothing_else(api: Api) -> None:
    answer = api.call("GET", "/", token=None)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/html")
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy.pop("img-src") == "'self' data:"
    assert {policy.pop(name) for name in ("script-src", "style-src", "connect-src", "media-src", "font-src")} == {"'self'"}
    assert policy == dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_in_the_page_is_inline_or_from_elsewhere(api: Api) -> None:
    page = api.call("GET", "/", token=None).body.decode()
    assert not re.search(r"<style|\son[a-z]+=|\sstyle=|<script(?![^>]*\ssrc=)|https?://", page)
    named = re.findall(r'(?:src|href)="(/[^"]+)"', page)
    assert {"/static/main.js", "/static/app.css"} <= set(named)
    assert [path for path in named if api.call("GET", path, token=None).status != 200] == []


@pytest.mark.parametrize("path", sorted(OURS.glob("static/*.js")), ids=lambda path: path.name)
def test_a_script_of_ours_makes_no_markup_of_texts_and_imports_only_what_is_served(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [word for word in FORBIDDEN if word in text] == []
    assert set(re.findall(r'from "\./([^"]+)"', text)) <= dashboard_files().keys()
    assert re.findall(r'\bfrom "(?!\./)', text) == []


def test_a_file_that_the_browser_has_is_not_sent_again(api: Api) -> None:
    first = api.call("GET", "/static/main.js", token=None)
    assert first.status == 200 and first.headers["content-type"] == "text/javascript; charset=utf-8"
    assert first.headers["cache-control"] == "no-cache"
    again = api.call("GET", "/static/main.js", token=None, HTTP_IF_NONE_MATCH=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["index.html", "README.md", "../api/app.py", "..%2fapi%2fapp.py", "%2e%2e/app.py", "a/b", "",
                                  ".", "../../setup.py", "main.js/", "uPlot.LICENSE", "nul\0byte"])
def test_a_name_chooses_among_the_dashboards_files_and_reaches_nothing_else(api: Api, name: str) -> None:
    answer = api.call("GET", f"/static/{name}", token=None)
    assert (answer.status, answer.codes) == (404, ["request.unknown_path"])


def test_what_is_not_ours_has_its_licence_beside_it() -> None:
    vendored = sorted(path.name for path in (OURS / "vendor").iterdir())
    assert vendored == ["README.md", "uPlot.LICENSE", "uPlot.iife.min.js", "uPlot.min.css"]
    assert "Permission is hereby granted" in (OURS / "vendor" / "uPlot.LICENSE").read_text()
