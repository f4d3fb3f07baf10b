"""Messages: they survive their encoding, and nothing but them decodes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nommerd.job import Key, Priority
from nommerd.messages import ChangeMessage, JobMessage, Message, UndecodableMessage, decode, encode

jobs = st.builds(JobMessage, id=st.text(), project=st.text(), priority=st.sampled_from(Priority), schema_version=st.integers())
changes = st.builds(ChangeMessage, id=st.text(), project=st.text(), event_seq=st.integers(), schema_version=st.integers())


@given(st.one_of(jobs, changes))
def test_a_message_survives_encoding_and_decoding(message: Message) -> None:
    assert decode(encode(message)) == message
    assert decode(encode(message).encode()) == message


@given(st.one_of(st.text(), st.binary(), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps)))
def test_anything_else_is_undecodable_and_raises_nothing_else(text: str | bytes) -> None:
    with pytest.raises(UndecodableMessage):
        decode(text)


@pytest.mark.parametrize("change", [{"kind": "other"}, {"kind": None}, {"kind": []}, {"id": 7}, {"id": None},
                                    {"project": ["p"]}, {"priority": "urgent"}, {"priority": None}, {"schema_version": "1"},
                                    {"schema_version": True}])
def test_a_field_of_another_type_is_undecodable(change: dict[str, Any]) -> None:
    with pytest.raises(UndecodableMessage):
        decode(json.dumps(json.loads(encode(JobMessage(id="a"))) | change))


@pytest.mark.parametrize("field", ["kind", "id", "project", "priority", "schema_version"])
def test_a_missing_field_is_undecodable(field: str) -> None:
    fields = json.loads(encode(JobMessage(id="a")))
    del fields[field]
    with pytest.raises(UndecodableMessage):
        decode(json.dumps(fields))


@pytest.mark.parametrize("seq", ["1", None, 1.5, True])
def test_a_change_without_a_whole_number_as_its_sequence_is_undecodable(seq: Any) -> None:
    with pytest.raises(UndecodableMessage):
        decode(json.dumps(json.loads(encode(ChangeMessage(id="a"))) | {"event_seq": seq}))


def test_a_newer_version_with_more_fields_is_readable_and_shows_its_version() -> None:
    text = json.dumps(json.loads(encode(JobMessage(id="a"))) | {"schema_version": 9, "deadline": 5})
    assert decode(text) == JobMessage(id="a", schema_version=9)


def test_a_message_names_its_record() -> None:
    assert JobMessage(id="a", project="p").key == ChangeMessage(id="a", project="p").key == Key("p", "a")
