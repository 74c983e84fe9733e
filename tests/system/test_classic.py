"""The grammar of the first etcd-compute: its outputs and exit codes, to the letter, on the whole cloud."""

from __future__ import annotations

import http.server
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from cloud import Cluster, Result
from images import ImageServer

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, Booted

QUERY = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:96"


def notified(cluster: Cluster, query: str, result: Result) -> tuple[str, str]:
    """Check the output of a launch; return provider and uuid."""
    match = re.fullmatch(
        rf"{re.escape(query)}\nNOTIFIED TARGET, ([0-9a-f-]{{36}}), OF INSTANCE ([0-9a-f-]{{36}})\n", result.stdout
    )
    assert match is not None, result
    assert (result.status, result.stderr) == (0, "")
    assert match[1] in [host.provider for host in cluster.hosts]
    return match[1], match[2]


def test_a_query_launches_and_the_uuid_gives_its_address_while_it_boots(cluster: Cluster) -> None:
    provider, uuid = notified(cluster, QUERY, cluster.eschedule(QUERY))
    address = cluster.eschedule(uuid)
    assert address == (0, f"{cluster.show(uuid)['addresses'][0]}\n", "")
    assignment = cluster.store.get(keys.assignment(provider, uuid), Assignment)
    assert assignment is not None
    assert assignment.key == f"/hosts/{provider}/{uuid}"
    booted = cluster.store.get(f"/booted/{uuid}", Booted)
    assert booted is not None
    assert f"{booted.value.ip}\n" == address.stdout
    cluster.agree()
    assert cluster.eschedule("destroy", uuid) == (0, "", "")
    cluster.agree()


def test_a_query_with_an_image_launches_that_image(cluster: Cluster, images: ImageServer) -> None:
    url = images.good()
    _, uuid = notified(cluster, QUERY, cluster.eschedule(QUERY, url))
    assert cluster.eschedule(uuid).status == 0
    assert cluster.show(uuid)["image"] == url
    assert images.requests(url) == 1
    cluster.agree()
    cluster.destroy(uuid)
    cluster.agree()


def test_any_placement_query_launches(cluster: Cluster) -> None:
    host = cluster.hosts[1]
    aggregate = str(uuid4())
    _aggregate(cluster, host.provider, [aggregate])
    queries = [
        f"{QUERY}&required=CUSTOM_VIRT_QEMU",
        f"{QUERY}&required=!HW_CPU_X86_AVX512F,CUSTOM_VIRT_QEMU&in_tree={host.provider}",
        f"{QUERY}&member_of={aggregate}",
        "resources_CPU=VCPU:1,MEMORY_MB:96&resources_DISK=DISK_GB:1&group_policy=none",
    ]
    uuids = []
    for query in queries:
        provider, uuid = notified(cluster, query, cluster.eschedule(query, cluster.idle_image))
        uuids.append(uuid)
        assert provider == host.provider or not re.search("in_tree|member_of", query)
    _aggregate(cluster, host.provider, [])
    cluster.agree()
    cluster.destroy(*uuids)
    cluster.agree()


