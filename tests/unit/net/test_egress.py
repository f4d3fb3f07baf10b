"""The outbound client: where it goes, where it never goes, and what it carries along."""

from __future__ import annotations

import datetime
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from nommerd import __version__
from nommerd.errors import InfrastructureError, InputError, NommerdError, Stop
from nommerd.net import session as session_module
from nommerd.net.egress import Egress
from nommerd.net.watched import watched
from tests.http_site import Handler, Site, drip, endless, serve, status

DAY = datetime.timedelta(days=1)
LOCAL = ["127.0.0.0/8"]
Names = Callable[[dict[str, Sequence[str]]], list[str]]


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        site.files["/a"] = b"media"
        yield site


@pytest.fixture
def other() -> Iterator[Site]:
    with serve() as site:
        site.files["/a"] = b"other media"
        yield site


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Answers to name look-ups, in place of DNS: each name's list is used up, its last entry stays."""
    def give(table: dict[str, Sequence[str]]) -> list[str]:
        asked: list[str] = []
        left = {name: list(answers) for name, answers in table.items()}

        def resolve(host: str, port: int) -> list[object]:
            asked.append(host)
            answers = left[host]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            return [ip_address(text) for text in answer.split()]

        monkeypatch.setattr(session_module, "resolve", resolve)
        return asked
    return give


def body(egress: Egress, url: str) -> bytes:
    with egress.get(url) as answer:
        assert answer.status == 200
        return answer.read(1000)


def refusal(call: Callable[[], object]) -> NommerdError:
    with pytest.raises(NommerdError) as caught:
        call()
    return caught.value


def port(site: Site) -> str:
    return site.url.rpartition(":")[2]


@pytest.mark.parametrize("host", [
    "127.0.0.1", "localhost", "LOCALHOST", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "[::1]", "[::]",
    "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "[64:ff9b::7f00:1]", "user:password@127.0.0.1", "example.com@127.0.0.1",
    "１２７.0.0.1", "127。0。0。1", "169.254.169.254", "[fd00:ec2::254]", "10.0.0.1", "[fe80::1]"])
def test_no_spelling_of_a_private_address_is_reached(site: Site, host: str) -> None:
    error = refusal(lambda: Egress().get(f"http://{host}:{port(site)}/a"))
    assert isinstance(error, InputError)
    assert error.code in ("source.forbidden_address", "source.bad_uri")
    if error.code == "source.forbidden_address":
        assert "net.allow_networks" in error.hint
    assert "password" not in str(error)
    assert not site.seen


@pytest.mark.parametrize("host", [
    "127.0.0.1", "localhost", "LocalHost.", "2130706433", "0x7f.1", "[::1]", "10.0.0.1", "u:p@192.168.0.1"])
def test_what_spells_a_private_address_is_refused_before_anything_is_resolved(host: str) -> None:
    assert refusal(lambda: Egress().check(f"https://{host}/a", "dest")).code == "dest.forbidden_address"
    Egress(["0.0.0.0/0", "::/0"]).check(f"https://{host}/a", "dest")


@pytest.mark.parametrize("url", [
    "ftp://example.com/", "file:///etc/passwd", "//example.com/", "http://", "http:///a", "http://a b/", "http://example.com:99999/",
    "http://example.com:0/", "http://example.com\\@127.0.0.1/", "http://[::1/", "http://exa\nmple.com/",
    "javascript:alert(1)", "", "gopher://h", "http://a..b/", "http://.example.com/", f"http://{'a' * 64}.com/"])
def test_what_is_no_http_url_is_refused(url: str) -> None:
    for call in (Egress().check, Egress().get):
        assert refusal(lambda call=call: call(url, "source")).code == "source.bad_uri"  # type: ignore[misc]


@given(st.one_of(st.text(), st.text().map("http://".__add__), st.text().map("https://user:pw@host/".__add__)))
def test_no_text_makes_the_check_fail_but_by_refusing(url: str) -> None:
    with suppress(InputError):
        Egress().check(url, "source")


