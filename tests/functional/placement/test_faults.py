"""What happens to calls whose way to placement, or placement itself, fails."""

from __future__ import annotations

import http.server
import itertools
import json
import socket
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.errors import InvalidInput, Outrun, PlacementUnavailable, Refused
from ecompute.cluster.placement import Candidate, Inventory, Placement
from ecompute.dev.placement import PlacementProcess

MakeProvider = Callable[..., str]
WRITES = ("PUT", "POST", "DELETE")


def new_uuid() -> str:
    return str(uuid.uuid4())


def claim(client: Placement, consumer: str, candidate: Candidate) -> None:
    client.claim(consumer, candidate.allocations, candidate.mappings, project_id="system", user_id="tester")


def candidate_on(client: Placement, provider: str) -> Candidate:
    (candidate,) = client.candidates(f"resources=VCPU:1&in_tree={provider}", limit=5)
    return candidate


class Once:
    """The fault at the first request that matches; none after that."""

    def __init__(self, fault: Enum, methods: tuple[str, ...] = WRITES) -> None:
        self.fault: Enum | None = fault
        self.methods = methods

    def __call__(self, method: str, path: str) -> Any:
        if method not in self.methods:
            return None
        fault, self.fault = self.fault, None
        return fault


WRITE_FAULTS = ["RESET_UNSENT", "RESET_UNANSWERED", "UNAVAILABLE", "UNAVAILABLE_DONE"]


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_a_claim_survives_one(
    fault: str, proxy: Any, faults: Any, faulty: Placement, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=1)
    consumer = new_uuid()
    candidate = candidate_on(client, host)
    proxy.fault = Once(faults[fault])
    claim(faulty, consumer, candidate)
    assert client.provider_allocations(host) == {consumer: {"VCPU": 1}}


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_a_release_survives_one(
    fault: str, proxy: Any, faults: Any, faulty: Placement, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=1)
    consumer = new_uuid()
    claim(client, consumer, candidate_on(client, host))
    proxy.fault = Once(faults[fault])
    assert faulty.release(consumer) is True
    assert client.provider_allocations(host) == {}


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_registering_a_provider_survives_one(
    fault: str, proxy: Any, faults: Any, faulty: Placement, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider()
    client.delete_provider(host)
    proxy.fault = Once(faults[fault])
    assert faulty.ensure_provider(host, f"host-{host}").uuid == host
    proxy.fault = Once(faults[fault])
    assert faulty.ensure_provider(host, f"renamed-{host}").name == f"renamed-{host}"
    proxy.fault = Once(faults[fault])
    faulty.set_inventories(host, {"VCPU": Inventory(total=3)})
    assert client.inventories(host).inventories["VCPU"].total == 3
    proxy.fault = Once(faults[fault])
    faulty.set_traits(host, {"CUSTOM_VIRT_QEMU"})
    assert client.traits(host) == {"CUSTOM_VIRT_QEMU"}
    proxy.fault = Once(faults[fault])
    faulty.delete_provider(host)
    assert client.provider(host) is None


def test_a_claim_refused_after_a_reset_is_refused(
    proxy: Any, faults: Any, faulty: Placement, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=1)
    candidate = candidate_on(client, host)
    claim(client, new_uuid(), candidate)
    proxy.fault = Once(faults["RESET_UNANSWERED"])
    with pytest.raises(Refused) as caught:
        claim(faulty, new_uuid(), candidate)
    assert caught.value.code == "placement.claim_refused"


def test_a_way_that_answers_503_one_time_in_three_loses_and_doubles_nothing(
    proxy: Any, faults: Any, faulty: Placement, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=12)
    candidate = candidate_on(client, host)
    kinds = [faults[name] for name in WRITE_FAULTS]
    lock, counts = threading.Lock(), Counter[tuple[str, str]]()

    def one_in_three(method: str, path: str) -> Any:
        """Every third request to each place, beginning with the first, the second or the third."""
        with lock:
            counts[method, path] += 1
            n = counts[method, path] + zlib.crc32(f"{method} {path}".encode())
        return kinds[n // 3 % len(kinds)] if n % 3 == 0 else None

    proxy.fault = one_in_three
    consumers = [new_uuid() for _ in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda consumer: claim(faulty, consumer, candidate), consumers))
    assert client.provider_allocations(host) == {consumer: {"VCPU": 1} for consumer in consumers}
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(faulty.release, consumers))
    assert client.provider_allocations(host) == {}


def test_a_worker_that_hangs_leaves_time_to_ask_again(
    proxy: Any, faults: Any, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=1)
    proxy.fault = Once(faults["HANG"], ("GET",))
    with Placement(PlacementSettings(endpoint=proxy.endpoint), timeout_s=2) as impatient:
        assert impatient.usages(host) == {"VCPU": 0}


def test_without_any_answer_a_claim_says_that_its_outcome_is_not_known(
    proxy: Any, faults: Any, faulty: Placement, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=1)
    consumer = new_uuid()
    candidate = candidate_on(client, host)
    proxy.fault = lambda method, path: faults["RESET_UNANSWERED"]
    with pytest.raises(PlacementUnavailable, match="not known whether the claim"):
        claim(faulty, consumer, candidate)
    proxy.fault = lambda method, path: None
    assert faulty.release(consumer) is True


