"""The instance metadata service of EC2, version 2: who this node is, and whether AWS wants it back.

Version 1, which answers whoever can make a machine send a GET, is never used: what gives no token is no metadata service.
Requests go straight to its address, whatever proxies the environment names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

import gevent

from nommerd import logs
from nommerd.watch import Clock, boot_clock

ADDRESS = "http://169.254.169.254"
ADDRESS_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # botocore's own, as is the next
DISABLED_VARIABLE = "AWS_EC2_METADATA_DISABLED"
LOOKUP_SECONDS = 2.0  # for all that is asked at start
ANSWER_SECONDS = 1.0  # for one question: the service is on this very machine
TOKEN_SECONDS = 6 * 3600
TOKEN_RENEWED_AT = 0.8  # of its life
BYTES_MAX = 4096
_TOKEN = re.compile(r"[\x21-\x7e]{1,1024}")
_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}")
_ZONE = re.compile(r"[a-z]{2}[a-z0-9-]{3,40}")
_ACTIONS = ("terminate", "stop", "hibernate")


class Unanswered(Exception):
    """The metadata service gave no answer that is one. `lasting`: asking again would change nothing."""

    def __init__(self, why: str, *, lasting: bool = False) -> None:
        super().__init__(why)
        self.lasting = lasting


class Notice(StrEnum):
    """What AWS tells a spot instance."""

    SPOT = "spot interruption"  # it goes in two minutes
    REBALANCE = "rebalance recommendation"  # it is more likely than others to go


@dataclass(frozen=True, slots=True)
class Node:
    """An EC2 instance."""

    instance_id: str
    zone: str | None = None


class Metadata:
    """Asks the metadata service. Answers are looked at as if a stranger had sent them."""

    def __init__(self, address: str = ADDRESS, clock: Clock = boot_clock) -> None:
        self.address = address
        try:
            parts = urlsplit(address)
            self._host, self._port, self._prefix = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
            self._usable = parts.scheme == "http" and bool(parts.hostname)
        except ValueError:
            self._usable = False
        self._clock = clock
        self._token: str | None = None
        self._renew_at = 0.0

    @staticmethod
    def from_environment(env: Mapping[str, str]) -> Metadata | None:
        """The one that these variables name, else EC2's own; None where it is switched off."""
        if env.get(DISABLED_VARIABLE, "").lower() == "true":
            return None
        return Metadata(env.get(ADDRESS_VARIABLE) or ADDRESS)

    @property
    def is_ec2s_own(self) -> bool:
        """Whether it is at EC2's own address, which no variable replaced."""
        return self.address == ADDRESS

    def node(self) -> Node:
        """Who this machine is. Raises Unanswered where it is no EC2 instance, or cannot be known."""
        instance_id = self._text("instance-id", _INSTANCE)
        try:
            return Node(instance_id, self._text("placement/availability-zone", _ZONE))
        except Unanswered:
            return Node(instance_id)

    def notice(self) -> Notice | None:
        """What AWS wants, None for nothing. Only a well-formed notice is one; no answer is none."""
        for path, notice, is_one in _NOTICES:
            try:
                status, body = self._ask(path)
            except Unanswered as why:
                logs.get().debug("metadata.unanswered", path=path, why=str(why))
                continue
            if status == 200 and is_one(body):
                return notice
        return None

    def _text(self, path: str, form: re.Pattern[str]) -> str:
        status, body = self._ask(path)
        if status != 200 or not form.fullmatch(body):
            raise Unanswered(f"answers {status} to {path}" if status != 200 else f"{path} is none")
        return body

    def _ask(self, path: str) -> tuple[int, str]:
        """Status and text of one item, under a valid token. Raises Unanswered."""
        for last in (False, True):
            status, body = self._request("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._valid_token()})
            if status != 401 or last:
                break
            self._token = None  # the machine slept, or the service was restarted
        return status, body

    def _valid_token(self) -> str:
        if self._token is None or self._clock() >= self._renew_at:
            asked = self._clock()
            status, body = self._request("PUT", "/latest/api/token",
                                         {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)})
            if status != 200 or not _TOKEN.fullmatch(body):
                self._token = None
                raise Unanswered(f"gives no token (status {status})", lasting=status < 500)
            self._token, self._renew_at = body, asked + TOKEN_SECONDS * TOKEN_RENEWED_AT
        return self._token

    def _request(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        if not self._usable:
            raise Unanswered(f"{ADDRESS_VARIABLE} names no http address", lasting=True)
        connection = HTTPConnection(self._host, self._port, timeout=ANSWER_SECONDS)
        limit = gevent.Timeout(ANSWER_SECONDS)  # a time-out of the socket's begins anew at each byte
        try:
            with limit:
                connection.request(method, self._prefix + path, headers=dict(headers))
                answer = connection.getresponse()
                return answer.status, answer.read(BYTES_MAX).decode("ascii", errors="replace").strip()
        except gevent.Timeout as late:
            if late is not limit:
                raise
            raise Unanswered(f"does not answer within {ANSWER_SECONDS:g} s") from None
        except ConnectionRefusedError:
            raise Unanswered("nothing listens there", lasting=True) from None
        except (OSError, HTTPException, ValueError) as error:
            raise Unanswered(f"{type(error).__name__}") from None
        finally:
            connection.close()


def identify(metadata: Metadata | None, patience_seconds: float = LOOKUP_SECONDS) -> Node | None:
    """The EC2 instance that this is, None where it is none; logged. Takes no longer than `patience_seconds`.

    A machine whose metadata service is slow or broken counts as none: work goes on, under the name of the host.
    """
    if metadata is None:
        logs.get().info("node.none", why=f"{DISABLED_VARIABLE} is set")
        return None
    why = f"the metadata service does not answer within {patience_seconds:g} s"
    with gevent.Timeout(patience_seconds, False):
        while True:
            try:
                node = metadata.node()
            except Unanswered as no:
                why = f"the metadata service {no}"
                if no.lasting or patience_seconds <= LOOKUP_SECONDS:
                    break
                gevent.sleep(ANSWER_SECONDS)
                continue
            return node
    logs.get().info("node.none", why=why)
    return None


def _is_interruption(body: str) -> bool:
    notice = _json_object(body)
    return notice.get("action") in _ACTIONS and _is_time(notice.get("time"))


def _is_recommendation(body: str) -> bool:
    return _is_time(_json_object(body).get("noticeTime"))


def _json_object(body: str) -> dict[str, object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


_NOTICES: tuple[tuple[str, Notice, Callable[[str], bool]], ...] = (
    ("spot/instance-action", Notice.SPOT, _is_interruption),
    ("events/recommendations/rebalance", Notice.REBALANCE, _is_recommendation),
)
