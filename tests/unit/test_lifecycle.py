"""Each change by itself: what it does, when it does nothing, when it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nommerd import lifecycle
from nommerd.errors import Fenced, Problem
from nommerd.job import ATTEMPTS_KEPT, FINAL, RUNNING, WARNINGS_KEPT, Job, JobState, Output, Owner, Staged
from nommerd.lifecycle import Change, NotClaimable, Refused

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=1)
S = JobState
ME = Owner(worker="w1", node="n1", claim="claim-1")
OTHER = Owner(worker="w1", node="n1", claim="claim-2")
KILLED = Problem(code="encoder.killed", message="signal 9", retryable=True)
BAD = Problem(code="input.truncated", message="short")
OUTPUT = Output(uri="file:///out", bytes=5, sha256="abc")
STAGED = Staged(uri="file:///out", handle=".out.1.part", bytes=5, sha256="abc", token=1)


def job(**fields: Any) -> Job:
    return Job(**{"id": "j", "pipeline": "web", "recipe": "r", "source": "file:///in", "dest": "file:///out",
                  "created": NOON, "updated": NOON} | fields)


def claimed(owner: Owner = ME, **fields: Any) -> Job:
    return lifecycle.claim(owner, "m1", 30, NOON)(job(**fields))


def running(**fields: Any) -> Job:
    return lifecycle.advance(ME, S.ENCODING, "encode", 0.3, NOON)(claimed(**fields))


def final(state: JobState, **fields: Any) -> Job:
    return job(**fields).move(state, NOON)


BY_OWNER: dict[str, Callable[[Owner], Change]] = {
    "renew": lambda owner: lifecycle.renew(owner, 0.5, "encode", 1.0),
    "advance": lambda owner: lifecycle.advance(owner, S.UPLOADING, "upload", 0.9, LATER),
    "stage": lambda owner: lifecycle.stage(owner, [STAGED]),
    "replace_message": lambda owner: lifecycle.replace_message(owner, "m2"),
    "finish": lambda owner: lifecycle.finish(owner, [OUTPUT], [], LATER),
    "fail": lambda owner: lifecycle.fail(owner, KILLED, [], 3, LATER),
    "give_back": lambda owner: lifecycle.give_back(owner, "stopping", LATER),
    "stop_cancelled": lambda owner: lifecycle.stop_cancelled(owner, LATER),
}


@pytest.mark.parametrize("what", BY_OWNER)
class TestTheFence:
    def test_the_owner_may(self, what: str) -> None:
        before = running()
        after = BY_OWNER[what](ME)(before)
        assert after is not before
        assert after.token == 1

    def test_another_claim_may_not(self, what: str) -> None:
        with pytest.raises(Fenced):
            BY_OWNER[what](OTHER)(running())

    def test_nobody_may_once_it_was_given_back_broken_or_settled(self, what: str) -> None:
        for end in (lifecycle.give_back(ME, "x", NOON), lifecycle.break_lease(2, KILLED, 3, NOON),
                    lifecycle.fail(ME, BAD, [], 3, NOON), lifecycle.finish(ME, [], [], NOON),
                    lifecycle.stop_cancelled(ME, NOON)):
            with pytest.raises(Fenced):
                BY_OWNER[what](ME)(end(running()))

    def test_the_same_worker_under_its_older_claim_may_not(self, what: str) -> None:
        again = lifecycle.claim(OTHER, "m2", 30, NOON)(lifecycle.break_lease(2, KILLED, 3, NOON)(running()))
        with pytest.raises(Fenced):
            BY_OWNER[what](ME)(again)


class TestClaim:
    def test_it_raises_the_token_charges_an_attempt_and_clears_what_was(self) -> None:
        before = job(progress=0.7, stage="encode", eta_seconds=1.0, lease_version=4, token=2, attempts_charged=1)
        after = lifecycle.claim(ME, "m7", 12, LATER)(before)
        assert (after.owner, after.token, after.attempts_charged, after.message_id) == (ME, 3, 2, "m7")
        assert (after.lease_version, after.lease_seconds) == (5, 12)
        assert (after.error, after.progress, after.stage, after.eta_seconds) == (None, 0.0, None, None)
        assert (after.attempts[-1].number, after.attempts[-1].begun, after.attempts[-1].ended) == (3, LATER, None)
        assert (after.state, after.events) == (S.PENDING, ())

    def test_our_own_claim_whose_answer_was_lost_changes_nothing(self) -> None:
        before = claimed()
        assert lifecycle.claim(ME, "m1", 30, LATER)(before) is before

    @pytest.mark.parametrize("taken", [claimed(OTHER), running(), job(state=S.WAITING), *map(final, FINAL)])
    def test_a_job_that_does_not_wait_for_a_worker_is_refused_with_its_record(self, taken: Job) -> None:
        with pytest.raises(NotClaimable) as caught:
            lifecycle.claim(Owner(worker="w", node="n", claim="new"), "m", 30, NOON)(taken)
        assert caught.value.job is taken

    def test_only_the_last_attempts_are_kept(self) -> None:
        one = job()
        for number in range(ATTEMPTS_KEPT + 3):
            one = lifecycle.give_back(ME, "x", NOON)(lifecycle.claim(ME, "m", 30, NOON)(one))
            assert one.token == number + 1
        assert [attempt.number for attempt in one.attempts] == list(range(4, ATTEMPTS_KEPT + 4))


class TestWork:
    def test_renewing_raises_the_lease_version_and_carries_progress(self) -> None:
        after = lifecycle.renew(ME, 0.5, "encode", 9.0)(claimed())
        assert (after.lease_version, after.progress, after.stage, after.eta_seconds) == (2, 0.5, "encode", 9.0)

    def test_a_stage_of_another_state_is_an_event_and_one_of_the_same_is_not(self) -> None:
        first = lifecycle.advance(ME, S.ENCODING, "pass 1", 0.1, NOON)(claimed())
        second = lifecycle.advance(ME, S.ENCODING, "pass 2", 0.5, NOON)(first)
        assert (first.event_seq, second.event_seq, second.stage, second.lease_version) == (1, 1, "pass 2", 3)

    def test_the_speed_is_that_of_the_encode_that_runs(self) -> None:
        encoding = lifecycle.renew(ME, 0.5, "encode", 9.0, 2.5)(running())
        assert encoding.speed == 2.5
        assert lifecycle.advance(ME, S.UPLOADING, "upload", 0.9, NOON)(encoding).speed is None
        assert lifecycle.finish(ME, [OUTPUT], [], LATER)(encoding).speed is None

    def test_finishing_publishes_clears_staging_and_lets_go(self) -> None:
        after = lifecycle.finish(ME, [OUTPUT], [BAD] * 20, LATER)(lifecycle.stage(ME, [STAGED])(running()))
        assert (after.state, after.outputs, after.staged, after.owner) == (S.FINISHED, (OUTPUT,), (), None)
        assert (after.progress, after.finished, len(after.warnings)) == (1.0, LATER, WARNINGS_KEPT)
        assert (after.attempts[-1].ended, after.attempts[-1].why) == (LATER, "finished")
        assert after.sweep_at is None

    def test_giving_back_charges_nothing_keeps_the_token_and_asks_for_a_message(self) -> None:
        after = lifecycle.give_back(ME, "stopping", LATER)(running())
        assert (after.state, after.owner, after.token, after.attempts_charged) == (S.PENDING, None, 1, 0)
        assert (after.message_id, after.sent_at, after.attempts[-1].why) == (None, LATER, "stopping")
        assert (after.progress, after.stage) == (0.0, None)

    def test_staging_survives_for_the_next_owner_to_revoke(self) -> None:
        after = lifecycle.give_back(ME, "x", NOON)(lifecycle.stage(ME, [STAGED])(running()))
        assert lifecycle.claim(OTHER, "m", 30, NOON)(after).staged == (STAGED,)


class TestFailing:
    def test_a_retryable_one_is_tried_again_while_attempts_last_and_then_is_an_error(self) -> None:
        one = job()
        for number in range(1, 4):
            one = lifecycle.fail(ME, KILLED, [], 3, LATER)(lifecycle.claim(ME, "m", 30, NOON)(one))
            assert (one.state, one.attempts_charged) == (S.PENDING if number < 3 else S.ERROR, number)
        assert one.error == Problem(code=KILLED.code, message=KILLED.message, retryable=True, attempt=3)
        assert one.sweep_at is None

    def test_one_that_no_retry_helps_is_an_error_at_once(self) -> None:
        after = lifecycle.fail(ME, BAD, [KILLED], 3, LATER)(running())
        assert (after.state, after.owner, after.warnings, after.finished) == (S.ERROR, None, (KILLED,), LATER)

    def test_a_cancelled_job_is_not_tried_again(self) -> None:
        after = lifecycle.fail(ME, KILLED, [], 3, LATER)(lifecycle.cancel(NOON)(running()))
        assert after.state is S.CANCELLED

    def test_a_cancelled_job_whose_last_attempt_was_lost_is_cancelled_and_no_error(self) -> None:
        assert lifecycle.fail(ME, KILLED, [], 1, LATER)(lifecycle.cancel(NOON)(running())).state is S.CANCELLED

    def test_attempts_that_were_given_back_do_not_count(self) -> None:
        one = job()
        for _ in range(5):
            one = lifecycle.give_back(ME, "x", NOON)(lifecycle.claim(ME, "m", 30, NOON)(one))
        assert lifecycle.fail(ME, KILLED, [], 3, LATER)(lifecycle.claim(ME, "m", 30, NOON)(one)).state is S.PENDING


class TestTheLastLook:
    """A job whose attempts are used up but that may have published everything gets one more claim, which may only adopt."""

    def lost(self, max_attempts: int = 1, **fields: Any) -> Job:
        staged = lifecycle.stage(ME, [STAGED], [BAD])(running(**fields))
        return lifecycle.break_lease(staged.lease_version, KILLED, max_attempts, LATER)(staged)

    def test_it_waits_for_a_worker_and_keeps_its_error(self) -> None:
        one = self.lost()
        assert (one.state, one.adopt_only, one.error) == (S.PENDING, True, replace(KILLED, attempt=1))
        assert (one.staged, one.warnings, one.message_id) == ((STAGED,), (BAD,), None)

    @pytest.mark.parametrize(("max_attempts", "fields"), [(3, {}), (1, {"cancel_requested": True})])
    def test_there_is_none_while_attempts_are_left_nor_for_a_cancelled_job(self, max_attempts: int, fields: Any) -> None:
        one = self.lost(max_attempts, **fields)
        assert (one.adopt_only, one.error) == (False, None)

    def test_there_is_none_where_nothing_is_staged_or_a_retry_could_not_help(self) -> None:
        assert lifecycle.fail(ME, KILLED, [], 1, LATER)(running()).state is S.ERROR
        assert lifecycle.fail(ME, BAD, [], 1, LATER)(lifecycle.stage(ME, [STAGED])(running())).state is S.ERROR

    def test_its_claim_is_not_charged_and_may_be_given_back(self) -> None:
        look = lifecycle.claim(OTHER, "m", 30, LATER)(self.lost())
        assert (look.token, look.attempts_charged, look.adopt_only) == (2, 1, True)
        back = lifecycle.give_back(OTHER, "stopping", LATER)(look)
        assert (back.state, back.attempts_charged, back.adopt_only) == (S.PENDING, 1, True)

    def test_what_it_finds_finishes_the_job(self) -> None:
        done = lifecycle.finish(OTHER, [OUTPUT], [BAD], LATER)(lifecycle.claim(OTHER, "m", 30, LATER)(self.lost()))
        assert (done.state, done.error, done.outputs, done.staged) == (S.FINISHED, None, (OUTPUT,), ())

    @pytest.mark.parametrize("max_attempts", [1, 9])
    @pytest.mark.parametrize("problem", [BAD, KILLED, replace(KILLED, code="dest.unavailable")])
    def test_else_the_job_ends_with_the_error_of_its_last_attempt(self, max_attempts: int, problem: Problem) -> None:
        look = lifecycle.claim(OTHER, "m", 30, LATER)(self.lost())
        for end in (lifecycle.fail(OTHER, problem, [], max_attempts, LATER),
                    lifecycle.break_lease(look.lease_version, problem, max_attempts, LATER)):
            assert (end(look).state, end(look).error) == (S.ERROR, replace(KILLED, attempt=1))

    def test_cancelling_and_retrying_end_it(self) -> None:
        one = self.lost()
        look = lifecycle.cancel(LATER)(lifecycle.claim(OTHER, "m", 30, LATER)(one))
        for gone in (lifecycle.cancel(LATER)(one), lifecycle.stop_cancelled(OTHER, LATER)(look),
                     lifecycle.give_back(OTHER, "stopping", LATER)(look),
                     lifecycle.break_lease(look.lease_version, KILLED, 1, LATER)(look)):
            assert (gone.state, gone.error) == (S.CANCELLED, None)
            again = lifecycle.retry(LATER)(gone)
            assert (again.adopt_only, lifecycle.claim(ME, "m", 30, LATER)(again).attempts_charged) == (False, 1)


class TestBreaking:
    def test_a_dead_lease_goes_back_charged(self) -> None:
        after = lifecycle.break_lease(2, KILLED, 3, LATER)(running())
        assert (after.state, after.owner, after.token, after.attempts_charged) == (S.PENDING, None, 1, 1)
        assert (after.message_id, after.attempts[-1].why) == (None, KILLED.code)

    def test_the_last_attempt_ends_in_error(self) -> None:
        assert lifecycle.break_lease(2, KILLED, 1, LATER)(running()).state is S.ERROR

    def test_a_cancelled_one_ends_cancelled(self) -> None:
        assert lifecycle.break_lease(2, KILLED, 1, LATER)(lifecycle.cancel(NOON)(running())).state is S.CANCELLED

    @pytest.mark.parametrize("found", [lifecycle.renew(ME, 0.5, None, None)(running()), job(lease_version=2),
                                       final(S.FINISHED)])
    def test_nothing_happens_where_the_lease_moved_or_is_gone(self, found: Job) -> None:
        assert lifecycle.break_lease(2, KILLED, 3, LATER)(found) is found


class TestCancelAndRetry:
    def test_an_unclaimed_job_is_cancelled_at_once(self) -> None:
        after = lifecycle.cancel(LATER)(job())
        assert (after.state, after.finished, after.cancel_requested) == (S.CANCELLED, LATER, True)

    def test_a_running_one_is_told_and_its_owner_stops_it(self) -> None:
        told = lifecycle.cancel(LATER)(running())
        assert (told.state, told.cancel_requested, told.owner) == (S.ENCODING, True, ME)
        assert lifecycle.cancel(LATER)(told) is told
        after = lifecycle.stop_cancelled(ME, LATER)(told)
        assert (after.state, after.owner) == (S.CANCELLED, None)
        assert lifecycle.cancel(LATER)(after) is after

    @pytest.mark.parametrize("state", FINAL - {S.CANCELLED})
    def test_another_final_state_stays(self, state: JobState) -> None:
        with pytest.raises(Refused):
            lifecycle.cancel(LATER)(final(state))

    @pytest.mark.parametrize("state", FINAL - {S.FINISHED})
    def test_a_retry_begins_anew_under_the_same_token_with_no_attempt_charged(self, state: JobState) -> None:
        warned = (replace(BAD, attempt=1),)
        before = final(state, error=BAD, warnings=warned, attempts_charged=3, token=5, cancel_requested=True)
        after = lifecycle.retry(LATER)(before)
        assert (after.state, after.attempts_charged, after.token, after.cancel_requested) == (S.PENDING, 0, 5, False)
        assert (after.error, after.warnings, after.message_id, after.finished) == (None, (), None, None)
        assert after.sweep_at is not None

    @pytest.mark.parametrize("found", [final(S.FINISHED), job(), running()])
    def test_nothing_else_can_be_retried(self, found: Job) -> None:
        with pytest.raises(Refused):
            lifecycle.retry(LATER)(found)


def test_what_was_warned_of_at_submit_stays_whatever_attempts_say() -> None:
    given, noted = replace(BAD, code="recipe.old_option"), replace(BAD, code="input.damaged", attempt=1)
    codes = ["recipe.old_option", "input.damaged"]
    staged = lifecycle.stage(ME, [STAGED], [noted])(running(warnings=(given,)))
    assert [warning.code for warning in staged.warnings] == codes
    failed = lifecycle.fail(ME, BAD, [noted], 3, LATER)(staged)
    assert [warning.code for warning in failed.warnings] == codes
    again = lifecycle.retry(LATER)(failed)
    assert again.warnings == (given,)
    done = lifecycle.finish(OTHER, [OUTPUT], [given, noted], LATER)(lifecycle.claim(OTHER, "m2", 30, LATER)(again))
    assert [warning.code for warning in done.warnings] == codes  # an adopting attempt repeats those that it found


class TestMessagesAndEvents:
    def test_sent_and_dead_lettered_concern_only_jobs_that_wait(self) -> None:
        waiting = lifecycle.sent("m1", LATER)(job())
        assert (waiting.message_id, waiting.sent_at) == ("m1", LATER)
        assert lifecycle.dead_lettered("m1", LATER)(waiting).message_id is None
        assert lifecycle.dead_lettered("m0", LATER)(waiting) is waiting
        for found in (running(), final(S.FINISHED)):
            assert lifecycle.sent("m2", LATER)(found) is found
            assert lifecycle.dead_lettered("m1", LATER)(found) is found

    def test_abandoning_needs_an_earlier_claim_and_nobody_at_work(self) -> None:
        assert lifecycle.abandon(LATER)(lifecycle.give_back(ME, "x", NOON)(running())).state is S.ABANDONED
        for found in (job(), running(), final(S.ERROR)):
            assert lifecycle.abandon(LATER)(found) is found

    def test_what_was_revoked_of_a_settled_job_is_forgotten(self) -> None:
        settled = lifecycle.fail(ME, BAD, [], 3, NOON)(lifecycle.stage(ME, [STAGED])(running()))
        assert lifecycle.unstaged([STAGED.handle])(settled).staged == ()
        assert lifecycle.unstaged(["another"])(settled) is settled
        both = replace(settled, staged=(STAGED, replace(STAGED, uri="file:///two", handle="h2")))
        published = lifecycle.unstaged([STAGED.handle, "h2"], published=True)(both)
        assert [staged.uri for staged in published.staged] == ["file:///out", "file:///two"], "a retry sees what is missing"
        assert (published.revocable, published.sweep_at) == ((), None)
        live = lifecycle.stage(ME, [STAGED])(running())
        assert lifecycle.unstaged([STAGED.handle])(live) is live

    def test_accepting_clears_the_tries_and_a_late_failure_changes_nothing(self) -> None:
        one = final(S.FINISHED, notify_url="https://h")
        tried = lifecycle.event_postponed(1, LATER)(one)
        assert (tried.webhook.tries, tried.webhook.next_at, tried.webhook_at) == (1, LATER, LATER.timestamp())
        accepted = lifecycle.events_accepted(1)(tried)
        assert (accepted.webhook.tries, accepted.webhook.next_at, accepted.due_events) == (0, None, ())
        assert lifecycle.event_postponed(1, LATER)(accepted) is accepted
        assert lifecycle.events_accepted(1)(accepted) is accepted

    def test_events_are_due_again_after_a_replay_whatever_became_of_them(self) -> None:
        accepted = lifecycle.events_accepted(1)(final(S.FINISHED, notify_url="https://h"))
        gone = lifecycle.event_postponed(1, None)(final(S.ERROR, notify_url="https://h"))
        for one in (accepted, gone):
            again = lifecycle.replay_events(0)(one)
            assert [event.seq for event in again.due_events] == [1]
            assert (again.webhook.tries, again.webhook_at, again.state) == (0, 0.0, one.state)
        assert lifecycle.replay_events(1)(accepted).due_events == ()
        with pytest.raises(lifecycle.Refused):
            lifecycle.replay_events(0)(final(S.FINISHED))

    def test_a_receiver_that_is_given_up_gets_nothing_more(self) -> None:
        gone = lifecycle.event_postponed(1, None)(final(S.ERROR, notify_url="https://h"))
        assert (gone.webhook.disabled, lifecycle.retry(LATER)(gone).due_events) == (True, ())


def test_every_running_state_can_end_in_every_way() -> None:
    for state in RUNNING:
        one = lifecycle.advance(ME, state, "s", 0.1, NOON)(claimed())
        assert {BY_OWNER[what](ME)(one).state for what in ("finish", "fail", "give_back", "stop_cancelled")} == {
            S.FINISHED, S.PENDING, S.CANCELLED}
