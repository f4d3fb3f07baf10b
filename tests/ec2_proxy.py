"""A proxy in front of the AWS emulator that holds EC2's documented rules where the emulator is lenient.

- Every EC2 request is read back by botocore's model of the service: unknown parameters, wrong types, values outside an enum,
  missing ones are refused; launch templates and fleets also by the limits that EC2's reference states in prose.
- CreateFleet of type instant is carried out here, one RunInstances of the emulator per node, with what the launch template's
  version says (metadata options, shutdown behaviour, profile, user-data, tags), pool by pool in the order of priority. Pools
  without capacity are named in `Errors`.
- A client token that was seen gives the first answer again; with other parameters it is IdempotentParameterMismatch.
- DescribeInstances may lag: see `hide_new`.

Other services pass through. Answers can be held back or lost after the request was applied.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from nommerd.aws.clients import error_code
from tests.emulator import REGION, emulator
from tests.quiet_server import QuietServer

XMLNS = "http://ec2.amazonaws.com/doc/2016-11-15/"
HOPS = {"connection", "keep-alive", "transfer-encoding", "host", "content-length", "te", "upgrade", "expect"}
ZONES = [f"{REGION}{letter}" for letter in "abcdef"]
TAGGED = {"fleet", "instance", "volume", "network-interface"}  # by an instant fleet
TEMPLATE_TAGGED = {"instance", "volume", "network-interface", "spot-instances-request"}
NOT_FOR_INSTANT = ("ExcessCapacityTerminationPolicy", "TerminateInstancesWithExpiration", "ValidFrom", "ValidUntil",
                   "ReplaceUnhealthyInstances")


class Refused(Exception):
    """An answer of EC2: 400 with a code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass
class Rule:
    """How many nodes a pool has left to give; None matches any market (spot, on-demand), type or zone."""

    market: str | None = None
    type: str | None = None
    zone: str | None = None
    left: int = 0
    code: str = "InsufficientInstanceCapacity"

    def matches(self, market: str, kind: str, zone: str) -> bool:
        return self.market in (None, market) and self.type in (None, kind) and self.zone in (None, zone)


@dataclass
class Call:
    """An EC2 request as it came, and what was answered."""

    action: str
    params: dict[str, Any]
    status: int = 0


@dataclass
class Hold:
    """Answers of an action that wait, applied, for `release`; `lost` ones never arrive."""

    applied: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    lost: bool = False


