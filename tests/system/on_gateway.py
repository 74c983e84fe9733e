"""What one host does for its guests' networks, against what etcd says: its part of `agreement.differences`.

Namespaces, the devices that lead into them, dnsmasqs and what they give out and know, the metadata service and whom
it knows, translations, routes and what the host answers for, rules, and what is remembered. Nothing more than that is
to be there. Looked at with ``ip``, ``nft`` and ``ss`` and in /proc, as in `on_host`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecompute.cluster.documents import Instance, Network, NetworkKind, Port
from ecompute.cluster.errors import StepFailed
from ecompute.dev.hosts import ip, namespaces

if TYPE_CHECKING:
    from agreement import Picture
    from cloud import Host

GATEWAY = {"inet", "arp"}


def gateways(host: Host, etcd: Picture, provider: str, mine: dict[str, Instance], ignored: set[str]) -> Iterator[str]:
    used = {i.network_uuid for instance in mine.values() for i in instance.spec.interfaces}
    networks = {
        uuid: network for uuid, network in etcd.networks.items() if uuid in used and network.kind is NetworkKind.VIRTUAL
    }
    ports = {uuid: [port for (n, _), port in etcd.ports.items() if n == uuid] for uuid in networks}
    served = {uuid: [port for port in found if port.provider == provider] for uuid, found in ports.items()}
    out = {uuid for uuid, network in networks.items() if _leads_out(network, served[uuid])}
    names = {uuid: f"ec-{network.vni:06x}-{provider[:8]}" for uuid, network in networks.items()}
    found = {name for name in namespaces() if re.fullmatch(rf"ec-[0-9a-f]{{6}}-{provider[:8]}", name)}
    dnsmasqs = _dnsmasqs(host)
    with_dnsmasq = {f"{n.vni:06x}" for n in networks.values() if n.has_dhcp or n.has_dns}
    if several := {vni: pids for vni, pids in dnsmasqs.items() if len(pids) > 1}:
        yield f"several dnsmasqs of one network: {several}"
    if not ignored:
        marked = {str(etcd.networks[uuid].vni) for uuid in used & etcd.networks.keys()}
        remembered = {path.name for path in (host.state / "memory" / "networks").glob("*")}
        if remembered != marked:
            yield f"the networks {sorted(remembered)} are remembered, not {sorted(marked)}"
        yield from _nothing_more(host, networks, found - set(names.values()), set(dnsmasqs) - with_dnsmasq, out)
    if missing := set(names.values()) - found:
        yield f"namespaces that are missing: {sorted(missing)}"
    yield from _told(host, networks, served, ignored)
    if not host.is_running:
        return
    if not ignored:
        yield from _egress(host, etcd, {uuid: networks[uuid] for uuid in out}, served)
    if missing := with_dnsmasq - set(dnsmasqs):
        yield f"no dnsmasq of {sorted(missing)}"
    for uuid, network in networks.items():
        if names[uuid] in found:
            try:
                for difference in (
                    *_inside(names[uuid], network, served[uuid], is_out=uuid in out),
                    *_listening(names[uuid]),
                    *_way_in(host, network, served[uuid], is_out=uuid in out),
                    *_given(host, network, served[uuid]),
                    *_known(host, network, ports[uuid]),
                ):
                    yield f"network {network.vni:06x}: {difference}"
            except (StepFailed, OSError) as error:
                yield f"network {network.vni:06x} cannot be looked at: {error}"


def _leads_out(network: Network, served: list[Port]) -> bool:
    return network.has_nat or network.has_dns or any(port.floating or port.routed for port in served)


def _nothing_more(
    host: Host, networks: dict[str, Network], namespaces_: set[str], dnsmasqs: set[str], out: set[str]
) -> Iterator[str]:
    if namespaces_:
        yield f"namespaces that nothing needs: {sorted(namespaces_)}"
    if dnsmasqs:
        yield f"dnsmasqs that nothing needs: {sorted(dnsmasqs)}"
    links = {link["ifname"] for link in json.loads(host.run("ip", "-j", "link").stdout)}
    wanted = {f"ecg{n.vni:06x}" for n in networks.values()} | {f"ecu{networks[uuid].vni:06x}" for uuid in out}
    if links_ := {name for name in links if re.match("ec[gu]", name)} ^ wanted:
        yield f"devices of gateways that nothing needs, or that are missing: {sorted(links_)}"
    tables = set(re.findall(r"table (\w+) ecompute_gateway$", host.run("nft", "list", "tables").stdout, re.MULTILINE))
    if tables != (GATEWAY if out else set()):
        yield f"the tables of the gateways are {sorted(tables)}"
    files = {path.name for path in (host.state / "networks").glob("*")}
    if files != {f"{n.vni:06x}" for n in networks.values() if n.has_dhcp or n.has_dns}:
        yield f"there are files of networks {sorted(files)}"
    if not out and (host.state / "memory" / "egress.json").exists():
        yield "it is remembered how the egress device was set, and it is not set back"


def _dnsmasqs(host: Host) -> dict[str, list[int]]:
    """Return the process ids of this host's dnsmasqs by the hexadecimal VNI of their network."""
    found: dict[str, list[int]] = {}
    for pid, arguments in _processes("dnsmasq", host).items():
        found.setdefault(Path(arguments[1]).parent.name, []).append(pid)
    return found


