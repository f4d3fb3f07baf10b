"""The bucket of the configuration and its policy; the rule for abandoned parts in the operator's buckets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nommerd.aws.account import Account, Outcome, Status, found, outcome, tag_map
from nommerd.aws.clients import error_code, status_of
from nommerd.aws.plan import BucketRule, Resource

DELETE_AT_ONCE = 1000  # keys of one DeleteObjects call
DENIED_BUCKET = "It belongs to another account, or these credentials may not use it."
ELSEWHERE = frozenset({"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})


@dataclass(frozen=True, slots=True)
class Aspect:
    """One setting of a bucket: how it is read, what it should be, how it is written."""

    words: str
    get: Callable[[], Any]
    wanted: Any
    put: Callable[[Any], object]


class Buckets:
    """AWS::S3::Bucket. One that is there without a tag is taken over if there is nothing in it but what feeders of this
    cluster put there: they make the bucket, too, where it is missing."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        s3, name = account.clients("s3"), resource.name
        state = bucket_state(s3, name)
        if state is not None and state != "there":
            return outcome(resource, Status.DIFFERS, state)
        if state is None:
            s3.create_bucket(Bucket=name, **_location(account.place.region))
            account.wait(f"the bucket {name} is there", lambda: True if bucket_state(s3, name) == "there" else None, 60.0)
        tags = bucket_tags(s3, name)
        why = account.not_ours(tags)
        if why and (tags or not _only_ours(s3, name, account.cluster)):
            return outcome(resource, Status.DIFFERS, why)
        if why:
            s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": resource.properties["Tags"]})
        changed = []
        for aspect in _aspects(s3, name, resource.properties):
            if aspect.get() != aspect.wanted:
                aspect.put(aspect.wanted)
                changed.append(aspect.words)
        if state is None:
            return outcome(resource, Status.MADE)
        return outcome(resource, Status.CHANGED if changed or why else Status.EXISTS, ", ".join(changed))

    def remove(self, account: Account, resource: Resource) -> Outcome:
        s3, name = account.clients("s3"), resource.name
        state = bucket_state(s3, name)
        if state is None:
            return outcome(resource, Status.ABSENT)
        if state != "there":
            return outcome(resource, Status.LEFT, state)
        why = account.left(bucket_tags(s3, name))
        if why:
            return outcome(resource, Status.LEFT, why)
        account.say(f"emptying the bucket {name}")
        _empty(s3, name)
        found(lambda: s3.delete_bucket(Bucket=name))
        return outcome(resource, Status.REMOVED)


class BucketPolicies:
    """AWS::S3::BucketPolicy."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        s3, name, wanted = account.clients("s3"), resource.name, resource.properties["PolicyDocument"]
        if bucket_state(s3, name) != "there" or account.not_ours(bucket_tags(s3, name)):
            return outcome(resource, Status.DIFFERS, "Its bucket is not this cluster's.")
        answer = found(lambda: s3.get_bucket_policy(Bucket=name))
        if answer and json.loads(answer["Policy"]) == wanted:
            return outcome(resource, Status.EXISTS)
        s3.put_bucket_policy(Bucket=name, Policy=json.dumps(wanted))
        return outcome(resource, Status.CHANGED if answer else Status.MADE)

    def remove(self, account: Account, resource: Resource) -> Outcome:
        s3, name = account.clients("s3"), resource.name
        if bucket_state(s3, name) != "there" or not found(lambda: s3.get_bucket_policy(Bucket=name)):
            return outcome(resource, Status.ABSENT)
        why = account.left(bucket_tags(s3, name))
        if why:
            return outcome(resource, Status.LEFT, why)
        s3.delete_bucket_policy(Bucket=name)
        return outcome(resource, Status.REMOVED)


def bucket_state(s3: Any, name: str) -> str | None:
    """`there`, None where there is none, else why it cannot be used."""
    from botocore.exceptions import ClientError

    try:
        s3.head_bucket(Bucket=name)
        return "there"
    except ClientError as error:
        status = status_of(error)
        if status == 404:
            return None
        if status == 403:
            return DENIED_BUCKET
        if status == 301 or error_code(error) in ELSEWHERE:
            return "It is in another region: set aws.region, or use another bucket."
        raise


def bucket_tags(s3: Any, name: str) -> dict[str, str]:
    return tag_map((found(lambda: s3.get_bucket_tagging(Bucket=name)) or {}).get("TagSet"))


def _location(region: str) -> dict[str, Any]:
    """us-east-1 is what is meant without one, and may not be said."""
    return {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}


def _only_ours(s3: Any, name: str, cluster: str) -> bool:
    """Whether nothing is in it but this cluster's configurations."""
    answer = s3.list_object_versions(Bucket=name)
    keys = [item["Key"] for kind in ("Versions", "DeleteMarkers") for item in answer.get(kind) or ()]
    return not answer.get("IsTruncated") and all(key.startswith(f"nommerd/{cluster}/") for key in keys)


