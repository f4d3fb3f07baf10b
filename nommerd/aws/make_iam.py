"""Policies, roles and instance profiles."""

from __future__ import annotations

import json
from typing import Any

from nommerd.aws.account import Account, Outcome, Status, found, outcome, tag_map
from nommerd.aws.clients import error_code
from nommerd.aws.plan import Resource, tag_list

VERSIONS_MAX = 5  # of one managed policy


class Policies:
    """AWS::IAM::ManagedPolicy: a new version where the document changed."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        iam, wanted, arn = account.clients("iam"), resource.properties["PolicyDocument"], _policy_arn(account, resource.name)
        there = found(lambda: iam.get_policy(PolicyArn=arn))
        if there is None:
            iam.create_policy(PolicyName=resource.name, PolicyDocument=json.dumps(wanted),
                              Description=resource.properties["Description"], Tags=tag_list(account.cluster))
            return outcome(resource, Status.MADE)
        version = iam.get_policy_version(PolicyArn=arn, VersionId=there["Policy"]["DefaultVersionId"])["PolicyVersion"]
        if _document(version["Document"]) == wanted:  # also one that CloudFormation made, which cannot tag it
            return outcome(resource, Status.EXISTS)
        why = account.not_ours(_policy_tags(iam, arn))
        if why:
            return outcome(resource, Status.DIFFERS, why)
        _make_room(iam, arn)
        iam.create_policy_version(PolicyArn=arn, PolicyDocument=json.dumps(wanted), SetAsDefault=True)
        return outcome(resource, Status.CHANGED, "the document")

    def remove(self, account: Account, resource: Resource) -> Outcome:
        iam, arn = account.clients("iam"), _policy_arn(account, resource.name)
        if found(lambda: iam.get_policy(PolicyArn=arn)) is None:
            return outcome(resource, Status.ABSENT)
        why = account.left(_policy_tags(iam, arn))
        if why:
            return outcome(resource, Status.LEFT, why)
        holders = iam.list_entities_for_policy(PolicyArn=arn)
        others = [*(f"user {u['UserName']}" for u in holders.get("PolicyUsers") or ()),
                  *(f"group {g['GroupName']}" for g in holders.get("PolicyGroups") or ()),
                  *(f"role {r['RoleName']}" for r in holders.get("PolicyRoles") or ())]
        if others:
            return outcome(resource, Status.LEFT, f"Still attached to {', '.join(others)}: detach it, and run this again.")
        for version in _versions(iam, arn):
            if not version["IsDefaultVersion"]:
                iam.delete_policy_version(PolicyArn=arn, VersionId=version["VersionId"])
        iam.delete_policy(PolicyArn=arn)
        return outcome(resource, Status.REMOVED)


class Roles:
    """AWS::IAM::Role. Policies that somebody else attached stay."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        iam, name, wanted = account.clients("iam"), resource.name, resource.properties
        there = found(lambda: iam.get_role(RoleName=name))
        if there is None:
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(wanted["AssumeRolePolicyDocument"]),
                            Description=wanted["Description"], Tags=wanted["Tags"])
        else:
            why = account.not_ours(tag_map(there["Role"].get("Tags")))
            if why:
                return outcome(resource, Status.DIFFERS, why)
        changed = []
        if there is not None and _document(there["Role"]["AssumeRolePolicyDocument"]) != wanted["AssumeRolePolicyDocument"]:
            iam.update_assume_role_policy(RoleName=name, PolicyDocument=json.dumps(wanted["AssumeRolePolicyDocument"]))
            changed.append("who may take it")
        for arn in wanted["ManagedPolicyArns"]:
            if arn not in _attached(iam, name):
                iam.attach_role_policy(RoleName=name, PolicyArn=arn)
                changed.append(f"policy {arn.rpartition('/')[2]}")
        if there is None:
            return outcome(resource, Status.MADE)
        return outcome(resource, Status.CHANGED if changed else Status.EXISTS, ", ".join(changed))

    def remove(self, account: Account, resource: Resource) -> Outcome:
        iam, name = account.clients("iam"), resource.name
        there = found(lambda: iam.get_role(RoleName=name))
        if there is None:
            return outcome(resource, Status.ABSENT)
        why = account.left(tag_map(there["Role"].get("Tags")))
        if why:
            return outcome(resource, Status.LEFT, why)
        profiles = [profile["InstanceProfileName"]
                    for page in iam.get_paginator("list_instance_profiles_for_role").paginate(RoleName=name)
                    for profile in page["InstanceProfiles"]]
        if profiles:
            return outcome(resource, Status.LEFT, f"The instance profile {', '.join(profiles)} has it.")
        for arn in _attached(iam, name):
            iam.detach_role_policy(RoleName=name, PolicyArn=arn)
        for page in iam.get_paginator("list_role_policies").paginate(RoleName=name):
            for policy in page["PolicyNames"]:
                iam.delete_role_policy(RoleName=name, PolicyName=policy)
        iam.delete_role(RoleName=name)
        return outcome(resource, Status.REMOVED)