def _processes(program: str, host: Host) -> dict[int, list[str]]:
    """Return the ids and command lines of this host's processes that run ``program``."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_text(errors="replace").split("\0")
            except OSError:
                continue
            if program in arguments and any(str(host.state) in argument for argument in arguments):
                found[int(entry.name)] = arguments
    return found


def _inside(namespace: str, network: Network, served: list[Port], *, is_out: bool) -> Iterator[str]:
    links = {link["ifname"]: link for link in json.loads(ip("-n", namespace, "-j", "address"))}
    addresses = {"169.254.169.254/32", "fe80::a9fe:a9fe/64"}
    for own, cidr in ((network.gateway, network.cidr), (network.gateway6, network.cidr6)):
        if own is not None and cidr is not None:
            addresses.add(f"{own}/{cidr.split('/')[1]}")
    if links.keys() != {"lo", "lan"} | ({"up"} if is_out else set()):
        yield f"there are the devices {sorted(links)}"
        return
    lan = links["lan"]
    found = {f"{a['local']}/{a['prefixlen']}" for a in lan["addr_info"]}
    if (found, lan["address"]) != (addresses, f"06:ec:01:{network.vni.to_bytes(3, 'big').hex(':')}"):
        yield f"its gateway is {lan['address']} with {sorted(found)}, not {sorted(addresses)}"
    floating = {(port.floating, port.addresses[0].split("/")[0]) for port in served if port.floating}
    wanted = {
        "floating": floating,
        "masks": {(inner, outer) for outer, inner in floating},
        "own": {inner for _, inner in floating},
        "routed": {address for port in served for address in _routed(network, port)},
    }
    found = _sets(ip("netns", "exec", namespace, "nft", "-j", "list", "table", "inet", "ecompute"))
    for name, members in wanted.items():
        if found.get(name) != members:
            yield f"its rules know as {name} {sorted(found.get(name, ()))}, not {sorted(members)}"


def _sets(listing: str) -> dict[str, set[Any]]:
    """Return the members of all sets and maps, by name."""
    items = [item.get("set") or item.get("map") for item in json.loads(listing)["nftables"]]
    return {
        one["name"]: {tuple(member) if isinstance(member, list) else member for member in one.get("elem", ())}
        for one in items
        if one is not None
    }


def _routed(network: Network, port: Port) -> set[str]:
    """Return the port's addresses that are none of the network's."""
    return {address for address in port.routed if network.cidr is None or not _is_in(address, network.cidr)}


def _led(network: Network, served: list[Port]) -> set[str]:
    """Return what leads in from outside."""
    floating = {port.floating for port in served if port.floating}
    return floating | {address for port in served for address in _routed(network, port)}


def _egress(host: Host, etcd: Picture, out: dict[str, Network], served: dict[str, list[Port]]) -> Iterator[str]:
    led = {address for uuid, network in out.items() for address in _led(network, served[uuid])}
    answered = {entry["dst"] for entry in json.loads(host.run("ip", "-j", "neighbour", "show", "proxy").stdout)}
    if answered != led:
        yield f"the host answers for {sorted(answered)}, not for {sorted(led)}"
    listed = host.run("nft", "-j", "list", "table", "inet", "ecompute_gateway", check=False)
    if not out or listed.status != 0:
        return  # said by those who look for tables
    found = _sets(listed.stdout)
    if found["addresses"] != led:
        yield f"the host lets in {sorted(found['addresses'])}, not {sorted(led)}"
    members = {member.underlay for (uuid, _), member in etcd.members.items() if uuid in out}
    others = {node.underlay for node in etcd.nodes.values()} - members
    if members - found["refused"] or others & found["refused"]:
        yield f"the host keeps guests from {sorted(found['refused'])}; members are {sorted(members)}"


def _told(host: Host, networks: dict[str, Network], served: dict[str, list[Port]], ignored: set[str]) -> Iterator[str]:
    """What the metadata service is told, and whether it is there."""
    files = {path.name: path for path in (host.state / "metadata").glob("[0-9a-f]*.*")}
    wanted = {f"{network.vni:06x}.json" for network in networks.values()}
    if files.keys() - wanted and not ignored:
        yield f"the metadata service is told of networks {sorted(files.keys() - wanted)}"
    if wanted - files.keys():
        yield f"the metadata service is not told of networks {sorted(wanted - files.keys())}"
    services = _processes("md_server", host)
    if len(services) > 1 or (services and not networks and not ignored) or (networks and not services):
        yield f"metadata services of {len(networks)} networks: {services}"
    if not host.is_running:
        return
    for uuid, network in networks.items():
        path = files.get(f"{network.vni:06x}.json")
        said = {} if path is None else json.loads(path.read_text())
        callers = {
            address.split("/")[0]: port.instance_uuid
            for port in served[uuid]
            for address in (*port.addresses, *port.routed)
        }
        if said.get("addresses", {}) != callers:
            yield f"the metadata service knows {said} on network {network.vni:06x}, not {callers}"


def _listening(namespace: str) -> Iterator[str]:
    said = ip("netns", "exec", namespace, "ss", "-Hltn")
    for address in ("169.254.169.254:80", "[fe80::a9fe:a9fe]%lan:80"):
        if f" {address} " not in said:
            yield f"nobody listens at {address}"


def _way_in(host: Host, network: Network, served: list[Port], *, is_out: bool) -> Iterator[str]:
    if not is_out:
        return
    led = _led(network, served)
    shown = host.run("ip", "-j", "route", "show", "dev", _up(network), check=False)
    routes: list[dict[str, Any]] = json.loads(shown.stdout) if shown.status == 0 else []
    found = {route["dst"] for route in routes if not route["dst"].startswith("169.254.")}
    if found != led:
        yield f"the host leads {sorted(found)} to it, not {sorted(led)}"


def _given(host: Host, network: Network, served: list[Port]) -> Iterator[str]:
    if not network.has_dhcp:
        return
    lines = (host.state / "networks" / f"{network.vni:06x}" / "leases").read_text().splitlines()
    found = {tuple(line.split(",")[:2]) for line in lines}
    wanted = {(port.mac, port.addresses[0].split("/")[0]) for port in served}
    if found != wanted:
        yield f"it gives out {sorted(found)}, not {sorted(wanted)}"


def _known(host: Host, network: Network, ports: list[Port]) -> Iterator[str]:
    if not network.has_dns:
        return
    lines = (host.state / "networks" / f"{network.vni:06x}" / "names").read_text().splitlines()
    found = {(line.split()[0], line.split()[-1]) for line in lines}
    wanted = {(address.split("/")[0], port.name or "") for port in ports for address in port.addresses}
    if found != wanted:
        yield f"it knows {sorted(found)}, not {sorted(wanted)}"


def _up(network: Network) -> str:
    return f"ecu{network.vni:06x}"


def _is_in(address: str, cidr: str) -> bool:
    return ip_address(address) in ip_network(cidr)