def _aspects(s3: Any, name: str, wanted: Mapping[str, Any]) -> list[Aspect]:
    def read(call: Callable[..., Any], key: str) -> Callable[[], Any]:
        return lambda: (found(lambda: call(Bucket=name)) or {}).get(key)

    encryption = {"Rules": [
        {"ApplyServerSideEncryptionByDefault": rule["ServerSideEncryptionByDefault"]}
        for rule in wanted["BucketEncryption"]["ServerSideEncryptionConfiguration"]]}

    def encrypted() -> Any:
        rules = (read(s3.get_bucket_encryption, "ServerSideEncryptionConfiguration")() or {}).get("Rules") or ()
        key = "ApplyServerSideEncryptionByDefault"
        return {"Rules": [{key: rule[key]} for rule in rules]}  # AWS adds whether bucket keys are used, and more with time

    rules = sorted(map(_api_rule, wanted["LifecycleConfiguration"]["Rules"]), key=_id)
    return [
        Aspect("public access blocked", read(s3.get_public_access_block, "PublicAccessBlockConfiguration"),
               wanted["PublicAccessBlockConfiguration"],
               lambda value: s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=value)),
        Aspect("ownership", read(s3.get_bucket_ownership_controls, "OwnershipControls"), wanted["OwnershipControls"],
               lambda value: s3.put_bucket_ownership_controls(Bucket=name, OwnershipControls=value)),
        Aspect("encryption", encrypted, encryption,
               lambda value: s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration=value)),
        Aspect("versioning", read(s3.get_bucket_versioning, "Status"), wanted["VersioningConfiguration"]["Status"],
               lambda value: s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": value})),
        Aspect("lifecycle", lambda: sorted(map(_comparable, _rules(s3, name)[0]), key=_id), rules,
               lambda value: _put_rules(s3, name, value, {})),
    ]


def _id(rule: Mapping[str, Any]) -> str:
    return str(rule.get("ID", ""))


def _api_rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    """A rule of CloudFormation's as S3 takes it."""
    rest = {key: value for key, value in rule.items() if key not in ("Id", "Prefix")}
    return {"ID": rule["Id"], "Filter": {"Prefix": rule.get("Prefix", "")}, **rest}


def _comparable(rule: Mapping[str, Any]) -> dict[str, Any]:
    """A rule as S3 gives it, with its prefix where we write it."""
    rest = {key: value for key, value in rule.items() if key not in ("Prefix", "Filter")}
    return {**rest, "Filter": rule.get("Filter") or {"Prefix": rule.get("Prefix", "")}}


