"""The real fetcher against a real HTTP server on loopback."""

from __future__ import annotations

import gzip
import hashlib
import ipaddress
import itertools
import logging
import os
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ecompute.cluster.config import ImageSettings
from ecompute.cluster.errors import Cancelled, InvalidImage, Refused, StorageError, Unavailable
from ecompute.storage import partial
from ecompute.storage.fetch import Fetcher, Limits, Validator, addresses, transport

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
IMAGE = bytes(range(256)) * 2048  # half a MiB, no known signature


def fetcher(allow: Any = LOOPBACK, *, limits: Limits | None = None, max_gb: int = 1, **named: Any) -> Fetcher:
    settings = ImageSettings(default="", allow_networks=tuple(allow), max_gb=max_gb)
    return Fetcher(settings, limits=limits or Limits(connect_s=2, stall_s=5), **named)


def is_empty(directory: Path) -> bool:
    return not list(directory.iterdir())


def refused_for(error: type[Exception], url: str, into: Path, match: str, **named: Any) -> str:
    """Expect the error, on one line, with a hint, and nothing left behind."""
    with pytest.raises(error, match=match) as caught:
        fetcher(**named).fetch(url, into)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.hint  # type: ignore[attr-defined]
    assert is_empty(into)
    return text


def test_an_image_arrives_whole_with_its_hash_and_validator(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.answer(IMAGE, ETag='"one"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")
    fetched = fetcher().fetch(server.url + "/i", tmp_path)
    assert fetched.path is not None
    assert fetched.path.read_bytes() == IMAGE
    assert fetched.sha256 == hashlib.sha256(IMAGE).hexdigest()
    assert fetched.size_bytes == len(IMAGE)
    assert fetched.validator == Validator('"one"', "Thu, 01 Jan 2026 00:00:00 GMT")
    headers = server.requests[0][1]
    assert headers["accept-encoding"] == "identity"
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert "authorization" not in headers
    partial.discard(fetched.path)
    assert is_empty(tmp_path)


def test_a_chunked_answer_is_taken(server: Any, http: Any, tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.answers["/i"] = http.raw(head, b"%x\r\n" % len(IMAGE), IMAGE, b"\r\n0\r\n\r\n")
    fetched = fetcher().fetch(server.url + "/i", tmp_path)
    assert fetched.path is not None
    assert fetched.path.read_bytes() == IMAGE
    partial.discard(fetched.path)


def test_long_runs_of_zeros_become_holes(server: Any, http: Any, tmp_path: Path) -> None:
    sparse = b"\x01" * 512 + bytes(8 << 20)
    server.answers["/i"] = http.answer(sparse)
    fetched = fetcher().fetch(server.url + "/i", tmp_path)
    assert fetched.path is not None
    assert fetched.path.read_bytes() == sparse
    assert fetched.path.stat().st_blocks * 512 < 1 << 20
    partial.discard(fetched.path)


@pytest.mark.parametrize("known", [Validator('"one"'), Validator(None, "Thu, 01 Jan 2026 00:00:00 GMT")])
def test_a_known_version_is_not_fetched_again(server: Any, http: Any, tmp_path: Path, known: Validator) -> None:
    server.answers["/i"] = http.answer(b"", status=304)
    fetched = fetcher().fetch(server.url + "/i", tmp_path, known=known)
    assert fetched.not_modified
    assert fetched.path is None
    headers = server.requests[0][1]
    assert headers.get("if-none-match") == known.etag
    assert headers.get("if-modified-since") == known.last_modified
    assert is_empty(tmp_path)


def test_an_unasked_not_modified_is_an_error(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.answer(b"", status=304)
    refused_for(InvalidImage, server.url + "/i", tmp_path, "304", allow=LOOPBACK)


def test_404_says_so(server: Any, tmp_path: Path) -> None:
    refused_for(InvalidImage, server.url + "/absent", tmp_path, "answers 404")


def test_503_is_unavailable_not_invalid(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.answer(b"", status=503)
    refused_for(Unavailable, server.url + "/i", tmp_path, "answers 503")


def test_a_reason_with_escapes_reaches_no_terminal(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.raw(b"HTTP/1.1 404 \x1b[31mgone\r\nContent-Length: 0\r\n\r\n")
    text = refused_for(InvalidImage, server.url + "/i", tmp_path, "404")
    assert text.isprintable()


def test_an_html_content_type_is_refused_before_its_body(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.answer(IMAGE, Content_Type="text/html; charset=utf-8")
    refused_for(InvalidImage, server.url + "/i", tmp_path, "HTML page")


def test_an_html_body_is_refused_whatever_its_type(server: Any, http: Any, tmp_path: Path) -> None:
    body = b"  <!DOCTYPE html>\n<html>" + b"x" * 4096
    server.answers["/i"] = http.answer(body, Content_Type="application/octet-stream")
    refused_for(InvalidImage, server.url + "/i", tmp_path, "HTML page")


def test_a_compressed_image_is_refused_after_its_first_bytes(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.raw(
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n",
        gzip.compress(os.urandom(100_000)),
        then=lambda: server.ended.wait(10),
    )
    refused_for(InvalidImage, server.url + "/i", tmp_path, "compressed with gzip")


def test_a_content_encoding_is_refused(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.answer(gzip.compress(IMAGE), Content_Encoding="gzip")
    refused_for(InvalidImage, server.url + "/i", tmp_path, "encoded")


def test_a_truncated_body_is_noticed(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", IMAGE)
    refused_for(Unavailable, server.url + "/i", tmp_path, "truncated: .* 524288 bytes, before 1000000")


def test_a_truncated_chunked_body_is_noticed(server: Any, http: Any, tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.answers["/i"] = http.raw(head, b"%x\r\n" % len(IMAGE), IMAGE, b"\r\n")
    refused_for(Unavailable, server.url + "/i", tmp_path, "truncated")


def test_a_body_of_unknown_length_is_refused(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.raw(b"HTTP/1.1 200 OK\r\n\r\n", IMAGE)
    refused_for(InvalidImage, server.url + "/i", tmp_path, "does not say how long")


def test_a_body_above_the_limit_is_refused_by_its_length(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741825\r\n\r\n")
    refused_for(InvalidImage, server.url + "/i", tmp_path, "larger than the 1 GiB")


def test_a_chunked_body_above_the_limit_is_ended(server: Any, http: Any, tmp_path: Path) -> None:
    def endless(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in itertools.count():
            handler.wfile.write(b"%x\r\n" % len(IMAGE) + IMAGE + b"\r\n")

    server.answers["/i"] = endless
    refused_for(InvalidImage, server.url + "/i", tmp_path, "larger than the 0 GiB", max_gb=0)


def test_an_image_for_which_the_disk_has_no_room_is_refused(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.answer(IMAGE)
    refused_for(StorageError, server.url + "/i", tmp_path, "no room", limits=Limits(kept_free_bytes=1 << 60))


def test_a_silent_server_is_given_up(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.raw(then=lambda: server.ended.wait(20))
    refused_for(Unavailable, server.url + "/i", tmp_path, "stalls", limits=Limits(stall_s=0.4))


def test_a_server_that_drips_its_header_is_given_up(server: Any, http: Any, tmp_path: Path) -> None:
    """Each byte comes in time, and the header never ends: a read timeout alone would wait for ever."""

    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not server.ended.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    server.answers["/i"] = drip
    refused_for(Unavailable, server.url + "/i", tmp_path, "stalls", limits=Limits(stall_s=0.4))


def test_a_server_that_drips_its_body_is_given_up(server: Any, http: Any, tmp_path: Path) -> None:
    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not server.ended.wait(0.05):
            handler.wfile.write(b"\x01")
            handler.wfile.flush()

    server.answers["/i"] = drip
    refused_for(Unavailable, server.url + "/i", tmp_path, "stalls", limits=Limits(stall_s=0.4))


def test_a_cancelled_fetch_ends_while_its_read_blocks(server: Any, http: Any, tmp_path: Path) -> None:
    has_begun = threading.Event()

    def hang(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        handler.wfile.write(IMAGE)
        has_begun.set()
        server.ended.wait(30)

    server.answers["/i"] = hang
    began = time.monotonic()
    with pytest.raises(Cancelled):
        fetcher(limits=Limits(stall_s=25)).fetch(server.url + "/i", tmp_path, cancelled=has_begun.is_set)
    assert time.monotonic() - began < 5
    assert is_empty(tmp_path)


def test_a_server_that_does_not_listen_is_unavailable(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused_for(Unavailable, f"http://127.0.0.1:{unused.getsockname()[1]}/i", tmp_path, "does not answer")


def test_an_unknown_host_is_unavailable(tmp_path: Path) -> None:
    refused_for(Unavailable, "http://nowhere.invalid/i", tmp_path, "cannot be resolved")


# --- where an image may not come from ------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"])
def test_loopback_is_refused_in_every_spelling(server: Any, tmp_path: Path, host: str) -> None:
    refused_for(Refused, f"http://{host}:{server.port}/i", tmp_path, "images may not come from", allow=())
    assert server.requests == []


def test_a_redirect_to_loopback_is_refused(server: Any, http: Any, tmp_path: Path) -> None:
    other = http.ImageServer()
    try:
        other.answers["/secret"] = http.answer(IMAGE)
        server.answers["/i"] = http.answer(b"", status=302, Location=f"http://127.0.0.2:{other.port}/secret")
        only_the_first = (ipaddress.ip_network("127.0.0.1/32"),)
        refused_for(Refused, server.url + "/i", tmp_path, "loopback", allow=only_the_first)
        assert other.requests == []
    finally:
        other.stop()


def test_a_redirect_to_an_allowed_network_is_followed(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/a"] = http.answer(b"", status=301, Location="/b")
    server.answers["/b"] = http.answer(b"", status=307, Location=f"{server.url}/i")
    server.answers["/i"] = http.answer(IMAGE)
    fetched = fetcher().fetch(server.url + "/a", tmp_path)
    assert fetched.size_bytes == len(IMAGE)
    assert fetched.path is not None
    partial.discard(fetched.path)


def test_endless_redirects_are_ended(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.answer(b"", status=302, Location="/i")
    refused_for(InvalidImage, server.url + "/i", tmp_path, "more than 5 times")
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/i", "gopher://127.0.0.1:2379/_x", "http://", "//", "http://a b/"],
)
def test_a_redirect_to_what_is_no_http_url_is_refused(server: Any, http: Any, tmp_path: Path, location: str) -> None:
    server.answers["/i"] = http.answer(b"", status=302, Location=location)
    refused_for(InvalidImage, server.url + "/i", tmp_path, ".")


def test_a_redirect_with_a_password_is_refused_and_not_shown(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.answer(b"", status=302, Location=f"http://me:hunter2@127.0.0.1:{server.port}/j")
    assert "hunter2" not in refused_for(Refused, server.url + "/i", tmp_path, "carries a user")


def test_a_name_is_resolved_once_and_only_checked_addresses_are_connected_to(
    server: Any, http: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that changes its answer between check and use gains nothing."""
    answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.3"]])
    monkeypatch.setattr(addresses, "resolve", lambda host, port: next(answers))
    server.answers["/i"] = http.answer(IMAGE)
    allowed = (ipaddress.ip_network("127.0.0.1/32"),)
    fetched = fetcher(allowed).fetch(f"http://images.example:{server.port}/i", tmp_path)
    assert fetched.path is not None
    partial.discard(fetched.path)
    assert server.requests[0][1]["host"] == f"images.example:{server.port}"
    assert next(answers) == ["127.0.0.2"]  # the name was looked up once


def test_of_several_addresses_only_the_allowed_ones_are_tried(
    server: Any, http: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "resolve", lambda host, port: ["127.0.0.9", "10.255.255.1", "127.0.0.1"])
    server.answers["/i"] = http.answer(IMAGE)
    allowed = (ipaddress.ip_network("127.0.0.1/32"),)
    fetched = fetcher(allowed).fetch(f"http://images.example:{server.port}/i", tmp_path)
    assert fetched.path is not None
    partial.discard(fetched.path)


def test_a_routable_address_of_this_host_itself_is_refused(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged by the kernel's answer, since no list of ours knows this machine's addresses."""
    monkeypatch.setattr(addresses, "objection", lambda address, allowed: None)
    refused_for(Refused, server.url + "/i", tmp_path, "this host itself", allow=())
    assert server.requests == []


def test_a_service_of_the_cloud_is_refused_wherever_it_is(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "objection", lambda address, allowed: None)
    etcd = f"localhost:{server.port}"
    refused_for(Refused, server.url + "/i", tmp_path, "service of the cloud", allow=(), refused=(etcd,))
    assert server.requests == []


def test_a_urllib3_that_passes_by_the_check_sends_nothing(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = transport._pool_classes

    def without_check(door: transport.Door) -> Any:
        classes = real(door)
        del classes["http"].ConnectionCls._new_conn  # type: ignore[attr-defined]
        return classes

    monkeypatch.setattr(transport, "_pool_classes", without_check)
    refused_for(Refused, server.url + "/i", tmp_path, "past the address check")
    assert server.requests == []


def test_proxies_and_netrc_of_the_environment_are_not_used(
    server: Any, http: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server.answers["/i"] = http.answer(IMAGE)
    into = tmp_path / "into"
    into.mkdir()
    fetched = fetcher().fetch(server.url + "/i", into)
    assert fetched.path is not None
    partial.discard(fetched.path)
    assert "authorization" not in server.requests[0][1]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://me:hunter2@example.org/i", Refused),
        ("http://hunter2@example.org/i", Refused),
        ("ftp://example.org/i", InvalidImage),
        ("images/x.qcow2", InvalidImage),
        ("", InvalidImage),
        ("http://", InvalidImage),
        ("http:///i", InvalidImage),
        ("http://[::1/i", InvalidImage),
        ("http://example.org:port/i", InvalidImage),
        ("http://example.org:99999/i", InvalidImage),
        ("http://example.org/a b", InvalidImage),
        ("http://example.org/\r\nX: y", InvalidImage),
        ("http://example.org/\x00", InvalidImage),
        ("http://" + "a" * 9000, InvalidImage),
        ("http://" + "a" * 300 + "/", (InvalidImage, Unavailable)),
        ("http://\udcff/", InvalidImage),
        ("file://elsewhere/etc/passwd", InvalidImage),
        ("json:{}", InvalidImage),
        ("nbd://127.0.0.1/x", InvalidImage),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_on_one_line(url: str, error: Any, tmp_path: Path) -> None:
    assert "hunter2" not in refused_for(error, url, tmp_path, ".")


def test_no_secret_of_a_url_is_logged_or_said(server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        text = refused_for(InvalidImage, server.url + "/i?signature=hunter2#hunter2", tmp_path, "404")
    assert "hunter2" not in text
    assert "hunter2" not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("ecompute"))
    assert server.requests[0][0] == "/i?signature=hunter2"


# --- https ---------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return cert


@pytest.fixture
def tls_server(server: Any, certificate: Path) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server.use_tls(context)
    return server


def test_https_is_verified_by_name_though_an_address_is_connected_to(
    tls_server: Any, http: Any, certificate: Path, tmp_path: Path
) -> None:
    tls_server.answers["/i"] = http.answer(IMAGE)
    fetched = fetcher(ca=certificate).fetch(tls_server.url + "/i", tmp_path)
    assert fetched.path is not None
    assert fetched.path.read_bytes() == IMAGE
    partial.discard(fetched.path)


def test_a_certificate_of_another_name_is_refused(tls_server: Any, certificate: Path, tmp_path: Path) -> None:
    url = f"https://127.0.0.1:{tls_server.port}/i"
    refused_for(Unavailable, url, tmp_path, "not trusted", ca=certificate)


def test_a_certificate_of_an_unknown_authority_is_refused(tls_server: Any, tmp_path: Path) -> None:
    refused_for(Unavailable, tls_server.url + "/i", tmp_path, "not trusted")


def test_a_redirect_away_from_https_is_refused(tls_server: Any, http: Any, certificate: Path, tmp_path: Path) -> None:
    tls_server.answers["/i"] = http.answer(b"", status=302, Location=f"http://localhost:{tls_server.port}/i")
    refused_for(Refused, tls_server.url + "/i", tmp_path, "redirects from https", ca=certificate)


def test_a_stalled_tls_transfer_is_ended(tls_server: Any, http: Any, certificate: Path, tmp_path: Path) -> None:
    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not tls_server.ended.wait(0.05):
            handler.wfile.write(b"\x01")

    tls_server.answers["/i"] = drip
    limits = Limits(stall_s=0.4)
    refused_for(Unavailable, tls_server.url + "/i", tmp_path, "stalls", ca=certificate, limits=limits)


def test_a_server_silent_in_the_tls_handshake_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/i"
        refused_for(Unavailable, url, tmp_path, "stalls", limits=Limits(stall_s=0.4))


def test_no_thread_and_no_descriptor_is_left(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/i"] = http.answer(IMAGE)
    source = fetcher()

    def descriptors() -> set[str]:
        return {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)}

    for url in ("/i", "/absent"):
        try:
            fetched = source.fetch(server.url + url, tmp_path)
        except InvalidImage:
            continue
        assert fetched.path is not None
        partial.discard(fetched.path)
    assert not [thread for thread in threading.enumerate() if thread.name == "image-watch"]
    assert not [name for name in descriptors() if str(tmp_path) in name]


def _is_open(name: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{name}")