def test_a_name_that_leads_to_a_private_address_is_refused_and_named(site: Site, names: Names) -> None:
    names({"evil.example": ["127.0.0.1"]})
    error = refusal(lambda: Egress().get(f"http://evil.example:{port(site)}/a"))
    assert error.code == "source.forbidden_address"
    assert "evil.example" in error.message
    assert not site.seen


def test_a_name_is_resolved_once_and_its_address_kept(site: Site, names: Names) -> None:
    asked = names({"rebinding.example": ["127.0.0.1", "169.254.169.254"]})
    assert body(Egress(["127.0.0.1/32"]), f"http://rebinding.example:{port(site)}/a") == b"media"
    assert asked == ["rebinding.example"]
    assert site.seen[0].headers["Host"] == f"rebinding.example:{port(site)}"
    again = refusal(lambda: Egress(["127.0.0.1/32"]).get(f"http://rebinding.example:{port(site)}/a"))
    assert again.code == "source.forbidden_address"


def test_of_several_addresses_a_permitted_one_is_taken(site: Site, names: Names) -> None:
    names({"both.example": ["10.0.0.1 127.0.0.1"]})
    assert body(Egress(LOCAL), f"http://both.example:{port(site)}/a") == b"media"


def test_a_name_without_an_address_may_have_one_later() -> None:
    error = refusal(lambda: Egress().get("http://nowhere.invalid/a"))
    assert (type(error), error.code) == (InfrastructureError, "source.unavailable")


def test_redirects_of_a_source_are_followed(site: Site, other: Site) -> None:
    site.script["/1"] = [status(302, Location="/2")]
    site.script["/2"] = [status(307, Location=other.url + "/a")]
    assert body(Egress(LOCAL), site.url + "/1") == b"other media"


def test_each_redirect_is_judged_like_the_first(site: Site) -> None:
    for location in ("http://169.254.169.254/latest/meta-data/", "http://[::1]/a", "http://10.0.0.1/", "//192.168.0.1/a"):
        site.script["/1"] = [status(302, Location=location)]
        assert refusal(lambda: Egress(["127.0.0.1/32"]).get(site.url + "/1")).code == "source.forbidden_address"
    for location in ("file:///etc/passwd", "ftp://127.0.0.1/", "http://[bad"):
        site.script["/1"] = [status(302, Location=location)]
        assert refusal(lambda: Egress(["127.0.0.1/32"]).get(site.url + "/1")).code == "source.bad_uri"


def test_redirects_come_to_an_end(site: Site) -> None:
    site.script["/1"] = [status(302, Location="/1") for _ in range(99)]
    assert refusal(lambda: Egress(LOCAL).get(site.url + "/1")).code == "source.too_many_redirects"
    assert len(site.seen) == 6


def test_credentials_stay_with_their_origin(site: Site, other: Site) -> None:
    site.script["/1"] = [status(302, Location="/2"), status(302, Location="/2")]
    site.script["/2"] = [status(302, Location=other.url + "/a") for _ in range(2)]
    url = site.url.replace("http://", "http://user:pass%40word@")
    body(Egress(LOCAL), url + "/1")
    assert site.seen[0].headers["Authorization"] == "Basic dXNlcjpwYXNzQHdvcmQ="
    assert other.seen[0].headers["Authorization"] is None
    with Egress(LOCAL).get(site.url + "/1", headers={"Authorization": "Bearer canary", "Range": "bytes=0-1"}) as answer:
        assert answer.status == 206
    assert site.seen[-1].headers["Authorization"] == "Bearer canary"
    assert other.seen[1].headers["Authorization"] is None
    assert other.seen[1].headers["Range"] == "bytes=0-1"


def test_only_sources_follow(site: Site) -> None:
    url = site.url + "/1"
    for send in (lambda e: e.put(url, b"x"), lambda e: e.post(url, b"x"), lambda e: e.head(url)):
        site.script["/1"] = [status(307, Location="/a")]
        with send(Egress(LOCAL)) as answer:
            assert answer.status == 307
    assert {request.path for request in site.seen} == {"/1"}