def _aggregate(cluster: Cluster, provider: str, aggregates: list[str]) -> None:
    url = f"{cluster.placement.endpoint}/resource_providers/{provider}"
    headers = {"X-Auth-Token": "admin", "OpenStack-API-Version": "placement 1.39", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        generation = json.load(answer)["generation"]
    body = json.dumps({"aggregates": aggregates, "resource_provider_generation": generation}).encode()
    request = urllib.request.Request(f"{url}/aggregates", data=body, headers=headers, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_without_room_it_says_so_and_exits_1(cluster: Cluster) -> None:
    for query in (
        "resources=VCPU:1,DISK_GB:1,MEMORY_MB:999999",
        f"{QUERY}&required=STORAGE_DISK_SSD",  # which no host says of itself
        f"{QUERY}&in_tree={uuid4()}",
    ):
        assert cluster.eschedule(query, check=False) == (
            1,
            f"{query}\nNO ALLOCATIONS LEFT\nFAIL: no allocation available\n",
            "",
        )
    cluster.agree()


def test_when_every_claim_is_lost_it_says_which_and_exits_1(cluster: Cluster, rival: Rival) -> None:
    result = cluster.eschedule("--config", rival.config, QUERY, check=False)
    lines = result.stdout.splitlines()
    assert (result.status, lines[0], lines[-2:]) == (1, QUERY, ["NO ALLOCATIONS LEFT", "FAIL: no allocation available"])
    fails = lines[1:-2]
    assert len(fails) == 2
    assert {line.split()[2] for line in fails} == {host.provider for host in cluster.hosts}
    assert all(line.startswith("CLAIM FAIL: ") for line in fails)
    rival.give_back()
    cluster.agree()


def test_a_query_that_placement_refuses_shows_its_error_and_exits_1(cluster: Cluster) -> None:
    query = f"{QUERY},NO_SUCH_CLASS:1"
    result = cluster.eschedule(query, check=False)
    assert result.status == 1
    assert re.fullmatch(rf"{re.escape(query)}\nFAIL: .*NO_SUCH_CLASS.*\n", result.stdout), result
    assert result.stderr == ""
    cluster.agree()


def test_an_unknown_uuid_has_no_address_and_cannot_be_destroyed(cluster: Cluster) -> None:
    uuid = str(uuid4())
    assert cluster.eschedule(uuid, check=False) == (1, f"Instance {uuid} acquired no IP\n", "")
    assert cluster.eschedule("destroy", uuid, check=False) == (1, f"FAILED to find allocations for {uuid}\n", "")
    cluster.agree()


def test_an_instance_that_failed_has_no_address(cluster: Cluster, images: ImageServer) -> None:
    _, uuid = notified(cluster, QUERY, cluster.eschedule(QUERY, images.missing()))
    assert cluster.eschedule(uuid, check=False) == (1, f"Instance {uuid} acquired no IP\n", "")
    cluster.agree()
    assert cluster.eschedule("destroy", uuid) == (0, "", "")
    cluster.agree()


class Rival:
    """A way to placement on which somebody else always takes the room just before a claim for it."""

    def __init__(self, cluster: Cluster, config: Path) -> None:
        self.cluster = cluster
        self.config = config
        self.taken: list[str] = []
        rival = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.command == "PUT" and self.path.startswith("/allocations/"):
                    rival.take(list(json.loads(body)["allocations"]))
                request = urllib.request.Request(
                    rival.cluster.placement.endpoint + self.path,
                    data=body or None,
                    headers=dict(self.headers),
                    method=self.command,
                )
                try:
                    with urllib.request.urlopen(request, timeout=10) as answer:
                        status, headers, content = answer.status, answer.headers, answer.read()
                except urllib.error.HTTPError as error:
                    with error:
                        status, headers, content = error.code, error.headers, error.read()
                self.send_response(status)
                for name in ("Content-Type", "OpenStack-API-Version"):
                    if headers[name] is not None:
                        self.send_header(name, headers[name])
                if status != 204:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def __getattr__(self, name: str) -> object:
                if name.startswith("do_"):
                    return self.handle_one
                raise AttributeError(name)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer((cluster.address, 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        endpoint = f"http://{cluster.address}:{self._server.server_address[1]}"
        config.write_text(yaml.safe_dump({**cluster.settings, "placement": {"endpoint": endpoint}}))

    def take(self, providers: list[str]) -> None:
        for provider in providers:
            total = self.cluster.claims.inventories(provider).inventories["MEMORY_MB"].total
            consumer = str(uuid4())
            self.cluster.claims.claim(
                consumer,
                {provider: {"MEMORY_MB": total}},
                {},
                project_id="rival",
                user_id="rival",
                consumer_type="ECOMPUTE_RIVAL",
            )
            self.taken.append(consumer)

    def give_back(self) -> None:
        for consumer in self.taken:
            self.cluster.claims.release(consumer)
        self.taken.clear()

    def close(self) -> None:
        self.give_back()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def rival(cluster: Cluster, tmp_path: Path) -> Iterator[Rival]:
    made = Rival(cluster, tmp_path / "compute.yaml")
    yield made
    made.close()
