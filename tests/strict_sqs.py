"""Rules of SQS that the emulator does not hold, for tests.aws_proxy: stale receipts, and the cap of twelve hours from the
receipt.

AWS: deleting by a receipt that is no longer the newest succeeds and may delete nothing (here: deletes nothing); changing the
visibility by one, or of a message that is visible again, is refused.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from tests.aws_proxy import Answer, Call, Forward, error_answer

CAP_SECONDS = 12 * 3600


@dataclass
class _Receipt:
    handle: str
    received: float
    hidden_until: float


class StrictSqs:
    """`proxy.rules.append(StrictSqs())`. `refused` counts what AWS would not have done, by action."""

    def __init__(self) -> None:
        self.refused: dict[str, int] = {}
        self._newest: dict[tuple[str, str], _Receipt] = {}  # by queue and message
        self._message: dict[str, tuple[str, str]] = {}  # by handle

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if call.service != "sqs":
            return forward(call)
        if call.action == "ReceiveMessage":
            return self._received(call, forward(call))
        if call.action in ("DeleteMessageBatch", "ChangeMessageVisibilityBatch"):
            return self._batch(call, forward)
        if call.action == "ChangeMessageVisibility" and (why := self._refusal(call.json)):
            return self._refuse(call, "InvalidParameterValue", why)
        return forward(call)

    def _received(self, call: Call, answer: Answer) -> Answer:
        now = time.monotonic()
        hidden = now + int(call.json.get("VisibilityTimeout", 30))
        for one in answer.json.get("Messages", []) if answer.status == 200 else []:
            key = call.resource, str(one["MessageId"])
            self._newest[key] = _Receipt(one["ReceiptHandle"], now, hidden)
            self._message[one["ReceiptHandle"]] = key
        return answer

    def _batch(self, call: Call, forward: Forward) -> Answer:
        fields = call.json
        entries: list[dict[str, Any]] = fields["Entries"]
        assert 1 <= len(entries) <= 10 and len({entry["Id"] for entry in entries}) == len(entries)
        deletes = call.action == "DeleteMessageBatch"
        bad = {entry["Id"]: why for entry in entries if (why := self._stale(entry) if deletes else self._refusal(entry))}
        self._count(call.action, len(bad))
        good = [entry for entry in entries if entry["Id"] not in bad]
        said: dict[str, Any] = {"Successful": [], "Failed": []}
        if good:
            call.body = _body({**fields, "Entries": good})
            answer = forward(call)
            if answer.status != 200:
                return answer
            said = {"Successful": answer.json.get("Successful", []), "Failed": answer.json.get("Failed", [])}
        for id, why in bad.items():
            if deletes:
                said["Successful"].append({"Id": id})
            else:
                said["Failed"].append({"Id": id, "SenderFault": True, "Code": "InvalidParameterValue", "Message": why})
        return Answer(200, [("Content-Type", "application/x-amz-json-1.0")], _body(said))

    def _stale(self, entry: dict[str, Any]) -> str | None:
        key = self._message.get(entry["ReceiptHandle"])
        if key is not None and self._newest[key].handle != entry["ReceiptHandle"]:
            return "The receipt handle is not the newest."
        return None

    def _refusal(self, entry: dict[str, Any]) -> str | None:
        """Why AWS would not change the visibility so; what it would do is noted."""
        key = self._message.get(entry["ReceiptHandle"])
        if key is None:
            return None
        now, seconds, receipt = time.monotonic(), int(entry["VisibilityTimeout"]), self._newest[key]
        if receipt.handle != entry["ReceiptHandle"] or now > receipt.hidden_until:
            return "Message does not exist or is not available for visibility timeout change."
        if now - receipt.received + seconds > CAP_SECONDS:
            return "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]"
        receipt.hidden_until = now + seconds
        return None

    def _refuse(self, call: Call, code: str, why: str) -> Answer:
        self._count(call.action, 1)
        return error_answer(call, 400, code, why)

    def _count(self, action: str, count: int) -> None:
        if count:
            self.refused[action] = self.refused.get(action, 0) + count


def _body(value: object) -> bytes:
    return json.dumps(value).encode()
