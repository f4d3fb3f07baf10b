"""A pipeline from its first stage to its last, and what an earlier attempt left."""

from __future__ import annotations

import errno
from itertools import pairwise
from pathlib import Path

import pytest

from nommerd.errors import EncoderError, Fenced, InputError, ShuttingDown
from nommerd.pipeline.context import Context
from nommerd.pipeline.runner import problem_of, run_pipeline
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages.verify import Verify, VerifySettings
from tests.unit.pipeline.scene import Remake, Scene, next_attempt, notes, stages


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    Remake.runs = 0
    return Scene(tmp_path)


@pytest.fixture
def folder_scene(tmp_path: Path) -> Scene:
    Remake.runs = 0
    return Scene(tmp_path, dest="out/")


class Died(BaseException):
    """What a kill -9 is to the code: nothing runs after it."""


def die_at(context: Context, write: str, count: int = 1) -> None:
    """Let the process 'die' at this write to the record."""
    left = [count]

    def on_write(name: str) -> None:
        if name == write:
            left[0] -= 1
            if not left[0]:
                raise Died

    notes(context).on_write = on_write


def kill_while_publishing(scene: Scene, context: Context, after: int, makes: list[Stage]) -> None:
    """Run until `after` outputs were published; then nothing is done any more, not even in `finally`."""
    backend = scene.storage.for_uri(scene.dest_uri)
    publish, revoke = backend.publish, backend.revoke
    left = [after]

    def counted(staging, overwrite):  # type: ignore[no-untyped-def]
        publish(staging, overwrite)
        left[0] -= 1
        if not left[0]:
            raise Died

    backend.publish = counted  # type: ignore[method-assign]
    backend.revoke = lambda uri, handle: None  # type: ignore[method-assign]
    try:
        with pytest.raises(Died):
            run_pipeline(stages(*makes), context)
    finally:
        backend.publish, backend.revoke = publish, revoke  # type: ignore[method-assign]


# --- states and progress -----------------------------------------------------------------------------------------


def test_a_job_goes_through_every_state_in_order_and_its_progress_never_falls(scene: Scene) -> None:
    context = scene.context()
    run_pipeline(stages(Remake("one"), Remake2("two")), context)
    seen = notes(context)
    assert [f"{state} {stage}" for state, stage, _ in seen.advances] == [
        "DOWNLOADING fetch", "ENCODING one", "ENCODING two", "UPLOADING upload"]
    bar = [progress for progress, _, _ in seen.news]
    assert all(a <= b for a, b in pairwise(bar))
    assert bar[-1] == pytest.approx(1.0)
    assert max(bar) <= 1.0
    shares = {stage: progress for _, stage, progress in seen.advances}
    assert 0.0 == shares["fetch"] < shares["one"] < 0.2 < shares["two"] < 0.6 < shares["upload"] < 1.0


class Remake2(Remake):
    """Takes the stage before as its input."""

    name = "remake2"

    def run(self, context: Context) -> None:
        context.take("one")
        super().run(context)


def test_progress_going_back_within_a_stage_does_not_show(scene: Scene) -> None:
    context = scene.context()

    def back(context: Context) -> None:
        context.progress(0.9)
        context.progress(0.1)
        context.progress(7.0)

    run_pipeline(stages(Remake("one", act=back)), context)
    bar = [progress for progress, stage, _ in notes(context).news if stage == "one"]
    assert all(a <= b for a, b in pairwise(bar))


def test_the_time_left_counts_later_stages_and_is_not_guessed_from_the_download(scene: Scene) -> None:
    context = scene.context()
    run_pipeline(stages(Remake("one", act=lambda c: c.progress(0.5, 10.0)), Remake2("two")), context)
    news = notes(context).news
    assert all(eta is None for _, stage, eta in news if stage == "fetch")
    told = [eta for _, stage, eta in news if stage == "one" and eta is not None]
    assert max(told) > 20, "ten seconds of this stage and a whole one after it"