class Profiles:
    """AWS::IAM::InstanceProfile: brings one role to EC2 instances."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        iam, name = account.clients("iam"), resource.name
        (role,) = resource.properties["Roles"]
        there = found(lambda: iam.get_instance_profile(InstanceProfileName=name))
        if there is None:
            iam.create_instance_profile(InstanceProfileName=name, Tags=tag_list(account.cluster))
            self._add(account, name, role)
            return outcome(resource, Status.MADE)
        profile = there["InstanceProfile"]
        roles = [known["RoleName"] for known in profile["Roles"]]
        if roles == [role]:  # also one that CloudFormation made: it cannot tag profiles, and the role says whose this is
            return outcome(resource, Status.EXISTS)
        why = account.not_ours(tag_map(profile.get("Tags")))
        if why or roles:
            return outcome(resource, Status.DIFFERS, why or f"It has the role {roles[0]}.")
        self._add(account, name, role)
        return outcome(resource, Status.CHANGED, f"role {role}")

    def remove(self, account: Account, resource: Resource) -> Outcome:
        iam, name = account.clients("iam"), resource.name
        there = found(lambda: iam.get_instance_profile(InstanceProfileName=name))
        if there is None:
            return outcome(resource, Status.ABSENT)
        why = account.left(tag_map(there["InstanceProfile"].get("Tags")))
        if why:
            return outcome(resource, Status.LEFT, why)
        for role in there["InstanceProfile"]["Roles"]:
            iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=role["RoleName"])
        iam.delete_instance_profile(InstanceProfileName=name)
        return outcome(resource, Status.REMOVED)

    def _add(self, account: Account, name: str, role: str) -> None:
        """A role that was made a moment ago may not be known everywhere yet."""
        iam = account.clients("iam")

        def attempt() -> bool | None:
            try:
                iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=role)
            except Exception as error:
                if error_code(error) == "NoSuchEntity":
                    return None
                raise
            return True

        account.wait(f"the role {role} is known", attempt, 60.0)


def _policy_arn(account: Account, name: str) -> str:
    return account.place.arn("iam", f"policy/{name}", region=False)


def _policy_tags(iam: Any, arn: str) -> dict[str, str]:
    return tag_map(iam.list_policy_tags(PolicyArn=arn).get("Tags"))


def _document(value: Any) -> Any:
    """botocore decodes documents; an emulator may not."""
    return json.loads(value) if isinstance(value, str) else value


def _attached(iam: Any, role: str) -> list[str]:
    return [policy["PolicyArn"] for page in iam.get_paginator("list_attached_role_policies").paginate(RoleName=role)
            for policy in page["AttachedPolicies"]]


def _versions(iam: Any, arn: str) -> list[dict[str, Any]]:
    return [version for page in iam.get_paginator("list_policy_versions").paginate(PolicyArn=arn)
            for version in page["Versions"]]


def _make_room(iam: Any, arn: str) -> None:
    """Delete the oldest version that is not in use, where there are as many as IAM keeps."""
    versions = _versions(iam, arn)
    if len(versions) >= VERSIONS_MAX:
        oldest = min((v for v in versions if not v["IsDefaultVersion"]), key=lambda v: v["CreateDate"])
        iam.delete_policy_version(PolicyArn=arn, VersionId=oldest["VersionId"])
