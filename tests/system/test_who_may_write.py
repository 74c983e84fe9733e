"""With authentication on, hosts do all their work with a role of their own, and can do no other's.

The keys that the thief tries are all that lie in etcd while guests run, and one made up of every kind
for the other host; what it may is written down here once more, not taken from the product's roles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from cloud import Host, wait_for
from secured import LEADS, SecuredCluster

from ecompute.cluster import config, keys
from ecompute.cluster.documents import Alive, HostAudit, Incarnation, Lead, Node, State
from ecompute.cluster.errors import CloudError, NotPermitted
from ecompute.cluster.store import Delete, DeletePrefix, Put, Store, absent, present, unchanged
from ecompute.cluster.store.etcd3_loader import rpc
from ecompute.cluster.upkeep.leader import ROLE

WRITES = ("/seen/{}/", "/copies/{}/", "/operations/{}/", "/events/{}/", "/booted/")
WRITES_ONE = ("/nodes/{}", "/audits/{}", "/alive/{}", "/load/{}")
READS = ("/cluster/", "/hosts/{}/", "/secrets/{}/", "/networks/", "/zones/", "/gangs/", "/lead/")
READS_ONE = ("/admin/{}",)
NOT_READ = ("/booted/",)
SCHEMA = Path(__file__).parents[2] / "docs" / "key-schema.md"
FLOATING = ("203.0.113.7", "203.0.113.8")
ANYTHING = Incarnation(id="stolen", made_by="a thief", made_at="")


@pytest.fixture(scope="module")
def cloud(cloud_base: Path) -> Iterator[SecuredCluster]:
    with SecuredCluster(cloud_base, hosts=2) as cluster:
        yield cluster


@pytest.fixture
def thief(cloud: SecuredCluster) -> Iterator[Store]:
    """Etcd as it shows itself to who has the second host's credentials."""
    with Store(config.load(_victim(cloud).directory / "compute.yaml").etcd) as store:
        yield store


def _victim(cloud: SecuredCluster) -> Host:
    return cloud.hosts[1]


def may_write(provider: str, key: str) -> bool:
    return key.startswith(tuple(one.format(provider) for one in WRITES)) or key in {
        one.format(provider) for one in WRITES_ONE
    }


def may_read(provider: str, key: str) -> bool:
    if key.startswith(NOT_READ):
        return False
    return (
        may_write(provider, key)
        or key.startswith(tuple(one.format(provider) for one in READS))
        or key in {one.format(provider) for one in READS_ONE}
    )


def of_every_kind(provider: str, uuid: str) -> list[str]:
    """Return a key of every kind that there is, of ``provider`` where it names one."""
    return [
        keys.INCARNATION,
        keys.instance(uuid),
        keys.assignment(provider, uuid),
        keys.secrets(provider, uuid),
        keys.seen(provider, uuid),
        keys.node(provider),
        keys.audit(provider),
        keys.admin(provider),
        keys.alive(provider),
        keys.load(provider),
        keys.network(uuid),
        keys.port(uuid, uuid),
        keys.address(uuid, "10.0.0.1"),
        keys.mac(uuid, "52:54:00:00:00:01"),
        keys.network_host(uuid, provider),
        keys.vni(77),
        keys.pool("public"),
        keys.floating("203.0.113.7"),
        keys.name("system", "instance", "stolen", uuid),
        keys.name("system", "segment", "stolen", uuid),
        keys.booted(uuid),
        keys.zone("a"),
        keys.quota("system"),
        keys.group(uuid),
        keys.member(uuid, uuid),
        keys.tag("system", "a", uuid),
        keys.gang(uuid),
        keys.used_uuid(uuid),
        keys.idempotency("system", "a"),
        keys.expiry(1, uuid),
        keys.copy(provider, "http://images.example/a"),
        keys.intent(uuid),
        keys.operation(provider, uuid),
        keys.lead(ROLE),
        keys.lead("another"),
        *(keys.event(writer, "instance", uuid, 0) for writer in ("eschedule", "lead", provider)),
        keys.event("instance", uuid, provider, 0),
        "/",
        "/anything",
        "anything",
    ]


def test_a_key_of_every_kind_of_the_schema_is_tried() -> None:
    rows = re.findall(r"^\| `(/[^`]+)` \|", SCHEMA.read_text(encoding="utf-8").split("## Who may")[0], re.MULTILINE)
    assert len(rows) > 30
    tried = of_every_kind("p", "u")
    for row in rows:
        pattern = re.compile(re.sub(r"<[^>]+>", "[^/]+", row))
        assert any(pattern.fullmatch(key) for key in tried), row


def test_hosts_with_roles_of_their_own_build_run_and_remove_guests(cloud: SecuredCluster) -> None:
    with ThreadPoolExecutor(2) as pool:
        guests = list(pool.map(lambda host: cloud.launch(host=host, user_data="#!/bin/sh\necho here\n"), cloud.hosts))
    for guest in guests:
        assert cloud.show(guest.uuid)["state"] == "created"
        cloud.wait_booted(guest)
        assert "guest: booted" in cloud.eschedule("console", guest.uuid).stdout
        types = [event["type"] for event in _events(cloud, guest.uuid)]
        assert {"requested", "creating", "created"} <= set(types)
    cloud.agree()
    for host in cloud.hosts:
        host.restart()
    cloud.agree()
    cloud.destroy(*(guest.uuid for guest in guests))
    assert cloud.instances() == []
    cloud.agree()
    lead = cloud.store.get(keys.lead(ROLE), Lead)
    assert lead is not None and lead.value.holder.startswith(LEADS)


