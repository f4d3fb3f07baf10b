"""A watch: objects that appear in a bucket under a prefix become jobs. What it is, and what S3 says of it; pure.

The definition is kept in the tags of the watch's queue, so that a feeder finds it there, and needs nothing else. Nothing of
it is secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import quote_plus, unquote_plus

from nommerd.aws import names
from nommerd.errors import ConfigError, InputError

SCHEMA = "1"
TAG = "nommerd:watch"  # its value is the schema
PARAM_TAG = "nommerd:set:"
TAGS_MAX = 50
TAG_KEY_MAX = 128
TAG_VALUE_MAX = 256
NAME_MAX = 80  # of a queue
SAFE_IN_FILTER = "/!*'()"  # of S3's safe characters those that quote_plus would escape; `*` is refused
_TAG_TEXT = re.compile(r"[\w\s.:/=+\-@]*")  # what AWS takes in tags: letters, digits, space and _.:/=+-@
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

Priority = Literal["high", "normal", "low"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """`dest` is the `s3://BUCKET/PREFIX/` under which outputs are called as their sources are below `prefix`."""

    name: str
    bucket: str
    prefix: str
    suffix: str
    dest: str
    preset: str
    params: Mapping[str, str] = field(default_factory=dict)  # as they were written: NAME=TEXT
    priority: str = "normal"
    overwrite: bool = False

    @property
    def source(self) -> str:
        """For people."""
        return f"s3://{self.bucket}/{self.prefix}" + (f"*{self.suffix}" if self.suffix else "")

    def takes(self, bucket: str, key: str) -> bool:
        """Whether an object is one that is watched for. A key that ends in `/` is a folder that somebody made by hand."""
        return (bucket == self.bucket and key.startswith(self.prefix) and key.endswith(self.suffix)
                and not key.endswith("/"))

    def dest_of(self, key: str, extension: str | None) -> str:
        """The destination for the object `key`. `extension` without its dot; None for several outputs, which get a folder."""
        below = key[len(self.prefix):].lstrip("/") or key.rpartition("/")[2]
        folder, slash, leaf = below.rpartition("/")
        stem = leaf[:leaf.rindex(".")] if "." in leaf[1:] else leaf
        return f"{self.dest}{folder}{slash}{stem}" + ("/" if extension is None else f".{extension}")

    def json(self) -> dict[str, Any]:
        return {"name": self.name, "source": f"s3://{self.bucket}/{self.prefix}", "suffix": self.suffix, "dest": self.dest,
                "preset": self.preset, "params": dict(self.params), "priority": self.priority, "overwrite": self.overwrite}


# --- making one ------------------------------------------------------------------------------------------------------


def split(uri: str, option: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://BUCKET/PREFIX`. Raises InputError; an address with credentials is refused unseen."""
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme.lower() != "s3" or not _BUCKET.fullmatch(bucket):
        raise InputError("source.bad_uri", f"{option} takes s3://BUCKET/PREFIX, without credentials.", place=option)
    return bucket, prefix


