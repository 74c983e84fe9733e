"""`cluster.agree` itself: it must see each kind of damage, or the tests that end with it show nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from uuid import uuid4

import agreement
from cloud import Cluster

from ecompute.cluster import keys
from ecompute.cluster.documents import Intent
from ecompute.cluster.store import Delete, Put


def test_agreement_names_every_damage(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(hosts=2)
    guest = cluster.launch_idle(host=cluster.hosts[0])
    cluster.launch_idle(host=cluster.hosts[1])
    cluster.agree()
    for host in cluster.hosts:
        host.kill()  # nobody repairs what is damaged now; the lease stays for a while
    cluster.hosts[0].start(wait=False, failpoint="nowhere")  # forwarding entries are looked at where a daemon runs
    host = guest.host
    cluster.agree()
    host.daemon.child.suspend()

    def now() -> str:
        return "\n".join(agreement.differences(cluster))

    def expect(*texts: str) -> None:
        found = now()
        for text in texts:
            assert text in found, f"{text!r} is not in:\n{found}"

    link = next(link for link in _links(cluster, guest.uuid) if link.startswith("ecx"))
    tap = next(link for link in _links(cluster, guest.uuid) if link.startswith("ect"))
    host.run("bridge", "fdb", "del", "00:00:00:00:00:00", "dev", link, "dst", cluster.hosts[1].address)
    host.run("ip", "link", "add", "ecb000001", "type", "bridge")
    host.run("ip", "link", "set", tap, "nomaster")
    host.run("nft", "delete", "table", "arp", "ecompute")
    (host.files(guest.uuid) / "config.iso").rename(host.state / "elsewhere.iso")
    (host.state / "instances" / str(uuid4())).mkdir()
    record = host.state / "memory" / "instances" / f"{guest.uuid}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"phase": "starting"}))
    stranger = str(uuid4())
    intent = Intent(consumer=stranger, kind="create", namespace="system", writer="test", made_at="")
    port = next(key for key in cluster.store.keys(keys.NETWORKS)[0] if "/ports/" in key)
    cluster.store.commit([], [Put(keys.intent(stranger), intent), Delete(keys.booted(guest.uuid)), Delete(port)])
    inventory = cluster.claims.inventories(host.provider).inventories["VCPU"]
    cluster.claims.claim(
        stranger,
        {host.provider: {"VCPU": inventory.min_unit}},
        {},
        project_id="system",
        user_id="test",
        consumer_type="ECOMPUTE_INSTANCE",
    )
    expect(
        f"{link} forwards",
        "devices that nothing needs: ['ecb000001']",
        f"{tap} is on None",
        "the filter's tables are ['bridge', 'inet']",
        f"the files of {guest.uuid} are ['console.log', 'disk.qcow2', 'metadata.json']",
        "is there, and no such instance",
        f"{guest.uuid} is remembered as starting",
        f"etcd has {keys.intent(stranger)}, which nothing needs",
        f"etcd lacks {keys.booted(guest.uuid)}",
        f"etcd lacks {port}",
        f"placement has an allocation of {stranger}",
    )
    cluster.claims.release(guest.uuid)
    (pid,) = host.guest_pids()[guest.uuid]
    subprocess.run(["kill", "-9", str(pid)], check=True)
    host.domain(guest.uuid).undefine()
    expect(f"instance {guest.uuid} claims {{}}", f"no domain of {guest.uuid}", f"no QEMU of {guest.uuid}")


def _links(cluster: Cluster, uuid: str) -> list[str]:
    return [link["ifname"] for link in json.loads(cluster.hosts[0].run("ip", "-j", "link").stdout)]
