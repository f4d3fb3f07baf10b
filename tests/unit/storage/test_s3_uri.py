"""What s3: URIs say, what is refused, and what the operator's lists open."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nommerd.errors import ConfigError, InputError
from nommerd.logs import redact
from nommerd.secrets import has_secret, public_uri
from nommerd.storage import same_place
from nommerd.storage.base import Storage, StorageRegistry, name_of
from nommerd.storage.s3_uri import Allowed, Place, entry_of, is_bucket, parse, uri_of

CANARY = "canary-7f3a91"


@pytest.mark.parametrize(("uri", "bucket", "key", "credentials"), [
    ("s3://media/a.mp4", "media", "a.mp4", None),
    ("S3://media/a/b//c.mp4", "media", "a/b//c.mp4", None),
    ("s3://media//a", "media", "/a", None),
    ("s3://media/in/", "media", "in/", None),
    ("s3://media/", "media", "", None),
    ("s3://media", "media", "", None),
    ("s3://my.media-1/100%25 #1?.mp4", "my.media-1", "100%25 #1?.mp4", None),
    ("s3://media/user@host:1/a", "media", "user@host:1/a", None),
    ("s3://media/é漢.mp4", "media", "é漢.mp4", None),
    ("s3://AKIA:s/e+c/ret@media/a@b", "media", "a@b", ("AKIA", "s/e+c/ret")),
    ("s3://AKIA:secret@media/a@b/c:d@e", "media", "a@b/c:d@e", ("AKIA", "secret")),
    ("s3://AKIA:s%2Fe%40c%2Bret@media/a", "media", "a", ("AKIA", "s/e@c+ret")),
    ("s3://AKIA:se?cr#et=@media/a", "media", "a", ("AKIA", "se?cr#et=")),
    ("s3://AKIA:se:cret@media/a", "media", "a", ("AKIA", "se:cret")),
])
def test_a_uri_is_taken_apart_with_its_key_literal(uri: str, bucket: str, key: str,
                                                   credentials: tuple[str, str] | None) -> None:
    place = parse(uri)
    assert (place.bucket, place.key, place.credentials) == (bucket, key, credentials)
    assert place.own is (credentials is None)
    assert has_secret(uri) is (credentials is not None)


@pytest.mark.parametrize("uri", [
    "s3:media/a", "s3:/media/a", "https://media/a", "s3://", "s3:///a", "s3://AB/a", "s3://Media/a", "s3://a_b/a", "s3://a..b/a",
    "s3://a.-b/a", "s3://a-.b/a", "s3://-ab/a", "s3://192.168.0.1/a", f"s3://{'a' * 64}/a", "s3://arn:aws:s3:::media/a",
    "s3://media:9000/a", "s3://media/a/../b", "s3://media/./a", "s3://media/..", "s3://media/a\nb", "s3://media/a\x7f",
    f"s3://media/{'é' * 513}", "s3://media/\udcff", f"s3://AKIA@media/{CANARY}", f"s3://AKIA:@media/{CANARY}",
    f"s3://:{CANARY}@media/a", f"s3://AKIA:se/{CANARY}", f"s3://AKIA:{CANARY}@Media/a", f"s3://AKIA:{CANARY}@media/../b",
    "s3://@media/a", f"s3://AK%0AX-Y:{CANARY}@media/a", f"s3://AK%20IA:{CANARY}@media/a", f"s3://é:{CANARY}@media/a",
    f"s3://AKIA:{CANARY}%0D%0A@media/a", f"s3://A%00:{CANARY}@media/a",
])
def test_what_s3_would_refuse_or_others_would_mistake_is_refused_without_being_quoted(uri: str) -> None:
    for family in ("source", "dest"):
        with pytest.raises(InputError) as caught:
            parse(uri, family)
        assert caught.value.code == f"{family}.bad_uri"
        assert CANARY not in f"{caught.value}{caught.value!r}{caught.value.__context__!r}"


SECRET = st.text("abcXYZ0189+/=", min_size=1)
KEY = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=60).filter(
    lambda key: not {".", ".."} & set(key.split("/")))


@given(user=st.text("ABCXYZ0189", min_size=1), secret=SECRET, key=KEY)
def test_what_is_used_as_a_secret_is_what_is_hidden_as_one(user: str, secret: str, key: str) -> None:
    uri = f"s3://{user}:{secret}@media/{key}"
    assert parse(uri) == Place("media", key, (user, secret))
    assert public_uri(uri) == uri_of("media", key)
    assert parse(public_uri(uri)) == Place("media", key)
    assert secret not in repr(parse(uri)) or secret in key or secret in "Place(bucket='media', key=')"


@pytest.mark.parametrize("uri", [f"s3://AKIA:se/{CANARY}@media/a b", f"s3://AKIA:{CANARY}+/x@media/a@b?c",
                                 f"cannot use s3://AKIA:a/{CANARY}/b@media/a, sorry"])
def test_a_secret_shows_in_no_log(uri: str) -> None:
    assert CANARY not in redact(uri)
    assert "media/a" in redact(uri)


@pytest.mark.parametrize(("entry", "key", "open_"), [
    ("media", "a", True), ("media", "", True), ("media", "in/a", True), ("medium", "a", False),
    ("media/in", "in/a", True), ("media/in", "in/b/c", True), ("media/in", "in", True), ("media/in", "in/", True),
    ("media/in", "inbox", False), ("media/in", "inbox/a", False), ("media/in", "a", False), ("media/in", "", False),
    ("media/in", "/in/a", False), ("media/in", "IN/a", False),
    ("media/in/", "in/a", True), ("media/in/", "in/", True), ("media/in/", "in", False), ("media/in/", "inbox/a", False),
    ("media/a/b", "a/b/c", True), ("media/a/b", "a/c", False), ("media/a%2Fb", "a/b", False), ("media/", "a", True),
])
def test_an_entry_opens_a_bucket_or_whole_parts_of_a_path(entry: str, key: str, open_: bool) -> None:
    allowed = Allowed(["other", entry], "storage.s3_read")
    if open_:
        allowed.check(Place("media", key), "source")
    else:
        with pytest.raises(InputError, match=r"storage\.s3_read") as caught:
            allowed.check(Place("media", key), "source")
        assert caught.value.code == "source.outside_buckets"


@pytest.mark.parametrize("entry", ["s3://media/in", "Media", "media*", "media/in/*", "", "/in", "arn:aws:s3:::media"])
def test_an_entry_that_can_never_match_is_told_at_start(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Allowed([entry], "storage.s3_write")
    assert caught.value.place == "storage.s3_write"


def test_nothing_is_open_without_entries() -> None:
    with pytest.raises(InputError, match="is empty"):
        Allowed([], "storage.s3_read").check(Place("media", "a"), "source")


@pytest.mark.parametrize(("a", "b", "same"), [
    ("s3://media/a", "s3://media/a", True), ("s3://K:s/e@media/a", "S3://media/a", True),
    ("s3://media/a", "s3://media/b", False), ("s3://media/a%20b", "s3://media/a b", False),
    ("s3://media/a?b", "s3://media/a", False), ("s3://media/a", "s3://medium/a", False),
    ("s3://media/a", "https://media/a", False), ("s3://Bad/a", "s3://media/a", False)])
def test_two_uris_name_one_object_when_bucket_and_key_are_the_same(a: str, b: str, same: bool) -> None:
    assert same_place(a, b) is same
    assert same_place(b, a) is same


def test_names_are_those_of_the_scheme() -> None:
    assert name_of("s3://K:s/e@media/a/take #2 %41?.mp4") == "take #2 %41?.mp4"
    assert name_of("s3://media/a/") == ""
    assert name_of("file:///a/take%20%232.mp4") == "take #2.mp4"
    assert name_of("https://host/a/b%20c.mp4?sig=x#f") == "b c.mp4"


def test_the_entry_of_a_uri_opens_it_alone() -> None:
    for uri, other in (("s3://K:s@media/a b", "s3://media/a"), ("s3://media/in/", "s3://media/inbox")):
        allowed = Allowed([entry_of(uri)], "named")
        allowed.check(parse(uri), "source")
        with pytest.raises(InputError):
            allowed.check(parse(other), "source")
    Allowed([entry_of("s3://media/")], "named").check(parse("s3://media/x"), "dest")


def test_bucket_names_follow_aws() -> None:
    assert is_bucket("abc") and is_bucket("my.bucket-1") and is_bucket("1.2.3.4.5") and not is_bucket("1.2.3.4")


def test_a_key_may_look_like_an_address_of_a_host() -> None:
    backend = cast(Storage, object())
    assert StorageRegistry({"s3": backend}).for_uri("s3://AKIA:a/[b]@media/[c]") is backend
