from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import gevent
import pytest
from gevent.event import Event

from nommerd import tokens as module
from nommerd.api.access import Scope
from nommerd.logs import redact
from nommerd.store.base import Document, StoreUnavailable
from nommerd.store.memory import MemoryStore
from nommerd.tokens import FRESH_SECONDS, TokenExpired, Tokens, TooManyTokens, UnknownToken, new_text, well_formed

BEGUN = datetime(2026, 1, 31, 9, tzinfo=UTC)


class Watched(MemoryStore):
    """Counts what it is asked about tokens; `before` runs in the middle of each question."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.listed = 0
        self.before: Callable[[], None] = lambda: None

    def document(self, kind: str, scope: str, name: str) -> Document | None:
        self.asked += 1
        found = super().document(kind, scope, name)
        self.before()
        return found

    def documents(self, kind: str, scope: str) -> Sequence[Document]:
        self.listed += 1
        found = super().documents(kind, scope)
        self.before()
        return found


class Scene:
    """A store, and feeders' views of it on one clock."""

    def __init__(self) -> None:
        self.store = Watched()
        self.seconds = 1000.0
        self.here, self.elsewhere = self.feeder(), self.feeder()

    def feeder(self) -> Tokens:
        return Tokens(self.store, clock=lambda: self.seconds, now=lambda: BEGUN + timedelta(seconds=self.seconds - 1000))

    def make(self, project: str = "default", *scopes: Scope, days: float | None = None) -> tuple[str, str]:
        """The id and the text of a new token."""
        token, text = self.here.make("ci", project, scopes or (Scope.READ,), days)
        return token.id, text.reveal()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_token_is_recognisable_long_and_checks_itself() -> None:
    texts = {new_text() for _ in range(200)}
    assert len(texts) == 200
    for text in texts:
        assert text.startswith("nommerd_") and text.isascii() and text.removeprefix("nommerd_").isalnum() and len(text) == 44
        assert well_formed(text)
        assert text not in redact(f"somebody wrote {text} here")


def test_no_slip_of_one_character_is_well_formed() -> None:
    text = new_text()
    for place in range(len(text)):
        for character in "aZ0_é":
            assert text[place] == character or not well_formed(text[:place] + character + text[place + 1:])
    for wrong in ("", "nommerd_", text[:-1], text + "a", text.upper(), "a" * 44, "nommerd_" + "\udcff" * 36,
                  text.replace("_", "-")):
        assert not well_formed(wrong)


def test_what_is_made_is_found_with_its_project_and_scopes(scene: Scene) -> None:
    _, text = scene.make("studio-a", Scope.SUBMIT, Scope.READ)
    for feeder in (scene.here, scene.elsewhere):
        access = feeder.find(text)
        assert access is not None
        assert (access.project, access.scopes, access.name) == ("studio-a", {Scope.SUBMIT, Scope.READ}, "ci")
        assert access.allows(Scope.SUBMIT) and not access.allows(Scope.OPERATE) and not access.installation


def test_the_store_keeps_a_hash_and_never_the_text(scene: Scene) -> None:
    _, text = scene.make()
    [document] = scene.store.documents("token", "")
    assert text not in document.name + document.body and text[8:] not in document.body
    assert len(document.name) == 64 and document.expires is None  # `nommerd wipe` deletes what expires
    assert set(json.loads(document.body)) == {"id", "name", "project", "scopes", "created", "expires"}


def test_guesses_are_refused_without_asking_the_store(scene: Scene) -> None:
    scene.make()
    for guess in ("", "x", "nommerd_" + "a" * 36, "é" * 44, "nommerd_" + "é" * 36):
        assert scene.here.find(guess) is None
    assert (scene.store.asked, scene.store.listed) == (0, 1)  # listed once, to make it


def test_a_token_in_use_is_looked_up_every_few_seconds_only(scene: Scene) -> None:
    _, text = scene.make()
    for _ in range(100):
        scene.here.find(text)
        scene.seconds += FRESH_SECONDS / 100
    assert scene.store.asked == 1
    scene.seconds += 0.1
    scene.here.find(text)
    assert scene.store.asked == 2


def test_a_revoked_token_ends_at_once_here_and_within_five_seconds_elsewhere(scene: Scene) -> None:
    token_id, text = scene.make()
    assert scene.here.find(text) and scene.elsewhere.find(text)
    scene.here.revoke(token_id)
    assert scene.here.find(text) is None
    scene.seconds += 5
    assert scene.elsewhere.find(text) is None


def test_a_token_revoked_while_it_is_looked_up_is_not_kept(scene: Scene) -> None:
    token_id, text = scene.make()
    reading, go_on = Event(), Event()

    def pause() -> None:
        reading.set()
        go_on.wait(10)
    scene.store.before = pause
    lookup = gevent.spawn(scene.here.find, text)
    assert reading.wait(10)
    scene.store.before = lambda: None
    scene.here.revoke(token_id)
    go_on.set()
    lookup.get(timeout=10)
    assert scene.here.find(text) is None