def test_tries_are_bounded(proxy: Any, faults: Any, faulty: Placement) -> None:
    proxy.fault = lambda method, path: faults["UNAVAILABLE"]
    with pytest.raises(PlacementUnavailable, match="503"):
        faulty.provider(new_uuid())
    assert 2 <= len(proxy.seen) <= 8


def test_inventories_written_by_two_at_once_end_as_one_of_them_wrote_them(
    client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=1)
    wanted = [{"VCPU": Inventory(total=2 + n), "MEMORY_MB": Inventory(total=2 + n)} for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda inventories: client.set_inventories(host, inventories), wanted))
    assert client.inventories(host).inventories in wanted


def test_a_generation_that_moved_between_reading_and_writing_is_read_again(
    proxy: Any, faulty: Placement, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=1)
    others = iter(range(3))

    def somebody_else_is_faster(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("/inventories") and (n := next(others, None)) is not None:
            client.set_inventories(host, {"VCPU": Inventory(total=10 + n)})

    proxy.fault = somebody_else_is_faster
    assert faulty.set_inventories(host, {"VCPU": Inventory(total=5)}) is True
    assert client.inventories(host).inventories == {"VCPU": Inventory(total=5)}


def test_being_overtaken_again_and_again_is_told(proxy: Any, client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=1)
    others = itertools.count(10)

    def somebody_else_is_always_faster(method: str, path: str) -> None:
        if method == "PUT":
            client.set_inventories(host, {"VCPU": Inventory(total=next(others))})

    proxy.fault = somebody_else_is_always_faster
    with Placement(PlacementSettings(endpoint=proxy.endpoint), timeout_s=5) as slow, pytest.raises(Outrun):
        slow.set_inventories(host, {"VCPU": Inventory(total=5)})


def test_a_placement_that_is_down_is_told_quickly_with_where_and_since_when() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with Placement(PlacementSettings(endpoint=endpoint)) as client:
            began = time.monotonic()
            messages = []
            for _ in range(2):
                with pytest.raises(PlacementUnavailable) as caught:
                    client.check()
                messages.append(str(caught.value))
            assert time.monotonic() - began < 6
    assert endpoint in messages[0]
    assert "connection refused" in messages[0]
    assert "since 20" in messages[0]
    assert messages[0] == messages[1], "both have been since the first"


def test_a_frozen_placement_is_told_within_the_time_given(placement: PlacementProcess) -> None:
    placement.suspend()
    try:
        with Placement(PlacementSettings(endpoint=placement.endpoint), timeout_s=1) as client:
            began = time.monotonic()
            with pytest.raises(PlacementUnavailable, match="timed out"):
                client.usages(new_uuid())
            assert time.monotonic() - began < 2
    finally:
        placement.resume()


def test_a_killed_placement_comes_back_with_its_data(
    placement: PlacementProcess, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=1)
    consumer = new_uuid()
    claim(client, consumer, candidate_on(client, host))
    placement.kill()
    placement.restart()
    client.check()
    assert client.provider_allocations(host) == {consumer: {"VCPU": 1}}


# --- what is not placement, or not ours ------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[Any]:
    """A web server that says what it is told to say: ``stranger.answers[path] = (status, body)``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = server.answers.get(self.path, (404, b"<html>not here</html>"))  # type: ignore[attr-defined]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers = {}  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def client_of(stranger: Any) -> Placement:
    return Placement(PlacementSettings(endpoint=f"http://127.0.0.1:{stranger.server_port}"))


@pytest.mark.parametrize(("newest", "is_enough"), [("1.38", False), ("1.9", False), ("1.39", True), ("1.40", True)])
def test_a_placement_of_an_older_version_is_refused(stranger: Any, newest: str, is_enough: bool) -> None:
    versions = {"versions": [{"id": "v1.0", "min_version": "1.0", "max_version": newest}]}
    stranger.answers["/"] = (200, json.dumps(versions).encode())
    stranger.answers["/traits?name=in%3ACOMPUTE_STATUS_DISABLED"] = (200, b'{"traits": []}')
    with client_of(stranger) as client:
        if is_enough:
            client.check()
        else:
            with pytest.raises(Refused, match=f"1.39.*{newest}"):
                client.check()


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>It works!</html>"), (200, b'{"versions": 3}'), (404, b"no"), (302, b"")]
)
def test_what_is_not_placement_is_told_as_such(stranger: Any, status: int, body: bytes) -> None:
    stranger.answers["/"] = (status, body)
    with client_of(stranger) as client, pytest.raises(PlacementUnavailable, match="not placement"):
        client.check()


def test_a_token_that_is_not_accepted_is_told_and_not_shown(placement: PlacementProcess, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("mistaken-token\n")
    settings = PlacementSettings(endpoint=placement.endpoint, token_file=token)
    with Placement(settings) as client, pytest.raises(Refused, match="token_file") as caught:
        client.check()
    assert "mistaken-token" not in str(caught.value)


def test_a_token_from_a_file_is_used(placement: PlacementProcess, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("admin\n")
    with Placement(PlacementSettings(endpoint=placement.endpoint, token_file=token)) as client:
        client.check()


@pytest.mark.parametrize("content", [b"", b"two words", b"a\nb", b"\xff\xfe", None])
def test_a_token_file_without_one_token_is_refused(content: bytes | None, tmp_path: Path) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    with pytest.raises(InvalidInput, match="token"):
        Placement(PlacementSettings(token_file=token))