def test_outputs_are_verified_before_they_are_published_without_being_asked(scene: Scene) -> None:
    context = scene.context()
    run_pipeline(stages(Remake("one")), context)
    (output,) = context.outputs
    assert output.uri == scene.dest_uri
    assert output.probe["container"] == "mp4"
    assert context.files["one"].verified


def test_an_output_that_is_no_media_is_never_published(scene: Scene) -> None:
    def spoil(context: Context) -> None:
        context.files["source"].path.write_bytes(b"not media")

    context = scene.context()
    with pytest.raises(Exception) as caught:
        run_pipeline(stages(Remake("one", act=spoil)), context)
    assert problem_of(caught.value, context).stage == "verify"  # type: ignore[arg-type]
    assert not scene.dest.exists()
    assert notes(context).staged == []


def test_what_an_explicit_verify_stage_looked_at_is_not_looked_at_twice(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from nommerd.pipeline.stages import verify

    looks: list[Path] = []
    real = verify.verify_file

    def counted(binaries, path, *rest, **named):  # type: ignore[no-untyped-def]
        looks.append(path)
        return real(binaries, path, *rest, **named)

    monkeypatch.setattr(verify, "verify_file", counted)
    run_pipeline(stages(Remake("one"), Verify("verify", VerifySettings(decode="full"))), scene.context())
    assert len(looks) == 1


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "code", "retryable"), [
    (InputError("input.no_video", "No picture."), "input.no_video", False),
    (EncoderError("encoder.killed", "ffmpeg was killed by SIGKILL.", retryable=True), "encoder.killed", True),
    (OSError(errno.ENOSPC, "No space left on device"), "node.disk_full", True),
    (OSError(errno.EDQUOT, "Quota exceeded"), "node.disk_full", True),
    (OSError(errno.EIO, "I/O error"), "internal.error", True),
    (ZeroDivisionError("secret in here"), "internal.error", True),
])
def test_an_error_names_its_stage_its_attempt_and_whether_a_retry_helps(scene: Scene, error: Exception, code: str,
                                                                      retryable: bool) -> None:
    def fail(context: Context) -> None:
        raise error

    scene.context()
    context = scene.context()
    with pytest.raises(type(error)):
        run_pipeline(stages(Remake("one", act=fail)), context)
    problem = problem_of(error, context)
    assert (problem.code, problem.stage, problem.attempt, problem.retryable) == (code, "one", 2, retryable)
    assert "secret" not in problem.message + problem.hint
    assert scene.parts == []


def test_nothing_begins_once_the_work_must_stop(scene: Scene) -> None:
    scene.stop.set(ShuttingDown())
    with pytest.raises(ShuttingDown):
        run_pipeline(stages(Remake("one")), scene.context())
    assert Remake.runs == 0


def test_a_stop_between_stages_is_heard(scene: Scene) -> None:
    with pytest.raises(ShuttingDown):
        run_pipeline(stages(Remake("one", act=lambda c: scene.stop.set(ShuttingDown()))), scene.context())
    assert not scene.dest.exists()


# --- what earlier attempts left ----------------------------------------------------------------------------------


def test_an_output_that_was_published_before_the_crash_is_adopted_and_not_made_again(scene: Scene) -> None:
    first = scene.context()
    kill_while_publishing(scene, first, 1, [Remake("one")])
    inode = scene.dest.stat().st_ino
    second = next_attempt(scene, first)
    run_pipeline(stages(Remake("one")), second)
    assert Remake.runs == 1
    assert scene.dest.stat().st_ino == inode
    (output,) = second.outputs
    (entry,) = notes(first).staged[-1]
    assert (output.uri, output.bytes, output.sha256, output.probe) == (scene.dest_uri, entry.bytes, entry.sha256, entry.probe)
    assert output.probe["streams"]


def test_what_is_adopted_keeps_its_warnings(scene: Scene) -> None:
    first = scene.context()
    kill_while_publishing(scene, first, 1, [Remake("one", act=lambda context: context.warn("input.damaged", "A little."))])
    second = next_attempt(scene, first, warnings=notes(first).warnings)
    run_pipeline(stages(Remake("one")), second)
    assert [warning.code for warning in second.warnings] == ["input.damaged"]


