"""Watches in the account: their queues, and the notifications of the buckets they watch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nommerd.aws import names, policies, watch
from nommerd.aws.account import Account, Outcome, Status, found
from nommerd.aws.clients import error_code
from nommerd.aws.faults import told
from nommerd.aws.make_s3 import bucket_state
from nommerd.aws.make_sqs import attributes, change_queue_attributes, make_queue, queue_tags, queue_url
from nommerd.aws.watch import Watch
from nommerd.errors import ConfigError, InputError, NommerdError

VISIBILITY_SECONDS = 60  # for one batch of events to become jobs
RETENTION_SECONDS = 14 * 86400  # SQS's longest: a feeder may be away for long
MAX_RECEIVES = 100  # more than an hour of faults that are not the event's; then it is in the dead-letter queue
POLICY_SECONDS = 90.0  # SQS says that a new policy may take 60
QUEUE_TYPE, NOTIFICATION_TYPE = "watch queue", "bucket notification"


def dead_name(prefix: str) -> str:
    """The dead-letter queue of all watches."""
    return f"{prefix}-watches-dead"


def queue_attributes(account: Account, prefix: str, name: str, bucket: str) -> dict[str, Any]:
    """Of the queue `name`, in CloudFormation's form."""
    place = account.place
    return {
        "MessageRetentionPeriod": RETENTION_SECONDS, "ReceiveMessageWaitTimeSeconds": 20, "SqsManagedSseEnabled": True,
        "VisibilityTimeout": VISIBILITY_SECONDS,
        "Policy": policies.bucket_may_send(place.arn("sqs", name), bucket, place),
        "RedrivePolicy": {"deadLetterTargetArn": place.arn("sqs", dead_name(prefix)), "maxReceiveCount": MAX_RECEIVES}}


def add_watch(account: Account, prefix: str, wanted: Watch, *, endpoint_url: str | None = None) -> Iterator[Outcome]:
    """Make the queue, or bring it up to date, and add the notification to the bucket's. Raises NommerdError."""
    with told():
        s3 = account.clients("s3", endpoint_url=endpoint_url)
        name = watch.queue_name(prefix, wanted.name)
        arn = account.place.arn("sqs", name)
        _check_bucket(account, s3, wanted.bucket)
        _refuse_overlap(_notifications(account, s3, wanted.bucket), wanted, name)
        yield _ensure_queue(account, dead_name(prefix), {"MessageRetentionPeriod": RETENTION_SECONDS,
                                                         "SqsManagedSseEnabled": True}, {names.CLUSTER_TAG: account.cluster})
        yield _ensure_queue(account, name, queue_attributes(account, prefix, name, wanted.bucket),
                            watch.tags(wanted, account.cluster))
        yield _ensure_notification(account, s3, wanted, arn, name)


def remove_watch(account: Account, prefix: str, name: str, *, endpoint_url: str | None = None) -> Iterator[Outcome]:
    """Take the notification away, then the queue with what is in it. Raises InputError for a name that no watch has."""
    with told():
        sqs, queue = account.clients("sqs"), watch.queue_name(prefix, name)
        url = queue_url(sqs, queue)
        if url is None:
            raise InputError("request.unknown_watch", f"There is no watch {name}.", "nommerd aws watch --list tells them.")
        given = queue_tags(sqs, url)
        why = account.not_ours(given)
        if why:
            yield Outcome(QUEUE_TYPE, queue, Status.LEFT, why)
            return
        bucket = given.get("nommerd:bucket")
        if bucket:
            yield _remove_notification(account, account.clients("s3", endpoint_url=endpoint_url), bucket, queue)
        found(lambda: sqs.delete_queue(QueueUrl=url))
        yield Outcome(QUEUE_TYPE, queue, Status.REMOVED)


def remove_watches(account: Account, prefix: str, *, endpoint_url: str | None = None) -> Iterator[Outcome]:
    """All of them, and their dead-letter queue."""
    sqs = account.clients("sqs")
    for name in watch_names(sqs, prefix):
        yield from remove_watch(account, prefix, name, endpoint_url=endpoint_url)
    url = queue_url(sqs, dead_name(prefix))
    if url is not None and not account.not_ours(queue_tags(sqs, url)):
        found(lambda: sqs.delete_queue(QueueUrl=url))
        yield Outcome(QUEUE_TYPE, dead_name(prefix), Status.REMOVED)


def watch_queues(sqs: Any, prefix: str) -> dict[str, str]:
    """Watches by name, with their queues' URLs. SQS may take a minute to list a new queue, or to forget one."""
    start = names.watch_prefix(prefix)
    pages = sqs.get_paginator("list_queues").paginate(QueueNamePrefix=start, PaginationConfig={"PageSize": 1000})
    urls = [str(url) for page in pages for url in page.get("QueueUrls") or ()]
    return {url.rpartition("/")[2].removeprefix(start): url for url in sorted(urls)}


def watch_names(sqs: Any, prefix: str) -> list[str]:
    return list(watch_queues(sqs, prefix))


def read_watch(sqs: Any, name: str, url: str, cluster: str) -> Watch | None:
    """The definition in the tags of a watch's queue; None where the queue is gone, or another cluster's. Raises ConfigError
    for one that cannot be read."""
    answer = found(lambda: sqs.list_queue_tags(QueueUrl=url))
    if answer is None:
        return None
    given = answer.get("Tags") or {}
    return watch.from_tags(name, given) if given.get(names.CLUSTER_TAG) == cluster else None