def _empty(s3: Any, name: str) -> None:
    """Every version, every delete marker, every open upload."""
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=name):
        keys = [{"Key": item["Key"], "VersionId": item["VersionId"]}
                for kind in ("Versions", "DeleteMarkers") for item in page.get(kind) or ()]
        for start in range(0, len(keys), DELETE_AT_ONCE):
            s3.delete_objects(Bucket=name, Delete={"Objects": keys[start:start + DELETE_AT_ONCE], "Quiet": True})
    for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=name):
        for upload in page.get("Uploads") or ():
            found(lambda one=upload: s3.abort_multipart_upload(  # type: ignore[misc]
                Bucket=name, Key=one["Key"], UploadId=one["UploadId"]))


# --- the operator's buckets ----------------------------------------------------------------------------------------

RULE_TYPE = "lifecycle rule"


def ensure_rule(account: Account, rule: BucketRule, *, add: bool, endpoint_url: str | None = None) -> Outcome:
    """See to the rule for abandoned parts; with `add` put it there, beside all others. Never touches another rule."""
    s3 = account.clients("s3", endpoint_url=endpoint_url)
    state = bucket_state(s3, rule.bucket)
    if state != "there":
        return _told(rule, Status.DIFFERS, state or "There is no such bucket; storage.s3_write names it.")
    there, more = _rules(s3, rule.bucket)
    if any(_does_it(known, rule) for known in there):
        return _told(rule, Status.EXISTS)
    if not add:
        return _told(rule, Status.SKIPPED, "The bucket is yours: run with --buckets to have the rule added, or add it: "
                     + json.dumps(rule.rule, separators=(",", ":")))
    kept = [known for known in there if known.get("ID") != rule.id]
    _put_rules(s3, rule.bucket, [*kept, _in_the_style_of(kept, rule)], more)
    return _told(rule, Status.CHANGED if len(kept) < len(there) else Status.MADE)


def remove_rule(account: Account, rule: BucketRule, *, endpoint_url: str | None = None) -> Outcome:
    """Take our rule away again; all others stay."""
    s3 = account.clients("s3", endpoint_url=endpoint_url)
    if bucket_state(s3, rule.bucket) != "there":
        return _told(rule, Status.ABSENT)
    there, more = _rules(s3, rule.bucket)
    kept = [known for known in there if known.get("ID") != rule.id]
    if len(kept) == len(there):
        return _told(rule, Status.ABSENT)
    if kept:
        _put_rules(s3, rule.bucket, kept, more)
    else:
        s3.delete_bucket_lifecycle(Bucket=rule.bucket)
    return _told(rule, Status.REMOVED)


def _rules(s3: Any, bucket: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The bucket's rules, and what else must be sent back with them."""
    answer = found(lambda: s3.get_bucket_lifecycle_configuration(Bucket=bucket)) or {}
    size = answer.get("TransitionDefaultMinimumObjectSize")
    return list(answer.get("Rules") or ()), {"TransitionDefaultMinimumObjectSize": size} if size else {}


def _put_rules(s3: Any, bucket: str, rules: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> None:
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": list(rules)}, **more)


def _does_it(known: Mapping[str, Any], rule: BucketRule) -> bool:
    """Whether a rule that is there ends abandoned uploads under this prefix, whatever it is called."""
    filter_ = known.get("Filter")
    prefix = known.get("Prefix", "") if filter_ is None else filter_.get("Prefix", "") if set(filter_) <= {"Prefix"} else None
    return (known.get("Status") == "Enabled" and "AbortIncompleteMultipartUpload" in known and prefix is not None
            and rule.prefix.startswith(prefix))


def _in_the_style_of(others: list[dict[str, Any]], rule: BucketRule) -> dict[str, Any]:
    """S3 refuses a mixture of rules with `Prefix` (the older form) and with `Filter`."""
    if not any("Prefix" in known for known in others):
        return rule.rule
    return {**{key: value for key, value in rule.rule.items() if key != "Filter"}, "Prefix": rule.prefix}


def _told(rule: BucketRule, status: Status, detail: str = "") -> Outcome:
    return Outcome(RULE_TYPE, f"{rule.bucket}/{rule.prefix}" if rule.prefix else rule.bucket, status, detail)
