"""What is not ours is never touched: through a build, a removal, a restart of the daemon and its scan, an audit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests
from cloud import Cluster, Host

from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S
from ecompute.hypervisor.domain import METADATA_NAMESPACE

FILE = "theirs.txt"
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid>{metadata}
  <memory unit='MiB'>16</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>{devices}</devices>
</domain>
"""
METADATA = """
<metadata><ec:instance xmlns:ec='{space}'>
  <ec:provider>{provider}</ec:provider><ec:namespace>system</ec:namespace><ec:name>theirs</ec:name>
</ec:instance></metadata>
"""


def test_a_foreign_domain_bridge_file_and_consumer_are_never_touched(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    theirs = _make_foreign(cluster, host)
    foreign = [*theirs, FILE]
    before = _look(cluster, host, theirs)

    guest = cluster.launch_idle(host=host)
    cluster.agree(foreign=foreign)
    assert _look(cluster, host, theirs) == before
    host.restart()
    cluster.agree(foreign=foreign)
    assert _look(cluster, host, theirs) == before
    cluster.destroy(guest.uuid)
    cluster.agree(foreign=foreign)
    host.restart()
    cluster.agree(foreign=foreign)
    assert _look(cluster, host, theirs) == before
    host.domain(theirs[1]).create()
    host.domain(theirs[1]).destroy()
    audit = Audit(cluster.store, cluster.claims, list, clock=itertools.count(0, 3 * GRACE_S).__next__)
    assert [audit.run(is_full=True) for _ in range(3)] == [(), (), ()]
    assert _look(cluster, host, theirs) == before
    _remove_foreign(cluster, host, theirs)
    # What happens to a foreign domain is none of our business, and not worth a line.
    assert not [line for line in host.log.splitlines() if any(uuid in line for uuid in theirs[:2])]


def _make_foreign(cluster: Cluster, host: Host) -> list[str]:
    """Make what resembles ours as much as may be; return the uuids of its domains and its consumer."""
    running, defined, consumer = str(uuid4()), str(uuid4()), str(uuid4())
    host.run("ip", "link", "add", "br-theirs", "type", "bridge")
    host.run("ip", "address", "add", "192.168.77.1/24", "dev", "br-theirs")
    host.run("ip", "link", "set", "br-theirs", "up")
    host.run("ip", "link", "add", "vx-theirs", "type", "vxlan", "id", "4097", "dstport", "4789", "local", host.address)
    host.run("nft", "add", "table", "inet", "theirs")
    interface = "<interface type='bridge'><source bridge='br-theirs'/><target dev='tap-theirs'/></interface>"
    plain = DOMAIN.format(name="theirs", uuid=running, metadata="", devices=interface)
    host.libvirt.defineXML(plain).create()
    # Made by ecompute, but of another host's provider: as after a disk was moved between machines.
    like_ours = METADATA.format(space=METADATA_NAMESPACE, provider=uuid4())
    host.libvirt.defineXML(DOMAIN.format(name=f"ec-{defined}", uuid=defined, metadata=like_ours, devices=""))
    for path in _files(host):
        path.parent.mkdir(exist_ok=True)
        path.write_text("theirs")
    cluster.claims.claim(
        consumer,
        {host.provider: {"VCPU": 1, "MEMORY_MB": 64}},
        {},
        project_id="theirs",
        user_id="theirs",
        consumer_type="INSTANCE",
    )
    return [running, defined, consumer]


def _remove_foreign(cluster: Cluster, host: Host, theirs: list[str]) -> None:
    running, defined, consumer = theirs
    host.domain(running).destroy()
    host.domain(running).undefine()
    host.domain(defined).undefine()
    for device in ("br-theirs", "vx-theirs"):
        host.run("ip", "link", "delete", device)
    host.run("nft", "delete", "table", "inet", "theirs")
    for path in _files(host):
        path.unlink()
    (host.state / "theirs").rmdir()
    # As its owner would: our own client refuses it.
    answer = requests.delete(
        f"{cluster.placement.endpoint}/allocations/{consumer}", headers={"X-Auth-Token": "admin"}, timeout=10
    )
    assert answer.status_code == 204


def _files(host: Host) -> list[Path]:
    return [host.state / "theirs.txt", host.state / "theirs" / "disk.qcow2", host.state / "instances" / FILE]


def _look(cluster: Cluster, host: Host, theirs: list[str]) -> dict[str, object]:
    running, defined, consumer = theirs
    links = {link["ifname"]: link for link in json.loads(host.run("ip", "-d", "-j", "address").stdout)}
    names = ("br-theirs", "vx-theirs", "tap-theirs")
    (pid,) = host.guest_pids()[running]
    return {
        "domains": [host.domain(uuid).XMLDesc() for uuid in (running, defined)],
        "process": pid,
        "links": {name: _facts(links[name]) for name in names},
        "files": [(path.read_text(), path.stat().st_mtime_ns) for path in _files(host)],
        "filter": host.run("nft", "list", "table", "inet", "theirs").stdout,
        "claim": cluster.claims.allocations(consumer),
    }


def _facts(link: dict[str, Any]) -> tuple[object, ...]:
    """Return what nobody but us could change; the kernel itself settles IPv6 addresses and carriers."""
    addresses = [address["local"] for address in link["addr_info"] if address["family"] == "inet"]
    return link["ifindex"], "UP" in link["flags"], link["mtu"], link.get("master"), addresses
