"""The table, or the domain, that holds the job records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nommerd.aws.account import Account, Outcome, Status, found, outcome, tag_map
from nommerd.aws.plan import Resource

READY_SECONDS = 600.0  # for a new table or index; seconds while it is empty
CREATE_KEYS = ("AttributeDefinitions", "BillingMode", "DeletionProtectionEnabled", "GlobalSecondaryIndexes", "KeySchema",
               "TableName", "Tags")


class Tables:
    """AWS::DynamoDB::Table."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        dynamo, wanted = account.clients("dynamodb"), resource.properties
        there = _describe(dynamo, resource.name)
        if there is None:
            dynamo.create_table(**create_arguments(wanted))
            _wait_active(account, resource.name)
            self._settle(account, resource)
            return outcome(resource, Status.MADE)
        why = account.not_ours(_tags(dynamo, there["TableArn"])) or _cannot_become(there, wanted)
        if why:
            return outcome(resource, Status.DIFFERS, why)
        _wait_active(account, resource.name)
        changed = [*self._add_indexes(account, there, wanted), *self._settle(account, resource)]
        return outcome(resource, Status.CHANGED if changed else Status.EXISTS, ", ".join(changed))

    def remove(self, account: Account, resource: Resource) -> Outcome:
        dynamo, name = account.clients("dynamodb"), resource.name
        there = _describe(dynamo, name)
        if there is None:
            return outcome(resource, Status.ABSENT)
        why = account.left(_tags(dynamo, there["TableArn"]))
        if why:
            return outcome(resource, Status.LEFT, why)
        if there["TableStatus"] != "DELETING":
            _wait_active(account, name)
            if there.get("DeletionProtectionEnabled"):
                dynamo.update_table(TableName=name, DeletionProtectionEnabled=False)
                _wait_active(account, name)
            dynamo.delete_table(TableName=name)
        account.wait(f"the table {name} is gone", lambda: True if _describe(dynamo, name) is None else None, READY_SECONDS)
        return outcome(resource, Status.REMOVED)

    def _settle(self, account: Account, resource: Resource) -> list[str]:
        """What create_table does not take, or may have been changed since; what had to be changed."""
        dynamo, name, wanted = account.clients("dynamodb"), resource.name, resource.properties
        changed = []
        ttl = wanted.get("TimeToLiveSpecification")
        if ttl and not _expires(dynamo, name, ttl["AttributeName"]):
            dynamo.update_time_to_live(TableName=name, TimeToLiveSpecification=ttl)
            changed.append("time to live")
        if wanted.get("PointInTimeRecoverySpecification") and not _backed_up(dynamo, name):
            account.wait(f"backups of the table {name} can be switched on", lambda: _back_up(dynamo, name, wanted), 60.0)
            changed.append("point-in-time recovery")
        if wanted.get("DeletionProtectionEnabled") and not (_describe(dynamo, name) or {}).get("DeletionProtectionEnabled"):
            dynamo.update_table(TableName=name, DeletionProtectionEnabled=True)
            _wait_active(account, name)
            changed.append("deletion protection")
        return changed

    def _add_indexes(self, account: Account, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
        """One at a time: DynamoDB makes no two at once."""
        dynamo, name = account.clients("dynamodb"), str(wanted["TableName"])
        known = {index["IndexName"] for index in there.get("GlobalSecondaryIndexes") or ()}
        missing = [index for index in wanted.get("GlobalSecondaryIndexes", ()) if index["IndexName"] not in known]
        for index in missing:
            there = _describe(dynamo, name) or there
            used = {*_keys(index).values(), *(known["AttributeName"] for known in there["AttributeDefinitions"])}
            definitions = [one for one in wanted["AttributeDefinitions"] if one["AttributeName"] in used]  # others are refused
            dynamo.update_table(TableName=name, AttributeDefinitions=definitions,
                                GlobalSecondaryIndexUpdates=[{"Create": index}])
            _wait_active(account, name)
        return [f"index {index['IndexName']}" for index in missing]


def create_arguments(properties: Mapping[str, Any]) -> dict[str, Any]:
    """CloudFormation's properties of a table as create_table takes them."""
    made = {key: properties[key] for key in CREATE_KEYS if key in properties}
    encryption = properties.get("SSESpecification")
    if encryption:
        made["SSESpecification"] = {"Enabled": encryption["SSEEnabled"],
                                    **{key: value for key, value in encryption.items() if key != "SSEEnabled"}}
    return made


def _describe(dynamo: Any, name: str) -> dict[str, Any] | None:
    answer = found(lambda: dynamo.describe_table(TableName=name))
    return dict(answer["Table"]) if answer else None


def _tags(dynamo: Any, arn: str) -> dict[str, str]:
    return tag_map(dynamo.list_tags_of_resource(ResourceArn=arn).get("Tags"))


def _wait_active(account: Account, name: str) -> None:
    """Until the table and all its indexes can be used, and changed."""
    dynamo = account.clients("dynamodb")

    def look() -> bool | None:
        there = _describe(dynamo, name)
        states = [there["TableStatus"], *(index.get("IndexStatus", "ACTIVE")
                                          for index in there.get("GlobalSecondaryIndexes") or ())] if there else ["CREATING"]
        return True if set(states) == {"ACTIVE"} else None

    account.wait(f"the table {name} is ready", look, READY_SECONDS)


def _cannot_become(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """What is otherwise and cannot be changed in a table that is there."""
    if _keys(there) != _keys(wanted):
        return "It has other keys: it is no table of nommerd's, or of another version. Choose another name in `store`."
    known = {index["IndexName"]: index for index in there.get("GlobalSecondaryIndexes") or ()}
    for index in wanted.get("GlobalSecondaryIndexes", ()):
        has = known.get(index["IndexName"])
        if has is not None and (_keys(has), _projection(has)) != (_keys(index), _projection(index)):
            return f"Its index {index['IndexName']} is of another version: delete that index, and run this again."
    return None


def _keys(thing: Mapping[str, Any]) -> dict[str, str]:
    return {key["KeyType"]: key["AttributeName"] for key in thing["KeySchema"]}


def _projection(index: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    projection = index["Projection"]
    return projection["ProjectionType"], frozenset(projection.get("NonKeyAttributes") or ())


def _expires(dynamo: Any, name: str, attribute: str) -> bool:
    state = dynamo.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    return state.get("TimeToLiveStatus") in ("ENABLED", "ENABLING") and state.get("AttributeName") == attribute


def _backed_up(dynamo: Any, name: str) -> bool:
    state = dynamo.describe_continuous_backups(TableName=name)["ContinuousBackupsDescription"]
    return bool(state.get("PointInTimeRecoveryDescription", {}).get("PointInTimeRecoveryStatus") == "ENABLED")


def _back_up(dynamo: Any, name: str, wanted: Mapping[str, Any]) -> bool | None:
    """None for a new table whose backups are not ready to be switched on."""
    try:
        dynamo.update_continuous_backups(
            TableName=name, PointInTimeRecoverySpecification=wanted["PointInTimeRecoverySpecification"])
    except dynamo.exceptions.ContinuousBackupsUnavailableException:
        return None
    return True


class Domains:
    """AWS::SDB::Domain. SimpleDB has no tags: a domain's name alone says whose it is."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        sdb = account.clients("sdb")
        if _has_domain(sdb, resource.name):
            return outcome(resource, Status.EXISTS)
        sdb.create_domain(DomainName=resource.name)
        account.wait(f"the domain {resource.name} can be used",
                     lambda: found(lambda: sdb.domain_metadata(DomainName=resource.name)), 60.0)
        return outcome(resource, Status.MADE)

    def remove(self, account: Account, resource: Resource) -> Outcome:
        sdb = account.clients("sdb")
        if not _has_domain(sdb, resource.name):
            return outcome(resource, Status.ABSENT)
        sdb.delete_domain(DomainName=resource.name)
        return outcome(resource, Status.REMOVED)


def _has_domain(sdb: Any, name: str) -> bool:
    pages = sdb.get_paginator("list_domains").paginate()
    return any(name in (page.get("DomainNames") or ()) for page in pages)