def test_a_redirect_with_an_endless_body_is_not_read(site: Site) -> None:
    site.script["/1"] = [endless(302, Location="/a")]
    assert body(Egress(LOCAL), site.url + "/1") == b"media"
    assert site.sent < 60_000_000


def test_nothing_is_taken_from_the_environment(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("default login user password canary\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert body(Egress(LOCAL), site.url + "/a") == b"media"
    assert site.seen[0].headers["Authorization"] is None
    assert site.seen[0].headers["User-Agent"] == f"nommerd/{__version__}"


def test_cookies_are_not_kept(site: Site) -> None:
    egress = Egress(LOCAL)
    site.script["/1"] = [status(200, Set_Cookie="session=canary; Path=/")]
    egress.get(site.url + "/1").close()
    body(egress, site.url + "/a")
    assert site.seen[1].headers["Cookie"] is None


def test_headers_without_end_are_given_up(site: Site) -> None:
    def many(handler: Handler) -> None:
        handler.head(200, **{f"X_{i}": "y" for i in range(200)})

    def long(handler: Handler) -> None:
        handler.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(64):
            handler.write(b"y" * 2**16)

    for act in (many, long):
        site.script["/1"] = [act]
        assert refusal(lambda: Egress(LOCAL).get(site.url + "/1")).code == "source.unavailable"


def test_a_server_that_says_nothing_is_left(site: Site) -> None:
    over = threading.Event()
    site.script["/1"] = [lambda handler: over.wait(20) and None]
    assert refusal(lambda: Egress(LOCAL, read_seconds=0.2).get(site.url + "/1")).message.endswith("no answer in time.")
    over.set()


def test_waiting_ends_in_time_whatever_drips(site: Site) -> None:
    over = threading.Event()
    site.script["/1"] = [drip(b"HTTP/1.1 200 OK\r\nX: ", 0.02, over)]
    with pytest.raises(TimeoutError):
        watched(lambda: Egress(LOCAL).get(site.url + "/1"), Stop(), 0.5)
    over.set()


def certificate(folder: Path, *names: str) -> Path:
    """A self-signed certificate with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            .serial_number(1).not_valid_before(now - DAY).not_valid_after(now + DAY)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True).sign(key, hashes.SHA256()))
    path = folder / "certificate.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return path


def test_a_certificate_must_be_trusted_and_for_the_name_not_the_address(tmp_path: Path, names: Names) -> None:
    names({"media.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})
    pem = certificate(tmp_path, "media.example")
    with serve(certificate=pem) as site:
        site.files["/a"] = b"media"
        at = port(site)
        assert body(Egress(LOCAL, ca_file=pem), f"https://media.example:{at}/a") == b"media"
        error = refusal(lambda: Egress(LOCAL, ca_file=pem).get(f"https://other.example:{at}/a"))
        assert (type(error), error.code) == (InputError, "source.bad_certificate")
        assert refusal(lambda: Egress(LOCAL).get(f"https://media.example:{at}/a")).code == "source.bad_certificate"


def test_it_works_without_gevent(site: Site, tmp_path: Path) -> None:
    script = f"""
        from nommerd.net.egress import Egress
        from nommerd.errors import InputError, Stop
        from nommerd.storage import build_registry
        from pathlib import Path
        registry = build_registry(["{tmp_path}"], Egress(["127.0.0.0/8"]), 1000)
        for uri in ("{site.url}/a", "file://{tmp_path}/first"):
            target = Path("{tmp_path}", "first" if uri[0] == "h" else "second")
            print(registry.for_uri(uri).fetch(uri, target, lambda done, total: None, Stop()).bytes)
        with Egress(["127.0.0.0/8"]).get("{site.url}/a") as answer:
            print(answer.read(100))
        try:
            Egress().get("{site.url}/a")
        except InputError as error:
            print(error.code)
        import sys
        print("gevent" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["5", "5", "b'media'", "source.forbidden_address", "False"], done.stderr