def default_name(bucket: str, prefix: str, suffix: str) -> str:
    """A name that these three always have, and no others: readable in front, a digest behind."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{bucket}-{prefix}").strip("-")[:31].strip("-")
    return f"{words}-{sha256(f'{bucket}/{prefix}*{suffix}'.encode()).hexdigest()[:8]}"


def queue_name(bus_prefix: str, name: str) -> str:
    """The queue of a watch. Raises InputError where that would be no name for a queue."""
    queue = names.watch_prefix(bus_prefix) + name
    if not _NAME.fullmatch(name) or len(queue) > NAME_MAX:
        most = min(40, NAME_MAX - len(queue) + len(name))
        raise InputError("request.invalid", f"{name!r} cannot name a watch.",
                         f"Use letters, digits, hyphens and underscores, {most} at most.", place="--name")
    return queue


def check(watch: Watch, extension: str | None) -> None:
    """Refuse what would go wrong. `extension`: of its outputs, None for any. Raises InputError."""
    if not watch.dest.endswith("/"):
        raise InputError("dest.not_a_folder", f"{watch.dest} names one object.", "End --dest with `/`.", place="--dest")
    if "*" in watch.prefix + watch.suffix:
        raise InputError("source.bad_uri", "S3 knows no wildcards in prefixes and suffixes.",
                         "Give the beginning of the keys, and with --suffix their end.", place="source")
    if feeds(watch, watch, extension):
        raise InputError("dest.watched", f"Outputs under {watch.dest} would be watched for, and encoded again for ever.",
                         "Choose a destination outside the watched prefix, or a --suffix that outputs do not have.",
                         place="--dest")
    for option, text in (("source", watch.prefix), ("--suffix", watch.suffix), ("--dest", watch.dest), ("-p", watch.preset)):
        _check_tag(option, text)
    for key, text in watch.params.items():
        _check_tag(f"--set {key}", text)
        if len(PARAM_TAG + key) > TAG_KEY_MAX or not _TAG_TEXT.fullmatch(key):
            raise InputError("request.does_not_fit", f"The param name {key!r} cannot be kept in a tag.", place="--set")
    if len(tags(watch, "x")) > TAGS_MAX:
        raise InputError("request.does_not_fit", f"A watch keeps {TAGS_MAX} tags, and these are more params than that leaves.",
                         "Put them into a preset of your own.", place="--set")


def _check_tag(option: str, text: str) -> None:
    """The definition is kept in the queue's tags: what does not fit there cannot be kept."""
    if len(text) > TAG_VALUE_MAX:
        raise InputError("request.does_not_fit", f"{option} has {len(text)} characters; a tag, where it is kept, has "
                         f"{TAG_VALUE_MAX}.", "Shorten it, or put params into a preset of your own.", place=option)
    odd = sorted({c for c in text if not _TAG_TEXT.fullmatch(c)})
    if odd:
        raise InputError("request.does_not_fit", f"{option} holds {' '.join(odd[:8])}, which a tag, where it is kept, cannot.",
                         "Letters, digits, spaces and _.:/=+-@ fit. Params can go into a preset of your own.", place=option)


def feeds(one: Watch, other: Watch, extension: str | None) -> bool:
    """Whether an output of `one` could be an object that `other` watches for."""
    bucket, prefix = split(one.dest, "--dest")
    if bucket != other.bucket or not (prefix.startswith(other.prefix) or other.prefix.startswith(prefix)):
        return False
    if extension is None or not other.suffix:
        return True
    end = f".{extension}"
    return end.endswith(other.suffix) or other.suffix.endswith(end)


def circle(watches: Iterable[tuple[Watch, str | None]]) -> list[str]:
    """Names of watches that feed one another in a circle, if some do. Each with the extension of its outputs."""
    known = list(watches)
    next_of = {w.name: [other.name for other, _ in known if feeds(w, other, extension)] for w, extension in known}

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name):]
        return next((found for after in next_of[name] if (found := walk(after, [*path, name]))), [])

    return next((found for name in next_of if (found := walk(name, []))), [])


# --- tags ------------------------------------------------------------------------------------------------------------


def tags(watch: Watch, cluster: str) -> dict[str, str]:
    """The definition as tags of its queue."""
    return {names.CLUSTER_TAG: cluster, TAG: SCHEMA, "nommerd:bucket": watch.bucket, "nommerd:prefix": watch.prefix,
            "nommerd:suffix": watch.suffix, "nommerd:dest": watch.dest, "nommerd:preset": watch.preset,
            "nommerd:priority": watch.priority, "nommerd:overwrite": "true" if watch.overwrite else "false",
            **{PARAM_TAG + key: text for key, text in watch.params.items()}}


