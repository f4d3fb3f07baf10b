from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from nommerd.errors import ConfigError
from nommerd.secrets import Keyring, Secret, has_secret, new_key, new_token, public_uri, secret_file

CANARY = "canary-3b1c"


def keyring(*keys: str) -> Keyring:
    return Keyring([Secret(key) for key in keys])


def test_a_secret_shows_its_value_to_reveal_alone() -> None:
    secret = Secret(CANARY)
    assert secret.reveal() == CANARY
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret:>50}", "%s" % secret, repr([secret]), repr({"a": secret})):  # noqa: UP031
        assert CANARY not in shown


def test_a_secret_is_neither_pickled_nor_written_as_json() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret(CANARY))
    with pytest.raises(TypeError):
        json.dumps(Secret(CANARY))
    assert copy.deepcopy(Secret(CANARY)).reveal() == CANARY


def test_a_model_takes_a_text_and_shows_a_mask() -> None:
    class Model(BaseModel):
        secret: Secret

    model = Model.model_validate({"secret": CANARY})
    assert model.secret.reveal() == CANARY
    assert CANARY not in repr(model) + model.model_dump_json() + str(model.model_dump())


@pytest.mark.parametrize(("uri", "public"), [
    ("s3://AKIA:se/cr+et@bucket/a/b", "s3://bucket/a/b"),
    ("s3://AKIA:secret@bucket/a@b", "s3://bucket/a@b"),
    ("s3://bucket/a@b", "s3://bucket/a@b"),
    ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
    ("https://u:p@host:8443/a?sig=x#f", "https://host:8443/a"),
    ("https://u@host/a", "https://host/a"),
    ("https://host?X-Amz-Signature=x", "https://host"),
    ("http://host:8001/a@b", "http://host:8001/a@b"),
    ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
    ("http://u:pa/ss@host/a", "http://host/a"),
    ("HTTPS://u:p@host/a?b", "HTTPS://host/a"),
    ("file:///a?b#c@d", "file:///a?b#c@d"),
    ("plain text", "plain text"),
])
def test_a_public_uri_has_no_credentials_and_no_query(uri: str, public: str) -> None:
    assert public_uri(uri) == public
    assert has_secret(uri) is (uri != public)
    assert not has_secret(public)


@given(user=st.text("abcXYZ0189+=%", min_size=1), password=st.text("abcXYZ0189+/=:%?#", min_size=1))
def test_no_credentials_survive_whatever_they_are_made_of(user: str, password: str) -> None:
    assert public_uri(f"s3://{user}:{password}@bucket/key") == "s3://bucket/key"


def test_what_is_encrypted_comes_back_and_is_not_readable() -> None:
    ring = keyring(new_key())
    text = ring.encrypt({"source": CANARY})
    assert CANARY not in text
    assert ring.decrypt(text) == {"source": CANARY}


def test_keys_are_rotated_without_losing_what_older_ones_encrypted() -> None:
    old, new = new_key(), new_key()
    text = keyring(old).encrypt({"a": 1})
    both = keyring(new, old)
    assert both.decrypt(text) == {"a": 1}
    assert keyring(new).decrypt(both.rotate(text)) == {"a": 1}


def test_a_record_of_other_keys_is_a_matter_of_configuration() -> None:
    with pytest.raises(ConfigError, match="No key decrypts") as caught:
        keyring(new_key()).decrypt(keyring(new_key()).encrypt({"a": 1}))
    assert caught.value.code == "config.wrong_keys"


def test_a_fingerprint_is_recognised_under_old_keys_and_no_guess_can_be_checked_without_one() -> None:
    old, new = new_key(), new_key()
    before = keyring(old).fingerprint("https://user:password@host/")
    both = keyring(new, old)
    assert both.recognises(before, "https://user:password@host/")
    assert both.fingerprint("https://user:password@host/") != before
    assert not both.recognises(before, "https://user:passw0rd@host/")
    assert not keyring(new).recognises(before, "https://user:password@host/")


def test_cryptography_is_not_loaded_before_there_is_a_secret() -> None:
    script = """
import sys
from nommerd.secrets import Keyring, Secret, new_key
keyring = Keyring([Secret(new_key())])
keyring.fingerprint("x")
assert "cryptography" not in sys.modules
assert keyring.decrypt(keyring.encrypt({"a": 1})) == {"a": 1}
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("keys", [[], ["short"], [new_key(), "short"], [new_key() + "x"], ["é" * 44], ["short" * 9]])
def test_what_is_no_key_is_refused_without_being_shown(keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        keyring(*keys)
    assert "short" not in str(caught.value)


def test_keys_are_made_once_for_their_owner_alone_and_only_where_asked(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with pytest.raises(ConfigError, match="missing"):
        Keyring.load_or_make(data, (), make=False)
    text = Keyring.load_or_make(data, (), make=True).encrypt({"a": 1})
    assert (data / "keys").stat().st_mode & 0o777 == 0o600
    assert Keyring.load_or_make(data, (), make=False).decrypt(text) == {"a": 1}
    assert list(data.iterdir()) == [data / "keys"]


def test_configured_keys_go_before_the_file(tmp_path: Path) -> None:
    key = Secret(new_key())
    ring = Keyring.load_or_make(tmp_path, [key], make=True)
    assert Keyring([key]).decrypt(ring.encrypt({"a": 1})) == {"a": 1}
    assert not (tmp_path / "keys").exists()


def test_many_that_make_a_file_at_once_end_up_with_one_secret(tmp_path: Path) -> None:
    found: list[str] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        found.append(secret_file(tmp_path / "token", make=True, generate=new_token).reveal())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_an_empty_secret_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        secret_file(tmp_path / "token", make=True)
