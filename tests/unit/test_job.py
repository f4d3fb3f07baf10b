"""The record: its moves, its times, its bound."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nommerd.errors import InfrastructureError, Problem
from nommerd.job import (
    DELIVERIES_KEPT,
    EVENTS_KEPT,
    FINAL,
    RECORD_BYTES_MAX,
    RESEND_SECONDS,
    TRANSITIONS,
    UNSENT_SECONDS,
    Attempt,
    Delivery,
    IllegalMove,
    Job,
    JobState,
    Output,
    Owner,
    Staged,
    Sweep,
    Webhook,
    clipped,
    new_id,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
S = JobState


def job(**fields: Any) -> Job:
    return Job(**{"id": "j", "pipeline": "web", "recipe": "r" * 64, "source": "file:///in", "dest": "file:///out",
                  "created": NOON, "updated": NOON} | fields)


def test_every_state_has_its_moves_and_final_ones_only_lead_back_to_the_beginning() -> None:
    assert set(TRANSITIONS) == set(S)
    assert all(TRANSITIONS[state] <= {S.PENDING} for state in FINAL)
    assert TRANSITIONS[S.FINISHED] == frozenset()
    assert all(state not in targets for state, targets in TRANSITIONS.items())


@pytest.mark.parametrize("old", S)
@pytest.mark.parametrize("new", S)
def test_a_move_leaves_one_event_and_the_table_forbids_the_others(old: JobState, new: JobState) -> None:
    before = job(state=old, token=4, event_seq=7)
    if new not in TRANSITIONS[old]:
        with pytest.raises(IllegalMove):
            before.move(new, NOON)
        return
    after = before.move(new, NOON)
    assert (after.state, after.event_seq, after.events[-1].seq, after.events[-1].attempt) == (new, 8, 8, 4)
    assert after.finished == (NOON if new.final else None)


def test_only_the_newest_events_are_kept() -> None:
    one = job()
    for number in range(EVENTS_KEPT + 5):
        one = one.move((S.DOWNLOADING, S.ENCODING)[number % 2], NOON)
    assert [event.seq for event in one.events] == list(range(6, EVENTS_KEPT + 6))


class TestSweepAt:
    def test_an_unsent_job_is_looked_at_soon_and_a_sent_one_later(self) -> None:
        assert (job().sweep, job().sweep_at) == (Sweep.UNSENT, NOON.timestamp() + UNSENT_SECONDS)
        later = NOON + timedelta(hours=1)
        sent = job(message_id="m", sent_at=later)
        assert (sent.sweep, sent.sweep_at) == (Sweep.SENT, later.timestamp() + RESEND_SECONDS)

    def test_a_claimed_job_is_always_looked_at(self) -> None:
        held = job(owner=Owner(worker="w", node="n"), message_id="m", sent_at=NOON)
        assert (held.sweep, held.sweep_at) == (Sweep.CLAIMED, 0)

    @pytest.mark.parametrize("state", FINAL)
    def test_a_final_one_only_while_something_staged_is_to_be_revoked(self, state: JobState) -> None:
        staged = Staged(uri="u", handle="h", bytes=1, sha256="s", token=1)
        for found in (job(state=state), job(state=state, staged=(replace(staged, handle=""),))):
            assert (found.sweep, found.sweep_at) == (None, None)
        assert job(state=state, staged=(staged,)).sweep is Sweep.UNSENT


class TestDueEvents:
    def moved(self, **fields: Any) -> Job:
        return job(notify_url="https://h", **fields).move(S.ENCODING, NOON).move(S.FINISHED, NOON)

    def test_those_the_receiver_has_not_accepted_are_due_at_once_or_when_it_was_postponed_to(self) -> None:
        assert [event.seq for event in self.moved().due_events] == [1, 2]
        assert self.moved().webhook_at == 0
        hook = Webhook(accepted_seq=1, next_at=NOON)
        assert [event.seq for event in self.moved(webhook=hook).due_events] == [2]
        assert self.moved(webhook=hook).webhook_at == NOON.timestamp()

    def test_states_it_did_not_ask_for_are_not(self) -> None:
        assert [event.state for event in self.moved(webhook=Webhook(states=(S.FINISHED,))).due_events] == [S.FINISHED]

    @pytest.mark.parametrize("fields", [{"webhook": Webhook(disabled=True)}, {"webhook": Webhook(accepted_seq=2)},
                                        {"notify_url": None}])
    def test_nothing_is_due_where_nobody_listens_any_longer(self, fields: dict[str, Any]) -> None:
        assert self.moved().evolve(**fields).due_events == ()
        assert self.moved().evolve(**fields).webhook_at is None


class TestEncoding:
    def test_a_full_record_survives_encoding(self) -> None:
        full = job(state=S.ERROR, preset="p", inputs={"c": [{"uri": "u"}]}, secrets="x", labels={"a": "b"}, on_damage="fail",
                   params={"a": [1, 2.5, None, "é", True]}, notify_url="https://h", owner=Owner(worker="w", node="n", pid=3),
                   token=2, message_id="m", sent_at=NOON, progress=0.5, stage="s", eta_seconds=1.5,
                   error=Problem(code="a.b", message="c"),
                   staged=(Staged(uri="u", handle="h", bytes=1, sha256="s", token=1, probe={"a": {"b": [1]}}),),
                   outputs=(Output(uri="u", bytes=1, sha256="s"),),
                   attempts=(Attempt(number=1, worker="w", node="n", begun=NOON),),
                   webhook=Webhook(states=(S.ERROR,), next_at=NOON,
                                   deliveries=(Delivery(seq=1, at=NOON, status=None, why="x"),)))
        assert Job.decode(full.encode()) == full

    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"id": 1}'])
    def test_bytes_that_are_no_record_are_a_clear_error(self, body: bytes) -> None:
        with pytest.raises(InfrastructureError) as caught:
            Job.decode(body)
        assert caught.value.code == "internal.bad_record"

    def test_a_record_over_the_bound_is_refused(self) -> None:
        with pytest.raises(InfrastructureError) as caught:
            job(source="s" * RECORD_BYTES_MAX).encode()
        assert (caught.value.code, caught.value.retryable) == ("internal.record_too_large", False)

    def test_ids_are_safe_in_urls_and_differ(self) -> None:
        ids = {new_id() for _ in range(1000)}
        assert len(ids) == 1000
        assert all(len(one) == 20 and one.isalnum() and one == one.lower() for one in ids)


class TestFitted:
    def crowded(self, text: str) -> Job:
        problem = Problem(code="encoder.failed", message=text, hint=text, stage="encode", retryable=True)
        past = Attempt(number=0, worker="w" * 60, node="n" * 60, begun=NOON, ended=NOON, why=text)
        one = job(notify_url="https://h", source="file:///" + "s" * 3500, error=problem, warnings=(problem,) * 8, token=10,
                  attempts=tuple(replace(past, number=number) for number in range(10)),
                  outputs=(Output(uri="file:///" + "o" * 300, bytes=1, sha256="5" * 64, probe={"s": [text]}),),
                  webhook=Webhook(deliveries=(Delivery(seq=1, at=NOON, status=500, why=text[:80]),) * DELIVERIES_KEPT))
        for number in range(40):
            one = one.move((S.DOWNLOADING, S.ENCODING)[number % 2], NOON)
        return one

    @given(st.text(max_size=5000))
    def test_however_long_its_texts_a_record_fits_and_keeps_what_decides(self, text: str) -> None:
        full = self.crowded(text)
        fitted = full.fitted()
        assert len(fitted.encode()) <= RECORD_BYTES_MAX
        assert fitted.error is not None
        assert (fitted.error.code, fitted.error.retryable) == ("encoder.failed", True)
        assert fitted.attempts[-1].number == 9
        assert fitted.events[-1] == full.events[-1]
        assert [event.seq for event in fitted.events] == list(range(41 - len(fitted.events), 41))
        assert (fitted.outputs[0].uri, fitted.token, fitted.event_seq) == (full.outputs[0].uri, 10, 40)

    def test_of_a_record_that_is_too_large_the_deliveries_go_first(self) -> None:
        tried = tuple(Delivery(seq=seq, at=NOON, status=500, why="answered 500") for seq in range(8))
        one = job(source="", notify_url="https://h", webhook=Webhook(deliveries=tried)).move(S.ENCODING, NOON)
        room = RECORD_BYTES_MAX - len(one.encode())
        some = one.evolve(source="s" * (room + 1)).fitted()
        assert some.webhook.deliveries == tried[-2:]
        none = one.evolve(source="s" * (room + 600)).fitted()
        assert (none.webhook.deliveries, none.events) == ((), one.events)

    def test_a_record_that_fits_stays_as_it_is(self) -> None:
        one = job(error=Problem(code="a.b", message="m" * 2000)).move(S.ENCODING, NOON)
        assert one.fitted() is one

    @given(st.text(), st.integers(min_value=8, max_value=200))
    def test_clipped_texts_take_no_more_bytes_than_asked_and_begin_the_same(self, text: str, bytes_max: int) -> None:
        short = clipped(text, bytes_max)
        assert short == text or (short[-1] == "…" and text.startswith(short[:-1]))
        assert len(job(stage=short).encode()) - len(job(stage="").encode()) <= bytes_max