def watches(account: Account, prefix: str) -> tuple[list[Watch], list[NommerdError]]:
    """All watches, and what is wrong with those that cannot be read."""
    sqs = account.clients("sqs")
    known: list[Watch] = []
    faults: list[NommerdError] = []
    with told():
        for name, url in watch_queues(sqs, prefix).items():
            try:
                one = read_watch(sqs, name, url, account.cluster)
            except ConfigError as error:
                faults.append(error)
            else:
                known += [one] if one is not None else []
    return known, faults


# --- parts -----------------------------------------------------------------------------------------------------------


def _ensure_queue(account: Account, name: str, wanted: Mapping[str, Any], tags: Mapping[str, str]) -> Outcome:
    sqs = account.clients("sqs")
    url = queue_url(sqs, name)
    if url is None:
        make_queue(account, name, attributes(wanted), tags)
        return Outcome(QUEUE_TYPE, name, Status.MADE)
    known = queue_tags(sqs, url)
    why = account.not_ours(known)
    if why:
        raise ConfigError("config.aws_refused", f"The queue {name} is there already. {why}", place="bus")
    changed = change_queue_attributes(sqs, url, wanted)
    if any(known.get(key) != text for key, text in tags.items()):
        sqs.tag_queue(QueueUrl=url, Tags=dict(tags))
        changed.append("the definition")
    stale = [key for key in known if key.startswith(watch.PARAM_TAG) and key not in tags]
    if stale:
        sqs.untag_queue(QueueUrl=url, TagKeys=stale)
        changed.append("params")
    return Outcome(QUEUE_TYPE, name, Status.CHANGED if changed else Status.EXISTS, ", ".join(changed))


def _check_bucket(account: Account, s3: Any, bucket: str) -> None:
    """S3 sends to queues of the bucket's own region alone."""
    state = bucket_state(s3, bucket)
    if state != "there":
        raise InputError("source.not_found", f"The bucket {bucket} cannot be watched.", state or "There is none.",
                         place="source")
    region = s3.get_bucket_location(Bucket=bucket).get("LocationConstraint") or "us-east-1"
    if {"EU": "eu-west-1"}.get(region, region) != account.place.region:
        raise InputError("source.refused", f"The bucket {bucket} is in {region}, the queues are in {account.place.region}.",
                         "S3 sends events within one region only.", place="source")


def _notifications(account: Account, s3: Any, bucket: str) -> dict[str, Any]:
    answer = s3.get_bucket_notification_configuration(Bucket=bucket, ExpectedBucketOwner=account.place.account)
    return {key: value for key, value in answer.items() if key != "ResponseMetadata"}


def _refuse_overlap(configuration: Mapping[str, Any], wanted: Watch, id: str) -> None:
    other = watch.overlapping(configuration, wanted, id)
    if other is not None:
        raise InputError("source.watched", f"{wanted.bucket} already sends these events elsewhere: notification {other}.",
                         "S3 allows one receiver for each prefix and suffix: choose others, or remove that notification.",
                         place="source")


def _ensure_notification(account: Account, s3: Any, wanted: Watch, arn: str, id: str) -> Outcome:
    """Beside those that are there; no other is touched."""
    name = f"{wanted.bucket}: {id}"
    configuration = _notifications(account, s3, wanted.bucket)
    _refuse_overlap(configuration, wanted, id)
    ours = watch.notification(wanted, arn, id)
    known = list(configuration.get("QueueConfigurations") or ())
    there = [one for one in known if one.get("Id") == id]
    if [_comparable(one) for one in there] == [_comparable(ours)]:
        return Outcome(NOTIFICATION_TYPE, name, Status.EXISTS)
    others = [one for one in known if one.get("Id") != id]
    account.wait(f"S3 may send to the queue {id}", lambda: _put(
        account, s3, wanted.bucket, {**configuration, "QueueConfigurations": [*others, ours]}), POLICY_SECONDS)
    return Outcome(NOTIFICATION_TYPE, name, Status.CHANGED if there else Status.MADE)


def _put(account: Account, s3: Any, bucket: str, configuration: Mapping[str, Any]) -> bool | None:
    """None while S3 cannot send to the queue yet: it tries when it is told."""
    try:
        s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=dict(configuration),
                                                 ExpectedBucketOwner=account.place.account)
    except Exception as error:
        if error_code(error) == "InvalidArgument" and "validate" in str(error):
            return None
        raise
    return True


def _remove_notification(account: Account, s3: Any, bucket: str, id: str) -> Outcome:
    name = f"{bucket}: {id}"
    if bucket_state(s3, bucket) != "there":
        return Outcome(NOTIFICATION_TYPE, name, Status.ABSENT)
    configuration = _notifications(account, s3, bucket)
    known = list(configuration.get("QueueConfigurations") or ())
    others = [one for one in known if one.get("Id") != id]
    if len(others) == len(known):
        return Outcome(NOTIFICATION_TYPE, name, Status.ABSENT)
    _put(account, s3, bucket, {**configuration, "QueueConfigurations": others})
    return Outcome(NOTIFICATION_TYPE, name, Status.REMOVED)


def _comparable(one: Mapping[str, Any]) -> str:
    """S3 gives names of rules with a capital letter, and in an order of its own."""
    rules = one.get("Filter", {}).get("Key", {}).get("FilterRules") or ()
    return json.dumps([one["QueueArn"], sorted(one["Events"]), sorted((r["Name"].lower(), r["Value"]) for r in rules)])