def test_a_token_is_revoked_by_its_own_project_alone(scene: Scene) -> None:
    token_id, text = scene.make("studio-a")
    for wrong in ((token_id, "studio-b"), ("nope", None)):
        with pytest.raises(UnknownToken):
            scene.here.revoke(*wrong)
    assert scene.here.find(text)
    assert scene.here.revoke(token_id, "studio-a").id == token_id
    with pytest.raises(UnknownToken):
        scene.here.revoke(token_id, "studio-a")


def test_an_expired_token_says_so_to_the_second_and_is_forgotten_a_month_later(scene: Scene) -> None:
    _, text = scene.make(days=1)
    scene.seconds += 86399
    assert scene.here.find(text)
    scene.seconds += 1  # it is kept as found, and refused all the same
    for feeder in (scene.here, scene.elsewhere):
        with pytest.raises(TokenExpired) as caught:
            feeder.find(text)
        assert caught.value.code == "request.token_expired" and "2026-02-01T09:00:00" in caught.value.message
    scene.make()
    assert len(scene.here.list()) == 2
    scene.seconds += 30 * 86400 + 1
    scene.make()
    assert [token.expires for token in scene.here.list()] == [None, None]
    assert scene.here.find(text) is None


def test_a_store_out_of_reach_is_told_and_not_taken_for_a_wrong_token(scene: Scene) -> None:
    _, text = scene.make()
    assert scene.here.find(text)

    def fail() -> None:
        raise StoreUnavailable("gone")
    scene.store.before = fail
    assert scene.here.find(text)  # for a few seconds more
    scene.seconds += FRESH_SECONDS
    for suspect in (False, True):
        with pytest.raises(StoreUnavailable):
            scene.here.find(text, suspect)
    scene.store.before = lambda: None
    assert scene.here.find(text, suspect=True)


def test_where_many_wrong_ones_come_from_only_known_tokens_are_looked_up(scene: Scene) -> None:
    _, text = scene.make()
    for _ in range(500):
        assert scene.elsewhere.find(new_text(), suspect=True) is None
    assert (scene.store.asked, scene.store.listed) == (0, 2)
    assert scene.elsewhere.find(text, suspect=True)  # it was never seen there before
    _, later = scene.make()
    assert scene.here.find(later, suspect=True)  # at once where it was made
    scene.seconds += FRESH_SECONDS
    assert scene.elsewhere.find(later, suspect=True)


def test_wrong_ones_from_many_addresses_do_not_reach_the_store_either(scene: Scene) -> None:
    _, text = scene.make()
    for _ in range(1000):
        assert scene.here.find(new_text()) is None
    assert scene.store.asked <= module.MISSES_MAX and scene.store.listed <= 2
    assert scene.here.find(text)
    scene.seconds += module.MISSES_SECONDS + 1
    asked = scene.store.asked
    scene.here.find(new_text())
    assert scene.store.asked == asked + 1


def test_all_who_ask_at_once_share_one_listing(scene: Scene) -> None:
    _, text = scene.make()
    listed, go_on = scene.store.listed, Event()
    scene.store.before = lambda: void(go_on.wait(10))
    asking = [gevent.spawn(scene.elsewhere.find, wanted, True) for wanted in [text, *(new_text() for _ in range(20))]]
    gevent.sleep(0)
    go_on.set()
    assert [bool(one.get(timeout=10)) for one in asking] == [True] + [False] * 20
    assert scene.store.listed == listed + 1


def void(_: object) -> None:
    """For a function that returns nothing."""


def test_what_is_kept_in_memory_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 5)
    texts = [scene.make()[1] for _ in range(8)]
    assert all(scene.here.find(text) for text in texts)
    assert len(scene.here._found) == 5


def test_a_project_has_so_many_tokens_and_no_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROJECT_TOKENS_MAX", 2)
    first, _ = scene.make("a")
    scene.make("a")
    with pytest.raises(TooManyTokens):
        scene.make("a")
    scene.make("b")
    scene.here.revoke(first)
    scene.make("a")


def test_those_who_make_tokens_at_once_count_each_others(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROJECT_TOKENS_MAX", 2)
    met = threading.Barrier(3)

    def together() -> None:
        with suppress(threading.BrokenBarrierError):
            met.wait(0.2)

    def make() -> None:
        with suppress(TooManyTokens):
            scene.make("a")

    scene.store.before = together
    threads = [threading.Thread(target=make) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(scene.here.list("a")) == 2


def test_projects_are_those_that_have_tokens_and_the_configured_ones(scene: Scene) -> None:
    assert scene.here.projects() == ["default"]
    scene.make("studio-b")
    scene.make("studio-a")
    assert scene.here.projects() == ["default", "studio-a", "studio-b"]
    scene.seconds += FRESH_SECONDS
    assert scene.elsewhere.projects() == ["default", "studio-a", "studio-b"]
    assert Tokens(scene.store, ("default", "old")).projects() == ["default", "old", "studio-a", "studio-b"]


def test_a_token_that_cannot_be_read_opens_nothing_and_hides_no_other(scene: Scene) -> None:
    _, text = scene.make()
    [document] = scene.store.documents("token", "")
    other, other_text = scene.make()
    scene.store.put_document(Document(kind="token", scope="", name=document.name, body='{"scopes": ["all"]}', version=2), None)
    assert scene.elsewhere.find(text) is None
    assert [token.id for token in scene.elsewhere.list()] == [other]
    assert scene.elsewhere.find(other_text)
