"""What one host has, against what etcd says it is to have: its part of `agreement.differences`.

Each function looks afresh and yields a sentence for each difference. ``mine`` are the instances that are to be on
the host, ``on`` the uuids of those that are to run, ``ignored`` uuids (or names) that may be there or not.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import libvirt

from ecompute.cluster.documents import ConfigDrive, Instance, Interface, Port
from ecompute.instances.interfaces import lan_uuid
from ecompute.storage.place import MARK

if TYPE_CHECKING:
    from agreement import Picture
    from cloud import Host

FILES = {"disk.qcow2", "console.log", "metadata.json"}
FILTER = {"bridge", "inet", "arp"}
ZEROS = "00:00:00:00:00:00"


def _drive(instance: Instance) -> tuple[str, ...]:
    return () if instance.spec.config_drive is ConfigDrive.NONE else ("config.iso",)


def domains(host: Host, mine: dict[str, Instance], on: set[str], ignored: set[str]) -> Iterator[str]:
    found = {}
    for domain in host.libvirt.listAllDomains():
        try:
            found[domain.UUIDString()] = (bool(domain.isActive()), ET.fromstring(domain.XMLDesc()))
        except libvirt.libvirtError as error:
            yield f"a domain went while it was looked at: {error}"
    for uuid in sorted(mine.keys() - found.keys()):
        yield f"no domain of {uuid}"
    for uuid, (is_active, xml) in found.items():
        if uuid in ignored:
            continue
        if uuid not in mine:
            yield f"a domain {xml.findtext('name')} ({uuid}) that no instance has"
            continue
        if is_active != (uuid in on):
            yield f"the domain of {uuid} {'runs' if is_active else 'does not run'}"
        yield from (f"the domain of {uuid}: {text}" for text in _of_domain(host, mine[uuid], xml))
    for uuid, pids in host.guest_pids().items():
        if uuid not in ignored and (len(pids) != 1 or uuid not in on):
            yield f"QEMUs of {uuid}: {pids}"
    if missing := on - host.guest_pids().keys():
        yield f"no QEMU of {', '.join(sorted(missing))}"


def _of_domain(host: Host, instance: Instance, xml: ET.Element) -> Iterator[str]:
    resources = instance.spec.resources
    owner = {child.tag.rsplit("}", 1)[-1]: child.text for child in xml.findall("./metadata/*/*")}
    wanted = {"provider": instance.provider, "namespace": instance.namespace, "name": instance.name}
    if owner != wanted:
        yield f"its metadata is {owner}, not {wanted}"
    shape = (xml.findtext("vcpu"), int(xml.findtext("memory") or 0) // 1024)
    if shape != (str(resources.vcpus), resources.memory_mb):
        yield f"it has {shape[0]} vcpus and {shape[1]} MB"
    disks = [source.get("file") for source in xml.findall("./devices/disk/source")]
    if disks != [str(host.files(instance.uuid) / name) for name in ("disk.qcow2", *_drive(instance))]:
        yield f"its disks are {disks}"
    interfaces = [
        tuple(part.get(attribute) for part, attribute in zip(parts, ("address", "dev", "bridge"), strict=True))
        for element in xml.findall("./devices/interface")
        if (parts := [part for name in ("mac", "target", "source") if (part := element.find(name)) is not None])
    ]
    ours = [(i.mac, _tap(i.uuid), _bridge(host, i)) for i in instance.spec.interfaces]
    if interfaces[: len(ours)] != ours:
        yield f"its interfaces are {interfaces}, not {ours}"


def files(host: Host, mine: dict[str, Instance], ignored: set[str]) -> Iterator[str]:
    directory = host.state / "instances"
    found = {path.name: path for path in directory.iterdir() if path.name != MARK} if directory.exists() else {}
    for name in sorted(found.keys() - mine.keys() - ignored):
        yield f"{found[name]} is there, and no such instance"
    for uuid, instance in mine.items():
        names = {path.name for path in found[uuid].iterdir()} if uuid in found else set()
        if names != FILES | set(_drive(instance)):
            yield f"the files of {uuid} are {sorted(names)}"
            continue
        size_gb, base = _qcow2(found[uuid] / "disk.qcow2")
        if size_gb != instance.spec.resources.disk_gb:
            yield f"the disk of {uuid} has {size_gb} GB"
        if base is None or not base.exists() or base.parent != host.state / "images" / "images":
            yield f"the disk of {uuid} lies on {base}"
    unfinished = [path for path in host.state.rglob("*") if re.search(r"\.(new|part|partial|tmp)\b", path.name)]
    if unfinished:
        yield f"unfinished files: {unfinished}"


def _qcow2(path: Path) -> tuple[float, Path | None]:
    """Return the size in GB and the backing file (docs/interop/qcow2.txt: the header)."""
    with path.open("rb") as file:
        header = file.read(32)
        _, _, offset, length, _, size = struct.unpack(">4sIQIIQ", header)
        file.seek(offset)
        return size / 2**30, Path(file.read(length).decode()) if offset else None


def devices(
    host: Host, etcd: Picture, provider: str, mine: dict[str, Instance], on: set[str], ignored: set[str]
) -> Iterator[str]:
    links = {link["ifname"]: link for link in json.loads(host.run("ip", "-d", "-j", "address").stdout)}
    joined = {i.network_uuid: i for instance in mine.values() for i in instance.spec.interfaces}
    networks = {uuid: interface for uuid, interface in joined.items() if interface.physical is None}
    taps = {_tap(i.uuid): _bridge(host, i) for uuid in on for i in mine[uuid].spec.interfaces}
    if (lan := host.settings.get("bridge")) is not None:
        taps |= {_tap(lan_uuid(uuid, lan)): lan for uuid in on}
    wanted = {f"ecb{i.vni:06x}" for i in networks.values()} | {f"ecx{i.vni:06x}" for i in networks.values()} | set(taps)
    ours = {name for name in links if re.match("ec[bxt]", name)}
    if not ignored:
        if ours - wanted:
            yield f"devices that nothing needs: {sorted(ours - wanted)}"
        tables = set(re.findall(r"table (\w+) ecompute$", host.run("nft", "list", "tables").stdout, re.MULTILINE))
        if tables != (FILTER if wanted else set()):
            yield f"the filter's tables are {sorted(tables)}"
        if host.is_running:
            yield from _rules(host, etcd, provider, joined, mine)
    if wanted - ours:
        yield f"devices that are missing: {sorted(wanted - ours)}"
    for name in sorted(ours & wanted):
        if "UP" not in links[name]["flags"]:
            yield f"{name} is down"
        if links[name]["addr_info"]:
            yield f"{name} has addresses: {links[name]['addr_info']}"
    for tap, bridge in taps.items():
        if tap in links and links[tap].get("master") != bridge:
            yield f"{tap} is on {links[tap].get('master')}"
    for uuid, interface in networks.items():
        name = f"ecx{interface.vni:06x}"
        if name in links:
            yield from _vxlan(host, etcd, provider, uuid, interface.vni, links[name])


def _rules(
    host: Host, etcd: Picture, provider: str, networks: dict[str, Interface], mine: dict[str, Instance]
) -> Iterator[str]:
    """The filter has a chain for each port here, and takes VXLAN packets from each network's other members."""
    listed = host.run("nft", "-j", "list", "ruleset").stdout
    items = [next(iter(item.items())) for item in json.loads(listed)["nftables"]]
    chains = {body["name"] for kind, body in items if kind == "chain" and re.search(r"\.ect", body["name"])}
    ports = {
        f"n{networks[n].vni:06x}.{_tap(port.interface_uuid)}"
        for (n, _), port in etcd.ports.items()
        if port.provider == provider and n in networks
    }
    if (lan := host.settings.get("bridge")) is not None:
        ports |= {f"n000000.{_tap(lan_uuid(uuid, lan))}" for uuid in mine}
    if chains != ports:
        yield f"the filter has chains {sorted(chains)}, not {sorted(ports)}"
    for (n, _), port in etcd.ports.items():
        if port.provider == provider and n in networks:
            yield from _of_tap(items, f"n{networks[n].vni:06x}.{_tap(port.interface_uuid)}", port)
    members = {
        body["name"]: set(body.get("elem", ()))
        for kind, body in items
        if kind == "set" and body["name"].endswith(".members")
    }
    wanted = {
        f"n{interface.vni:06x}.members": {
            m.underlay for (n, p), m in etcd.members.items() if n == uuid and p != provider
        }
        for uuid, interface in networks.items()
        if interface.physical is None
    }
    if members != wanted:
        yield f"the filter knows the members {members}, not {wanted}"