def test_an_output_that_was_only_staged_is_revoked_and_made_again(scene: Scene) -> None:
    first = scene.context()
    die_at(first, "confirm", 2)  # the first is by upload, the second just before publishing
    backend = scene.storage.for_uri(scene.dest_uri)
    revoke = backend.revoke
    backend.revoke = lambda uri, handle: None  # type: ignore[method-assign]
    with pytest.raises(Died):
        run_pipeline(stages(Remake("one")), first)
    backend.revoke = revoke  # type: ignore[method-assign]
    assert len(scene.parts) == 1
    second = next_attempt(scene, first)
    run_pipeline(stages(Remake("one")), second)
    assert Remake.runs == 2
    assert scene.parts == []
    assert notes(second).staged[0] == (), "what remains of the old staging is noted: nothing"
    assert scene.dest.exists()


def test_a_late_owner_cannot_publish_once_a_newer_one_has_begun(scene: Scene) -> None:
    first = scene.context()
    backend = scene.storage.for_uri(scene.dest_uri)
    publish = backend.publish

    def late(staging, overwrite):  # type: ignore[no-untyped-def]
        backend.publish = publish  # type: ignore[method-assign]
        run_pipeline(stages(Remake("one")), next_attempt(scene, first))  # meanwhile, elsewhere
        publish(staging, overwrite)

    backend.publish = late  # type: ignore[method-assign]
    with pytest.raises(Fenced):
        run_pipeline(stages(Remake("one")), first)
    assert scene.dest.exists()
    assert first.outputs == []
    assert scene.parts == []


def test_where_only_some_were_published_all_are_made_again_and_ours_are_replaced(folder_scene: Scene) -> None:
    scene = folder_scene
    pair = ["a.mp4", "b.mp4"]
    first = scene.context()
    kill_while_publishing(scene, first, 1, [Remake("one", pair)])
    assert (scene.dest / "a.mp4").exists()
    assert not (scene.dest / "b.mp4").exists()

    second = next_attempt(scene, first)  # dies before it stages anything
    with pytest.raises(ZeroDivisionError):
        run_pipeline(stages(Remake("one", pair, act=lambda c: 1 // 0)), second)

    third = next_attempt(scene, second)
    run_pipeline(stages(Remake("one", pair)), third)
    assert [output.uri.rpartition("/")[2] for output in third.outputs] == pair
    assert {path.name for path in scene.dest.iterdir()} == set(pair)
    assert Remake.runs == 3


def test_a_whole_set_is_adopted(folder_scene: Scene) -> None:
    scene = folder_scene
    first = scene.context()
    run_pipeline(stages(Remake("one", ["a.mp4", "b.mp4"])), first)
    second = next_attempt(scene, first)
    run_pipeline(stages(Remake("one", ["a.mp4", "b.mp4"])), second)
    assert second.outputs == first.outputs
    assert Remake.runs == 1


def test_a_destination_that_somebody_else_changed_since_is_not_adopted(scene: Scene) -> None:
    first = scene.context()
    run_pipeline(stages(Remake("one")), first)
    scene.dest.write_bytes(b"theirs")
    with pytest.raises(InputError) as caught:
        run_pipeline(stages(Remake("one")), next_attempt(scene, first))
    assert caught.value.code == "dest.exists"
    assert scene.dest.read_bytes() == b"theirs"


def test_a_pipeline_that_goes_on_after_its_upload_is_run_again(scene: Scene) -> None:
    class Report(Stage):
        name = "report"
        runs = 0

        def run(self, context: Context) -> None:
            Report.runs += 1

    first = scene.context()
    run_pipeline([*stages(Remake("one")), Report("report", None)], first)
    run_pipeline([*stages(Remake("one")), Report("report", None)], next_attempt(scene, first))
    assert (Remake.runs, Report.runs) == (2, 2)