def from_tags(name: str, given: Mapping[str, str]) -> Watch:
    """The definition in a queue's tags. Raises ConfigError config.bad_watch for what no version of ours wrote, or a newer."""
    schema = given.get(TAG)
    if schema != SCHEMA:
        why = "its queue has no definition" if schema is None else f"it is of schema {schema}, and {SCHEMA} is known here"
        raise ConfigError("config.bad_watch", f"The watch {name} cannot be used: {why}.",
                          "Upgrade the feeder, or make the watch anew: nommerd aws watch.")
    try:
        watch = Watch(name=name, bucket=given["nommerd:bucket"], prefix=given.get("nommerd:prefix", ""),
                      suffix=given.get("nommerd:suffix", ""), dest=given["nommerd:dest"], preset=given["nommerd:preset"],
                      params={key.removeprefix(PARAM_TAG): text for key, text in given.items() if key.startswith(PARAM_TAG)},
                      priority=given.get("nommerd:priority", "normal"), overwrite=given.get("nommerd:overwrite") == "true")
        split(watch.dest, "--dest")
    except (KeyError, InputError) as error:
        raise ConfigError("config.bad_watch", f"The watch {name} cannot be used: {error}.",
                          "Make it anew: nommerd aws watch.") from None
    return watch


# --- what S3 is told, and says ------------------------------------------------------------------------------------------


def notification(watch: Watch, queue_arn: str, id: str) -> dict[str, Any]:
    """The watch as a QueueConfiguration of its bucket. S3 wants a space as `+` and other special characters escaped."""
    rules = [{"Name": name, "Value": quote_plus(text, safe=SAFE_IN_FILTER)}
             for name, text in (("prefix", watch.prefix), ("suffix", watch.suffix)) if text]
    made: dict[str, Any] = {"Id": id, "QueueArn": queue_arn, "Events": ["s3:ObjectCreated:*"]}
    return made | ({"Filter": {"Key": {"FilterRules": rules}}} if rules else {})


def overlapping(configuration: Mapping[str, Any], watch: Watch, id: str) -> str | None:
    """The ID of a notification that S3 would not have beside this one: of an object's creation, with overlapping filters."""
    for kind in ("QueueConfigurations", "TopicConfigurations", "LambdaFunctionConfigurations"):
        for known in configuration.get(kind) or ():
            created = any(event.startswith("s3:ObjectCreated:") for event in known["Events"])
            if known.get("Id") == id or not created:
                continue
            prefix, suffix = _filter(known)
            if _one_begins(prefix, watch.prefix) and _one_begins(suffix[::-1], watch.suffix[::-1]):
                return str(known.get("Id") or "(without an ID)")
    return None


def _filter(known: Mapping[str, Any]) -> tuple[str, str]:
    rules = {rule["Name"].lower(): unquote_plus(rule["Value"])
             for rule in known.get("Filter", {}).get("Key", {}).get("FilterRules") or ()}
    return rules.get("prefix", ""), rules.get("suffix", "")


def _one_begins(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


@dataclass(frozen=True, slots=True)
class Created:
    """One object that appeared. `sequencer` tells one writing of a key from the next."""

    bucket: str
    key: str
    sequencer: str

    @property
    def idempotency_key(self) -> str:
        """The same for each delivery of one event, so that it makes one job."""
        digest = sha256("\0".join((self.bucket, self.key, self.sequencer)).encode("utf-8", "surrogatepass")).hexdigest()
        return f"s3-event-{digest}"


def created(body: str) -> list[Created]:
    """The objects that a message says appeared; none for S3's test event and for other events. Raises ValueError for
    bytes that S3 does not send."""
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("no object")
    if message.get("Event") == "s3:TestEvent":
        return []
    try:
        return [_created(record) for record in message["Records"]
                if record.get("eventSource") == "aws:s3" and str(record["eventName"]).startswith("ObjectCreated:")]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _created(record: Mapping[str, Any]) -> Created:
    """Keys are escaped as in a form: `+` is a space. S3 numbers each writing of a key; others at least say when and what."""
    entity = record["s3"]
    thing = entity["object"]
    sequencer = thing.get("sequencer") or "|".join(
        str(part) for part in (record.get("eventTime"), thing.get("versionId"), thing.get("eTag")))
    return Created(str(entity["bucket"]["name"]), unquote_plus(str(thing["key"]), errors="strict"), str(sequencer))