def _of_tap(items: list[tuple[str, Any]], chain: str, port: Port) -> Iterator[str]:
    """Its rules name its own MAC and addresses, and no others."""
    said = json.dumps([body["expr"] for kind, body in items if kind == "rule" and body["chain"] == chain])
    if not said.strip("[]"):
        return  # said by those who look for chains
    macs = set(re.findall(r'"((?:[0-9a-f]{2}:){5}[0-9a-f]{2})"', said))
    addresses = set(re.findall(r'"(\d+\.\d+\.\d+\.\d+)"', said)) - {"0.0.0.0", "255.255.255.255"}
    own = {address.split("/")[0] for address in (*port.addresses, *port.routed)}  # none: it may have any
    wanted = {port.mac}, {address for address in own if ":" not in address}
    if (macs, addresses) != wanted:
        yield f"the chain {chain} is about {sorted(macs)} with {sorted(addresses)}, not about {port}"


def _vxlan(host: Host, etcd: Picture, provider: str, network: str, vni: int, link: dict[str, Any]) -> Iterator[str]:
    name, data = link["ifname"], link["linkinfo"]["info_data"]
    what = ("id", "local", "port", "learning", "proxy")
    facts = (*(data.get(name) for name in what), link.get("master"), link["mtu"])
    mtu = etcd.networks[network].mtu if network in etcd.networks else None
    wanted = (vni, host.address, 4789, False, True, f"ecb{vni:06x}", mtu)
    if facts != wanted:
        yield f"{name} is {facts}, not {wanted}"
    if not host.is_running:
        return
    underlays = {p: m.underlay for (n, p), m in etcd.members.items() if n == network and p != provider}
    entries = {(ZEROS, underlay) for underlay in underlays.values()} | {
        (port.mac, underlays[port.provider])
        for (n, _), port in etcd.ports.items()
        if n == network and port.provider in underlays
    }
    found = {
        (entry["mac"], entry["dst"])
        for entry in json.loads(host.run("bridge", "-j", "fdb", "show", "dev", name).stdout or "[]")
        if "dst" in entry
    }
    if found != entries:
        yield f"{name} forwards {sorted(found)}, not {sorted(entries)}"
    neighbours = {
        (address.split("/")[0], port.mac)
        for (n, _), port in etcd.ports.items()
        for address in (*port.addresses, *port.routed)
        if n == network and port.provider in underlays
    }
    found = {
        (neighbour["dst"], neighbour["lladdr"])
        for neighbour in json.loads(host.run("ip", "-j", "neighbour", "show", "dev", name).stdout or "[]")
        if not neighbour["dst"].startswith("fe80:")
    }
    if found != neighbours:
        yield f"{name} answers for {sorted(found)}, not for {sorted(neighbours)}"


def memory(host: Host, mine: dict[str, Instance], ignored: set[str]) -> Iterator[str]:
    records = {path.stem: json.loads(path.read_text()) for path in (host.state / "memory" / "instances").glob("*.json")}
    for uuid in sorted(mine.keys() - records.keys()):
        yield f"{uuid} is not remembered"
    for uuid, record in records.items():
        wanted = ("running", mine[uuid].epoch) if uuid in mine else ("removed", record["epoch"])
        if uuid not in ignored and (record["phase"], record["epoch"]) != wanted:
            yield f"{uuid} is remembered as {record['phase']} in epoch {record['epoch']}, not {wanted}"


def _bridge(host: Host, interface: Interface) -> str:
    if interface.physical is None or interface.vlan is not None:
        return f"ecb{interface.vni:06x}"
    bridge: str = host.settings["bridges"][interface.physical]
    return bridge


def _tap(interface_uuid: str) -> str:
    return "ect" + interface_uuid.replace("-", "")[:11]