class Ec2Proxy:
    """Use as a context manager; `url` is what daemons take for AWS."""

    def __init__(self, upstream: str | None = None) -> None:
        self.upstream = urlsplit(upstream or emulator().url)
        self.ec2 = emulator().client("ec2")
        self.model = self.ec2.meta.service_model
        self.calls: list[Call] = []
        self.rules: list[Rule] = []
        self.unknown_images: set[str] = set()
        self.fail: dict[str, list[tuple[int, str]]] = defaultdict(list)  # action -> next answers, not applied: status, code
        self.holds: dict[str, list[Hold]] = defaultdict(list)
        self.hidden: set[str] | None = None  # ids that DescribeInstances does not list yet
        self._answers: dict[tuple[str, str], tuple[str, str]] = {}  # action and token -> parameters and answer
        self._lock = threading.RLock()
        proxy = self

        class Handler(_Handler):
            pass

        Handler.proxy = proxy
        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.clients = emulator().clients(self.url)  # for whoever calls AWS through it
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> Ec2Proxy:
        return self

    def __exit__(self, *error: object) -> None:
        for holds in self.holds.values():
            for hold in holds:
                hold.released.set()
        self._server.shutdown()
        self._server.server_close()

    # --- for tests -----------------------------------------------------------------------------------------------

    def asked(self, action: str) -> list[dict[str, Any]]:
        """The parameters of all requests of this kind, in their order."""
        return [call.params for call in list(self.calls) if call.action == action]

    @contextmanager
    def hold(self, action: str, lost: bool = False) -> Iterator[Hold]:
        """The next answer to this action waits, applied, until the end of the block or `release`."""
        hold = Hold(lost=lost)
        self.holds[action].append(hold)
        try:
            yield hold
        finally:
            hold.released.set()

    @contextmanager
    def hide_new(self) -> Iterator[None]:
        """Nodes launched inside the block are not listed until its end."""
        self.hidden = set()
        try:
            yield
        finally:
            self.hidden = None

    def nodes(self, cluster: str, *states: str) -> list[dict[str, Any]]:
        """What the emulator really has of a cluster, oldest first; running and pending unless told."""
        pages = self.ec2.get_paginator("describe_instances").paginate(Filters=[
            {"Name": "tag:nommerd:cluster", "Values": [cluster]},
            {"Name": "instance-state-name", "Values": list(states or ("pending", "running"))}])
        return [one for page in pages for reservation in page["Reservations"] for one in reservation["Instances"]]

    # --- EC2 -----------------------------------------------------------------------------------------------------

    def answer(self, action: str, fields: dict[str, str], forward: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        """EC2's answer to a request."""
        operation = self.model.operation_model(action)
        with self._lock:
            call = Call(action, {})
            self.calls.append(call)
        try:
            call.params = read(operation.input_shape, fields)
            if self.fail[action]:
                call.status, code = self.fail[action].pop(0)
                return call.status, error_document(code, "as the test says")
            call.status, body = self._apply(action, call.params, forward)
        except Refused as refusal:
            call.status, body = 400, error_document(refusal.code, refusal.message)
        return call.status, body

    def _apply(self, action: str, params: dict[str, Any], forward: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        token = params.get("ClientToken")
        if token is not None and (len(token) > 64 or not token.isascii()):
            raise Refused("InvalidParameterValue", "ClientToken: at most 64 ASCII characters")
        with self._lock:
            said = json.dumps(params, sort_keys=True, default=str)
            if token is not None and (action, token) in self._answers:
                before, answer = self._answers[action, token]
                if before != said:
                    raise Refused("IdempotentParameterMismatch", "The client token was used with other parameters.")
                return 200, answer.encode()
            if action == "CreateFleet":
                status, body = 200, self._create_fleet(params)
            else:
                if action in ("CreateLaunchTemplate", "CreateLaunchTemplateVersion"):
                    check_template(params)
                status, body = forward()
            if token is not None and status == 200:
                self._answers[action, token] = (said, body.decode())
        if action == "DescribeInstances" and self.hidden:
            body = without(body, self.hidden)
        return status, body

    def _create_fleet(self, params: dict[str, Any]) -> bytes:
        check_fleet(params)
        market = params["TargetCapacitySpecification"].get("DefaultTargetCapacityType", "on-demand")
        found: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for config in params["LaunchTemplateConfigs"]:
            spec, data = self._template(config["LaunchTemplateSpecification"])
            overrides = sorted(config.get("Overrides", [{}]), key=lambda one: one.get("Priority", float("inf")))
            left = params["TargetCapacitySpecification"]["TotalTargetCapacity"] - len(found)
            for override in overrides:
                while left > 0:
                    both = {"LaunchTemplateAndOverrides": {"LaunchTemplateSpecification": spec, "Overrides": override},
                            "Lifecycle": market}
                    try:
                        node = self._run(data, override, market, params)
                    except Refused as refusal:
                        errors.append({**both, "ErrorCode": refusal.code, "ErrorMessage": refusal.message})
                        break
                    left -= 1
                    found.append({**both, "InstanceIds": [node], "InstanceType": override["InstanceType"]})
        answer = {"FleetId": f"fleet-{uuid4()}", "Errors": errors, "Instances": found}
        shape = self.model.operation_model("CreateFleet").output_shape
        inner = write(shape, answer)
        return f'<CreateFleetResponse xmlns="{XMLNS}"><requestId>{uuid4()}</requestId>{inner}</CreateFleetResponse>'.encode()

    def _template(self, spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        which = {key: value for key, value in spec.items() if key != "Version"}
        try:
            found = self.ec2.describe_launch_template_versions(**which, Versions=[spec["Version"]])["LaunchTemplateVersions"]
        except Exception as error:
            raise Refused(error_code(error), str(error)) from None
        if not found:
            raise Refused("InvalidLaunchTemplateId.VersionNotFound", f"There is no version {spec['Version']}.")
        return {**which, "Version": str(found[0]["VersionNumber"])}, found[0]["LaunchTemplateData"]

    def _run(self, data: dict[str, Any], override: dict[str, Any], market: str, params: dict[str, Any]) -> str:
        """One node from one pool; returns its id."""
        kind = override["InstanceType"]
        if data["ImageId"] in self.unknown_images:
            raise Refused("InvalidAMIID.NotFound", f"The image id '[{data['ImageId']}]' does not exist")
        zone = self._zone(market, kind, override)
        for rule in self.rules:
            if rule.matches(market, kind, zone):
                rule.left -= 1
        profile = data["IamInstanceProfile"]
        tags = merged(data.get("TagSpecifications", []), params.get("TagSpecifications", []))
        arguments = {"ImageId": data["ImageId"], "InstanceType": kind, "MinCount": 1, "MaxCount": 1,
                     "UserData": base64.b64decode(data["UserData"]), "MetadataOptions": options(data["MetadataOptions"]),
                     "InstanceInitiatedShutdownBehavior": data["InstanceInitiatedShutdownBehavior"],
                     "SecurityGroupIds": data.get("SecurityGroupIds", []), "IamInstanceProfile": profile,
                     "TagSpecifications": [{"ResourceType": of, "Tags": tags[of]} for of in ("instance", "volume")]}
        if data.get("SecurityGroups"):
            arguments["SecurityGroups"] = data["SecurityGroups"]
        if data.get("KeyName"):
            arguments["KeyName"] = data["KeyName"]
        if market == "spot":
            arguments["InstanceMarketOptions"] = {"MarketType": "spot"}
        if override.get("SubnetId"):
            arguments["SubnetId"] = override["SubnetId"]
        else:
            arguments["Placement"] = {"AvailabilityZone": zone}
        try:
            node = str(self.ec2.run_instances(**arguments)["Instances"][0]["InstanceId"])
        except Exception as error:
            code = error_code(error)
            raise Refused("InvalidParameterValue" if code == "NoSuchEntity" else code,
                          f"Value ({profile}) for parameter iamInstanceProfile.name is invalid" if code == "NoSuchEntity"
                          else str(error)) from None
        if self.hidden is not None:
            self.hidden.add(node)
        return node

    def _zone(self, market: str, kind: str, override: dict[str, Any]) -> str:
        """The zone the node gets; raises where none of those allowed has capacity."""
        if override.get("SubnetId"):
            zones = [self.ec2.describe_subnets(SubnetIds=[override["SubnetId"]])["Subnets"][0]["AvailabilityZone"]]
        else:
            zones = [override["AvailabilityZone"]] if override.get("AvailabilityZone") else ZONES
        why: Rule | None = None
        for zone in zones:
            empty = next((rule for rule in self.rules if rule.left <= 0 and rule.matches(market, kind, zone)), None)
            if empty is None:
                return zone
            why = empty
        assert why is not None
        raise Refused(why.code, f"We currently do not have sufficient {kind} capacity in {', '.join(zones)}.")




class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are written apart: 40 ms for each answer otherwise
    proxy: Ec2Proxy

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        form = self.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True)) if form else {}
        if fields.get("Version") != "2016-11-15":
            status, headers, answer = self._forward(body)
            return self._send(status, headers, answer)
        action = fields.pop("Action")
        del fields["Version"]
        headers = [("Content-Type", "text/xml;charset=UTF-8")]

        def forward() -> tuple[int, bytes]:
            status, _, answer = self._forward(body)
            return status, answer

        status, answer = self.proxy.answer(action, fields, forward)
        holds = self.proxy.holds[action]
        if holds and status == 200:
            hold = holds.pop(0)
            hold.applied.set()
            hold.released.wait(30)
            if hold.lost:
                self.close_connection = True
                self.connection.shutdown(2)
                return None
        return self._send(status, headers, answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_one

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.proxy.upstream.hostname or "", self.proxy.upstream.port, timeout=60)
        try:
            sent = {name: value for name, value in self.headers.items() if name.lower() not in HOPS}
            sent["Host"] = self.headers["host"]
            upstream.request(self.command, self.path, body, {**sent, "Content-Length": str(len(body))})
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            upstream.close()

    def _send(self, status: int, headers: list[tuple[str, str]], answer: bytes) -> None:
        self.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in HOPS:
                self.send_header(name, value)
        if "date" not in names:
            self.send_header("Date", self.date_time_string())
        length = next((value for name, value in headers if name.lower() == "content-length"), None)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(answer)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        """Quiet."""


# --- the query protocol, by botocore's model -------------------------------------------------------------------------


def read(shape: Any, fields: dict[str, str]) -> dict[str, Any]:
    """The parameters that a form holds, of the model's types. Raises Refused for what the model does not know or require."""
    from botocore.validate import ParamValidator

    rest = dict(fields)
    params = _read_structure(shape, "", rest)
    if rest:
        raise Refused("UnknownParameter", f"The parameter {sorted(rest)[0]} is not recognized")
    report = ParamValidator().validate(params, shape)
    if report.has_errors():
        raise Refused("MissingParameter", report.generate_report())
    return params


def _wire_name(name: str, member: Any) -> str:
    """How the EC2 query protocol calls a member."""
    location = member.serialization.get("name", name)
    return str(member.serialization.get("queryName") or location[:1].upper() + location[1:])


def _read(shape: Any, prefix: str, rest: dict[str, str]) -> Any:
    if shape.type_name == "structure":
        return _read_structure(shape, prefix, rest)
    if shape.type_name == "list":
        items = []
        while any(key == f"{prefix}.{len(items) + 1}" or key.startswith(f"{prefix}.{len(items) + 1}.") for key in rest):
            items.append(_read(shape.member, f"{prefix}.{len(items) + 1}", rest))
        return items
    return _scalar(shape, prefix, rest.pop(prefix))


def _read_structure(shape: Any, prefix: str, rest: dict[str, str]) -> dict[str, Any]:
    found = {}
    for name, member in shape.members.items():
        at = f"{prefix}.{_wire_name(name, member)}".lstrip(".")
        if any(key == at or key.startswith(f"{at}.") for key in rest):
            found[name] = _read(member, at, rest)
    return found


def _scalar(shape: Any, name: str, text: str) -> Any:
    try:
        if shape.type_name in ("integer", "long"):
            return int(text)
        if shape.type_name in ("float", "double"):
            return float(text)
    except ValueError:
        raise Refused("InvalidParameterValue", f"{name} is no number: {text}") from None
    if shape.type_name == "boolean":
        if text not in ("true", "false"):
            raise Refused("InvalidParameterValue", f"{name} is neither true nor false: {text}")
        return text == "true"
    if getattr(shape, "enum", None) and text not in shape.enum:
        raise Refused("InvalidParameterValue", f"{name}: {text} is none of its values")
    pattern = shape.metadata.get("pattern")
    if pattern and not re.fullmatch(pattern, text):
        raise Refused("InvalidParameterValue", f"{name}: {text} does not match {pattern}")
    return text


def write(shape: Any, value: Any) -> str:
    """A value as the query protocol's XML, without the element around it."""
    if shape.type_name == "structure":
        parts = []
        for name, member in shape.members.items():
            if name in value:
                tag = member.serialization.get("name", name)
                parts.append(f"<{tag}>{write(member, value[name])}</{tag}>")
        return "".join(parts)
    if shape.type_name == "list":
        return "".join(f"<item>{write(shape.member, item)}</item>" for item in value)
    return escape(str(value))


def error_document(code: str, message: str) -> bytes:
    return (f"<Response><Errors><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error></Errors>"
            f"<RequestID>{uuid4()}</RequestID></Response>").encode()


def without(body: bytes, ids: set[str]) -> bytes:
    """DescribeInstances' answer without these instances."""
    root = ElementTree.fromstring(body)
    ElementTree.register_namespace("", root.tag[1:].partition("}")[0])
    space = root.tag.partition("}")[0] + "}"
    for reservations in root.iter(f"{space}reservationSet"):
        for reservation in list(reservations):
            if any(one.text in ids for one in reservation.iter(f"{space}instanceId")):
                reservations.remove(reservation)
    return ElementTree.tostring(root)


# --- rules that the reference states in prose ------------------------------------------------------------------------


def check_tags(specifications: list[dict[str, Any]], kinds: set[str]) -> None:
    """Resource types that the action tags, each once; EC2's limits on keys and values."""
    seen = [one.get("ResourceType") for one in specifications]
    if len(set(seen)) != len(seen) or not set(seen) <= kinds:
        raise Refused("InvalidParameterValue", f"these resource types cannot be tagged here: {seen}")
    for one in specifications:
        tags = one.get("Tags", [])
        keys = [tag.get("Key", "") for tag in tags]
        if not tags or len(tags) > 50 or len(set(keys)) != len(keys):
            raise Refused("InvalidParameterValue", "1 to 50 tags with keys of their own")
        for tag in tags:
            key, value = tag.get("Key", ""), tag.get("Value", "")
            if not 1 <= len(key) <= 127 or len(value) > 256 or key.lower().startswith("aws:"):
                raise Refused("InvalidParameterValue", f"the tag {key} is too long or reserved")
            if not re.fullmatch(r"[\w .:/=+\-@]*", key + value):
                raise Refused("InvalidParameterValue", f"the tag {key} holds characters that not all services take")


def check_template(params: dict[str, Any]) -> None:
    data = params["LaunchTemplateData"]
    check_tags(data.get("TagSpecifications", []), TEMPLATE_TAGGED)
    check_tags(params.get("TagSpecifications", []), {"launch-template"})
    if data.get("SecurityGroups") and data.get("SecurityGroupIds"):
        raise Refused("InvalidParameterCombination", "groups by name or by id, not both")
    profile = data.get("IamInstanceProfile", {"Name": ""})
    if len(profile) != 1:
        raise Refused("InvalidParameterCombination", "the profile by name or by ARN, not both")
    try:
        size = len(base64.b64decode(data.get("UserData", ""), validate=True))
    except ValueError:
        raise Refused("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data") from None
    if size > 16384:
        raise Refused("InvalidParameterValue", "User data is limited to 16384 bytes")


def check_fleet(params: dict[str, Any]) -> None:
    if params.get("Type") != "instant":
        raise Refused("InvalidParameterValue", "this proxy carries out instant fleets")
    for name in NOT_FOR_INSTANT:
        if name in params:
            raise Refused("InvalidParameterCombination", f"{name} is not for instant fleets")
    check_tags(params.get("TagSpecifications", []), TAGGED)
    target = params["TargetCapacitySpecification"]
    if not 1 <= target["TotalTargetCapacity"] <= 10_000:
        raise Refused("InvalidTargetCapacitySpecification", "TotalTargetCapacity must be 1 to 10000")
    for config in params["LaunchTemplateConfigs"]:
        spec = config.get("LaunchTemplateSpecification", {})
        if "Version" not in spec or ("LaunchTemplateId" in spec) == ("LaunchTemplateName" in spec):
            raise Refused("InvalidParameterCombination", "a template by id or by name, and its version")
    check_overrides([one for config in params["LaunchTemplateConfigs"] for one in config.get("Overrides", [])])


def check_overrides(overrides: list[dict[str, Any]]) -> None:
    if len(overrides) > 300:
        raise Refused("InvalidParameterValue", "at most 300 overrides")
    for one in overrides:
        if one.get("Priority", 0) < 0 or one.get("Priority", 0) != int(one.get("Priority", 0)):
            raise Refused("InvalidParameterValue", "priorities are whole numbers from 0 on")
        if len({"SubnetId", "AvailabilityZone", "AvailabilityZoneId"} & set(one)) > 1:
            raise Refused("InvalidParameterCombination", "a subnet or a zone, not both")
    if len({json.dumps({k: v for k, v in one.items() if k != "Priority"}) for one in overrides}) != len(overrides):
        raise Refused("InvalidFleetConfig", "Duplicate instance pools")


def merged(*levels: list[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """Tags by resource type: those of the request come over those of the template."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for specifications in levels:
        for one in specifications:
            found[one["ResourceType"]] |= {tag["Key"]: tag["Value"] for tag in one["Tags"]}
    return {kind: [{"Key": key, "Value": value} for key, value in tags.items()] for kind, tags in found.items()}


def options(given: dict[str, Any]) -> dict[str, Any]:
    """A template's metadata options as RunInstances takes them."""
    return {key: value for key, value in given.items() if key != "State"}