def test_a_host_without_the_leads_credentials_says_so_once_and_does_not_lead(cloud: SecuredCluster) -> None:
    first, second = cloud.hosts
    # The lead is free, and only the second is there to take it.
    first.stop()
    wait_for(lambda: cloud.store.get(keys.lead(ROLE), Lead) is None, what="nobody leads")
    wait_for(lambda: "leaves the lead to others" in second.log, what="the second has tried")
    guest = cloud.launch_idle(host=second)
    assert cloud.store.get(keys.lead(ROLE), Lead) is None
    assert len(re.findall("leaves the lead to others", second.log)) <= 2, "once a start"
    first.start()
    wait_for(lambda: cloud.store.get(keys.lead(ROLE), Lead), what="the first leads again")
    cloud.destroy(guest.uuid)


def test_nothing_is_refused_to_who_does_its_own_work(cloud: SecuredCluster) -> None:
    for host in cloud.hosts:
        refused = [line for line in host.log.splitlines() if "does not let" in line]
        assert all("leaves the lead to others" in line for line in refused), refused


def test_stolen_credentials_of_a_host_open_nothing_of_others(cloud: SecuredCluster, thief: Store) -> None:
    other, mine = cloud.hosts[0].provider, _victim(cloud).provider
    guests = [cloud.launch(host=host, user_data="secret") for host in cloud.hosts]
    cloud.eschedule("floating", "pool", "create", "public", "--cidr", "203.0.113.0/28")
    for guest, address in zip(guests, FLOATING, strict=True):
        cloud.eschedule("floating", "create", "--address", address, "--attach", guest.uuid)
    told = HostAudit(findings=(), reported_at="")
    cloud.store.commit([], [Put(keys.audit(host.provider), told) for host in cloud.hosts])
    own = Put(keys.seen(mine, "stolen"), ANYTHING)
    before = _revisions(cloud.store)
    assert {"/audits/", "/networks/", "/floating/", "/pools/"} <= {f"/{keys.parts(key)[0]}/" for key in before}
    assert any("/macs/" in key for key in before)
    tried = sorted({*before, *of_every_kind(other, guests[0].uuid)})
    for key in tried:
        if not may_read(mine, key):
            _refused(lambda key=key: thief.get(key, dict), key)
            _refused(lambda key=key: thief.keys(key), key)
            _refused(lambda key=key: thief.commit([absent(key)], []), key)
            _refused(lambda key=key: thief.commit([present(key)], []), key)
        if not may_write(mine, key):
            for operation in (Put(key, ANYTHING), Delete(key), DeletePrefix(key)):
                _refused(lambda operation=operation: thief.commit([], [operation]), key)
                # Nor hidden among what it may, nor where the comparison does not hold.
                if not own.key.startswith(key):
                    _refused(lambda operation=operation: thief.commit([], [own, operation]), key)
                _refused(lambda operation=operation: thief.commit([absent(keys.INCARNATION)], [operation]), key)
    after = _revisions(cloud.store)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert not {key for key in changed if may_write(mine, key) or other not in key}, changed
    cloud.store.commit([], [Delete(keys.audit(host.provider)) for host in cloud.hosts])
    # Its own work, and the others', goes on.
    more = cloud.launch_idle(host=_victim(cloud))
    cloud.destroy(more.uuid, *(guest.uuid for guest in guests))
    for address in FLOATING:
        cloud.eschedule("floating", "delete", address)
    cloud.eschedule("floating", "pool", "delete", "public")
    cloud.agree()


def test_stolen_credentials_of_a_host_open_what_is_its_own_and_no_more_of_it(
    cloud: SecuredCluster, thief: Store
) -> None:
    mine = _victim(cloud).provider
    opened: set[str] = set()
    kept = {keys.node(mine): Node, keys.alive(mine): Alive}  # its daemon lives by them
    for key in of_every_kind(mine, str(uuid4())):
        found = None
        if may_read(mine, key):
            found = thief.get(key, kept.get(key, dict))
            thief.keys(key)
        else:
            _refused(lambda key=key: thief.get(key, dict), key)
        if not may_write(mine, key):
            for operation in (Put(key, ANYTHING), Delete(key)):
                _refused(lambda operation=operation: thief.commit([], [operation]), key)
            continue
        opened.add(keys.parts(key)[0])
        if key in kept:
            assert found is not None
            thief.commit([unchanged(found)], [Put(key, found.value, lease=found.lease)])
            continue
        thief.commit([], [Put(key, ANYTHING)])
        thief.commit([], [Delete(key)])
    assert opened == {"seen", "nodes", "audits", "alive", "load", "copies", "operations", "events", "booted"}
    cloud.agree()


