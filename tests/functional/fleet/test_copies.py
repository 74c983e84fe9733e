"""Which images a host holds is said in etcd, as long as it holds them."""

from __future__ import annotations

import random
from collections.abc import Callable
from uuid import uuid4

from ecompute.cluster import keys
from ecompute.cluster.documents import Copy, State
from ecompute.cluster.store import Put, Store
from ecompute.copies import Copies
from ecompute.fleet import Fleet
from ecompute.storage.images import Held
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

URL = "http://images.example/small.qcow2"


def said(store: Store, provider: str) -> dict[str, Copy]:
    return {item.key: item.value for item in store.list(keys.copies(provider), Copy).items}


def held(*urls: str) -> dict[str, Held]:
    return {keys.image_digest(url): Held(url, "5" * 64, 512) for url in urls}


def test_what_is_held_is_said_and_what_is_dropped_is_not(store: Store) -> None:
    provider, urls = str(uuid4()), [f"http://images.example/{n}" for n in range(300)]
    now: list[str] = list(urls)
    copies = Copies(store, provider, lambda: held(*now), is_held=lambda: False, rng=random.Random(1))
    other = keys.copy(str(uuid4()), URL)
    store.commit([], [Put(other, Copy(url=URL, sha256="6" * 64, size_bytes=1))])
    assert copies.report() == 300
    assert set(said(store, provider)) == {keys.copy(provider, url) for url in urls}
    revision = store.status().revision
    assert copies.report() == 0
    assert store.status().revision == revision, "what is so already is not written"
    del now[1:]
    assert copies.report() == 299
    assert [copy.url for copy in said(store, provider).values()] == urls[:1]
    assert store.get(other, Copy) is not None


def test_a_host_on_hold_says_nothing(store: Store) -> None:
    provider = str(uuid4())
    copies = Copies(store, provider, lambda: held(URL), is_held=lambda: True, rng=random.Random(1))
    assert copies.report() == 0
    assert said(store, provider) == {}


def test_a_host_that_has_fetched_an_image_says_so_soon(
    make_fleet: Callable[..., Fleet], cloud: Cloud, store: Store, eventually: Callable[..., None]
) -> None:
    (host,) = make_fleet(hosts=1).hosts
    eventually(lambda: host.is_open, timeout_s=30)
    assert said(store, host.provider) == {}
    uuid = Launcher(cloud).launch(LaunchRequest(query="resources=VCPU:1,MEMORY_MB:64,DISK_GB:1", image=URL)).uuid
    instances = Instances(cloud)
    found = instances.find(uuid, "system")
    instances.wait(found, until=frozenset({State.CREATED}), timeout_s=30)
    eventually(lambda: set(said(store, host.provider)) == {keys.copy(host.provider, URL)}, timeout_s=10)
    instances.destroy(found)
    instances.wait(found, until=frozenset(), timeout_s=30)
