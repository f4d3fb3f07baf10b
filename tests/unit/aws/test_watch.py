"""Watches: what they take, where outputs go, what is refused, what S3 says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nommerd.aws import watch
from nommerd.aws.watch import Watch, circle, created, feeds, from_tags, notification, overlapping, tags
from nommerd.errors import ConfigError, InputError


def a_watch(**more: Any) -> Watch:
    return Watch(**{"name": "w", "bucket": "inbox", "prefix": "up/", "suffix": "", "dest": "s3://outbox/web/",
                    "preset": "web-720p", **more})


def event(key: str = "up/a.mov", *, bucket: str = "inbox", name: str = "ObjectCreated:Put", sequencer: str | None = "0A",
          **thing: Any) -> dict[str, Any]:
    """A record as S3 documents it."""
    found = {"key": key, "size": 1, "eTag": "e", **thing, **({"sequencer": sequencer} if sequencer else {})}
    return {"eventVersion": "2.1", "eventSource": "aws:s3", "awsRegion": "us-east-1", "eventTime": "2026-01-31T10:00:00.000Z",
            "eventName": name, "s3": {"s3SchemaVersion": "1.0", "configurationId": "c",
                                      "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"}, "object": found}}


def message(*records: dict[str, Any]) -> str:
    return json.dumps({"Records": records})


# --- what S3 says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("escaped", "key"), [
    ("up/a.mov", "up/a.mov"), ("up/My+Film.mov", "up/My Film.mov"), ("up/a%2Bb.mov", "up/a+b.mov"),
    ("up/%C3%BCber.mov", "up/über.mov"), ("up/100%25.mov", "up/100%.mov"), ("up/a%26b%3Dc.mov", "up/a&b=c.mov")])
def test_keys_come_as_in_a_form_and_are_read_so(escaped: str, key: str) -> None:
    assert [one.key for one in created(message(event(escaped)))] == [key]


def test_the_test_event_and_other_events_are_none() -> None:
    assert created(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "inbox"})) == []
    assert created(message(event(name="ObjectRemoved:Delete"), event(name="ObjectRestore:Post"), {"eventSource": "x"})) == []


def test_a_copy_and_a_completed_upload_are_creations_too() -> None:
    records = [event(name=f"ObjectCreated:{how}") for how in ("Put", "Post", "Copy", "CompleteMultipartUpload")]
    assert len(created(message(*records))) == 4


@pytest.mark.parametrize("body", ["", "x", "[]", "null", "{}", '{"Records": 3}', '{"Records": [null]}',
                                  '{"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": 3}]}'])
def test_other_bytes_are_told_as_such(body: str) -> None:
    with pytest.raises(ValueError):
        created(body)


def test_one_event_has_one_key_and_each_writing_another() -> None:
    def key(**more: Any) -> str:
        return created(message(event(**more)))[0].idempotency_key

    assert key() == key()
    assert len({key(), key(sequencer="0B"), key(key="up/b.mov"), key(bucket="other")}) == 4
    assert len(key()) <= 255
    assert key().isascii()


def test_without_a_sequencer_time_and_content_tell_one_writing_from_another() -> None:
    one = created(message(event(sequencer=None)))[0]
    other = created(message(event(sequencer=None, eTag="f")))[0]
    assert one.idempotency_key != other.idempotency_key


# --- what is taken, and where it goes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("bucket", "key", "taken"), [
    ("inbox", "up/a.mov", True), ("inbox", "up/b/c.mov", True), ("inbox", "other/a.mov", False), ("else", "up/a.mov", False),
    ("inbox", "up/a.mp4", False), ("inbox", "up/", False), ("inbox", "up/folder.mov/", False)])
def test_only_objects_under_the_prefix_with_the_suffix_are_taken(bucket: str, key: str, taken: bool) -> None:
    assert a_watch(suffix=".mov").takes(bucket, key) is taken


@pytest.mark.parametrize(("key", "extension", "dest"), [
    ("up/a.mov", "mp4", "s3://outbox/web/a.mp4"), ("up/2026/a.b.mov", "m4a", "s3://outbox/web/2026/a.b.m4a"),
    ("up/noext", "mp4", "s3://outbox/web/noext.mp4"), ("up/.hidden", "mp4", "s3://outbox/web/.hidden.mp4"),
    ("up/My Film.mov", "mp4", "s3://outbox/web/My Film.mp4"), ("up/a.mov", None, "s3://outbox/web/a/"),
    ("up/dotted.dir/film", "mp4", "s3://outbox/web/dotted.dir/film.mp4")])
def test_an_output_is_called_as_its_source_below_the_prefix(key: str, extension: str | None, dest: str) -> None:
    assert a_watch().dest_of(key, extension) == dest


def test_a_prefix_that_is_no_folder_leaves_the_rest_of_the_name() -> None:
    assert a_watch(prefix="up/film").dest_of("up/film-1.mov", "mp4") == "s3://outbox/web/-1.mp4"
    assert a_watch(prefix="up/film.mov").dest_of("up/film.mov", "mp4") == "s3://outbox/web/film.mp4"


# --- loops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "suffix", "dest", "extension", "loops"), [
    ("up/", "", "s3://inbox/up/", "mp4", True),
    ("up/", "", "s3://inbox/up/out/", "mp4", True),
    ("", "", "s3://inbox/anything/", "mp4", True),
    ("up/", "", "s3://inbox/", "mp4", True),  # a source up/up/x would be written to up/x
    ("up/", "", "s3://inbox/out/", "mp4", False),
    ("up/", "", "s3://other/up/", "mp4", False),
    ("up/", ".mov", "s3://inbox/up/", "mp4", False),
    ("up/", ".mp4", "s3://inbox/up/", "mp4", True),
    ("up/", "4", "s3://inbox/up/", "mp4", True),
    ("up/", "-raw.mp4", "s3://inbox/up/", "mp4", True),  # a source x-raw.mp4 keeps its stem
    ("up/", ".mov", "s3://inbox/up/", None, True)])  # several outputs may be called anything
def test_outputs_that_would_be_watched_for_are_refused(prefix: str, suffix: str, dest: str, extension: str | None,
                                                       loops: bool) -> None:
    one = a_watch(prefix=prefix, suffix=suffix, dest=dest)
    assert feeds(one, one, extension) is loops
    if loops:
        with pytest.raises(InputError, match="for ever"):
            watch.check(one, extension)
    else:
        watch.check(one, extension)


def test_what_loops_is_what_would_be_taken() -> None:
    """The rule against the thing itself: every output key that a watch would take is one that the rule refuses."""
    for prefix in ("", "up/", "up/x"):
        for suffix in ("", ".mp4", "p4", "-a.mp4"):
            for dest in ("s3://inbox/", "s3://inbox/up/", "s3://inbox/up/x/", "s3://inbox/out/"):
                one = a_watch(prefix=prefix, suffix=suffix, dest=dest)
                for rest in ("x-a.mp4", "up/x-a.mp4", "x/y-a.mp4"):
                    source = prefix + rest
                    out = one.dest_of(source, "mp4").removeprefix("s3://inbox/")
                    if one.takes("inbox", source) and one.takes("inbox", out):
                        assert feeds(one, one, "mp4"), (prefix, suffix, dest, source, out)


def test_watches_that_feed_one_another_are_a_circle_and_a_chain_is_none() -> None:
    first = a_watch(name="a", bucket="one", dest="s3://two/up/")
    second = a_watch(name="b", bucket="two", dest="s3://three/up/")
    third = a_watch(name="c", bucket="three", dest="s3://one/up/")
    assert circle([(first, "mp4"), (second, "mp4")]) == []
    assert sorted(circle([(first, "mp4"), (second, "mp4"), (third, "mp4")])) == ["a", "b", "c"]


# --- what is kept ------------------------------------------------------------------------------------------------------


def test_a_definition_survives_its_tags() -> None:
    one = a_watch(suffix=".mov", params={"width": "640", "title": "a b"}, priority="high", overwrite=True)
    kept = tags(one, "demo")
    assert kept["nommerd:cluster"] == "demo"
    assert from_tags("w", kept) == one
    assert all(len(key) <= 128 and len(value) <= 256 for key, value in kept.items())


@pytest.mark.parametrize("change", [
    {"nommerd:watch": "2"}, {"nommerd:watch": None}, {"nommerd:bucket": None}, {"nommerd:dest": "file:///x/"}])
def test_tags_that_are_no_definition_are_told(change: dict[str, str | None]) -> None:
    kept = {key: value for key, value in {**tags(a_watch(), "demo"), **change}.items() if value is not None}
    with pytest.raises(ConfigError, match="cannot be used"):
        from_tags("w", kept)


@pytest.mark.parametrize("more", [
    {"prefix": "x" * 257}, {"prefix": "a&b/"}, {"suffix": "(1).mov"}, {"dest": "s3://outbox/it's/"},
    {"params": {"filter": "scale=1,crop=2"}}, {"params": {f"p{n}": "1" for n in range(60)}}, {"params": {"p" * 120: "1"}}])
def test_what_does_not_fit_into_tags_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        watch.check(a_watch(**more), "mp4")
    assert refused.value.code == "request.does_not_fit"


@pytest.mark.parametrize("uri", ["inbox/up", "file:///x", "s3://KEY:SECRET-canary@inbox/up/", "s3://", "s3://IN/x", "http://a/b"])
def test_addresses_that_are_no_bucket_are_refused_unquoted(uri: str) -> None:
    with pytest.raises(InputError) as refused:
        watch.split(uri, "source")
    assert "canary" not in str(refused.value)


def test_default_names_are_told_apart_and_fit() -> None:
    names = {watch.default_name("inbox", prefix, suffix) for prefix in ("", "a/", "a", "a-") for suffix in ("", ".mov")}
    assert len(names) == 8
    for name in (*names, watch.default_name("b" * 63, "p" * 300, "")):
        assert len(watch.queue_name("nommerd", name)) <= 80


@pytest.mark.parametrize("name", ["", "a b", "-a", "ä", "x" * 41])
def test_names_that_no_queue_can_have_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        watch.queue_name("nommerd", name)


# --- what S3 is told ---------------------------------------------------------------------------------------------------


def test_a_notification_is_of_creations_under_the_prefix() -> None:
    made = notification(a_watch(suffix=".mov"), "arn:q", "id-1")
    assert made == {"Id": "id-1", "QueueArn": "arn:q", "Events": ["s3:ObjectCreated:*"], "Filter": {"Key": {"FilterRules": [
        {"Name": "prefix", "Value": "up/"}, {"Name": "suffix", "Value": ".mov"}]}}}
    assert "Filter" not in notification(a_watch(prefix=""), "arn:q", "id-1")


def test_special_characters_in_a_filter_are_escaped_as_s3_wants_them() -> None:
    rules = notification(a_watch(prefix="My Films/a+b@c/"), "arn:q", "id-1")["Filter"]["Key"]["FilterRules"]
    assert rules == [{"Name": "prefix", "Value": "My+Films/a%2Bb%40c/"}]


@pytest.mark.parametrize(("prefix", "suffix", "events", "overlaps"), [
    ("up/", "", ["s3:ObjectCreated:*"], True), ("up/2026/", "", ["s3:ObjectCreated:Put"], True),
    ("", "", ["s3:ObjectCreated:*"], True), ("other/", "", ["s3:ObjectCreated:*"], False),
    ("up/", ".jpg", ["s3:ObjectCreated:*"], False), ("up/", "", ["s3:ObjectRemoved:*"], False)])
def test_what_s3_would_not_have_beside_it_is_found(prefix: str, suffix: str, events: list[str], overlaps: bool) -> None:
    rules = [{"Name": "Prefix", "Value": prefix}, {"Name": "Suffix", "Value": suffix}]
    known = {"Id": "theirs", "Events": events, "LambdaFunctionArn": "x", "Filter": {"Key": {"FilterRules": rules}}}
    found = overlapping({"LambdaFunctionConfigurations": [known]}, a_watch(suffix=".mov"), "ours")
    assert found == ("theirs" if overlaps else None)
    assert overlapping({"QueueConfigurations": [known]}, a_watch(suffix=".mov"), "theirs") is None