def test_no_range_that_reaches_beyond_its_own_is_read_or_deleted(cloud: SecuredCluster, thief: Store) -> None:
    mine = _victim(cloud).provider
    for start, end in (
        (b"\x00", b"\x00"),
        (b"/", b"0"),
        (b"/seen/", b"/seen0"),
        (f"/seen/{mine}/".encode(), b"/seen0"),
        (f"/hosts/{mine}/".encode(), f"/hosts/{mine}1".encode()),
        (f"/nodes/{mine[:-1]}".encode(), f"/nodes/{mine}".encode()),
        (b"/a", f"/alive/{mine}".encode()),
    ):
        ranged = rpc.RangeRequest(key=start, range_end=end, limit=1)
        _refused(lambda ranged=ranged: _call(thief, "kvstub", "Range", ranged), f"{start!r}")
        deleted = rpc.DeleteRangeRequest(key=start, range_end=end)
        _refused(lambda deleted=deleted: _call(thief, "kvstub", "DeleteRange", deleted), f"{start!r}")


def test_nothing_of_others_is_watched(cloud: SecuredCluster, thief: Store) -> None:
    seen: list[object] = []
    watcher = thief.watcher()
    follows = [watcher.follow(key, dict, seen.append) for key in ("/instances/", "/secrets/", "/hosts/", "/")]
    own = watcher.follow(keys.assignments(_victim(cloud).provider), dict, lambda change: None)
    assert own.wait_ready(10)
    assert not seen
    assert not any(follow.is_current for follow in follows)
    member = thief._members.current
    request = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"/instances/", range_end=b"/instances0"))
    answer = next(iter(member.watch_stub.Watch(iter([request]), timeout=5, metadata=member.metadata(5))))
    assert answer.canceled


def test_leases_users_and_the_cluster_are_not_its_to_change(cloud: SecuredCluster, thief: Store) -> None:
    for key in (keys.lead(ROLE), keys.alive(cloud.hosts[0].provider)):
        held = cloud.store.get(key, dict)
        assert held is not None
        _refused(lambda held=held: _call(thief, "leasestub", "LeaseRevoke", rpc.LeaseRevokeRequest(ID=held.lease)), key)
        assert cloud.store.get(key, dict) == held
    users, password = thief.users, rpc.AuthUserChangePasswordRequest(name="host-host-1", password="x")
    for change in (
        lambda: users.add("another", "x"),
        lambda: _call(thief, "auth_stub", "UserChangePassword", password),
        lambda: users.give("host-host-2", "root"),
        lambda: users.delete("host-host-1"),
        lambda: users.delete_role("ecompute-upkeep"),
        lambda: users.set_role("another", ()),
        lambda: users.roles_of("root"),
    ):
        _refused(change, "users")
    with pytest.raises(CloudError):
        _call(thief, "auth_stub", "AuthDisable", rpc.AuthDisableRequest())
    member = thief._members.current
    for stub, method, request in (
        (rpc.MaintenanceStub, "Snapshot", rpc.SnapshotRequest()),
        (rpc.MaintenanceStub, "Defragment", rpc.DefragmentRequest()),
        (rpc.ClusterStub, "MemberAdd", rpc.MemberAddRequest(peerURLs=["http://192.0.2.1:2380"])),
    ):
        with pytest.raises(grpc.RpcError, match="permission denied"):
            answer = getattr(stub(member.client.channel), method)(request, timeout=5, metadata=member.metadata(5))
            next(iter(answer))
    assert cloud.store.users.is_enabled()


def test_a_revoked_host_is_refused_and_a_new_enrolment_brings_it_back(cloud: SecuredCluster, thief: Store) -> None:
    victim = _victim(cloud)
    guest = cloud.launch_idle(host=victim)
    root = ("--config", cloud.root)
    cloud.eschedule(*root, "host", "revoke", victim.name)
    with pytest.raises(NotPermitted):
        thief.keys(keys.seen_by(victim.provider))
    assert victim.domains() == {guest.uuid: True}
    cloud.eschedule(
        *root, "host", "enrol", victim.name, "--ca", cloud.ca, "--out", cloud.directory / "enrolled" / victim.name,
        "--provider", victim.provider,
    )  # fmt: skip
    victim.restart()
    assert cloud.show(guest.uuid)["state"] == State.CREATED
    cloud.destroy(guest.uuid)
    cloud.agree()


def _events(cloud: SecuredCluster, ref: str) -> list[dict[str, Any]]:
    import json

    found: list[dict[str, Any]] = json.loads(cloud.eschedule("events", ref, "-o", "json").stdout)
    return found


def _revisions(store: Store) -> dict[str, int]:
    return {item.key: item.mod_revision for item in store.list("/", dict).items}


def _refused(attempt: Callable[[], object], key: str) -> None:
    with pytest.raises(NotPermitted):
        attempt()
        pytest.fail(f"{key} was not refused")


def _call(store: Store, stub: str, method: str, request: Any) -> Any:
    def pick(member: Any) -> Any:
        return getattr(getattr(member if stub == "auth_stub" else member.client, stub), method)

    return store._members.call(pick, request, may_repeat=True)
