"""What one host does for its guests' networks, against what etcd says: its part of `agreement.differences`.

Namespaces, the devices that lead into them, dnsmasqs and what they give out, translations, routes and what the host
answers for, rules, and what is remembered. Nothing more than that is to be there. Looked at with ``ip`` and ``nft``
and in /proc, as in `on_host`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecompute.cluster.documents import Instance, Network, NetworkKind, Port
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
    if not ignored:
        yield from _nothing_more(host, networks, found - set(names.values()), set(dnsmasqs) - with_dnsmasq, out)
    if missing := set(names.values()) - found:
        yield f"namespaces that are missing: {sorted(missing)}"
    if not host.is_running:
        return
    if missing := with_dnsmasq - set(dnsmasqs):
        yield f"no dnsmasq of {sorted(missing)}"
    for uuid, network in networks.items():
        if names[uuid] in found:
            for difference in (
                *_inside(names[uuid], network, served[uuid], is_out=uuid in out),
                *_led(host, network, served[uuid], is_out=uuid in out),
                *_given(host, network, ports[uuid], provider),
            ):
                yield f"network {network.vni:06x}: {difference}"


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
    remembered = {path.name for path in (host.state / "memory" / "networks").glob("*")}
    if remembered != {str(network.vni) for network in networks.values()}:
        yield f"the networks {sorted(remembered)} are remembered"
    files = {path.name for path in (host.state / "networks").glob("*")}
    if files != {f"{n.vni:06x}" for n in networks.values() if n.has_dhcp or n.has_dns}:
        yield f"there are files of networks {sorted(files)}"


def _dnsmasqs(host: Host) -> dict[str, int]:
    """Return the process ids of this host's dnsmasqs by the hexadecimal VNI of their network."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_text(errors="replace").split("\0")
            except OSError:
                continue
            if arguments[0] == "dnsmasq" and str(host.state) in arguments[1]:
                found[Path(arguments[1]).parent.name] = int(entry.name)
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
    listed = json.loads(ip("netns", "exec", namespace, "nft", "-j", "list", "map", "inet", "ecompute", "floating"))
    translated = {tuple(pair) for item in listed["nftables"] for pair in item.get("map", {}).get("elem", ())}
    if translated != floating:
        yield f"it translates {sorted(translated)}, not {sorted(floating)}"


def _led(host: Host, network: Network, served: list[Port], *, is_out: bool) -> Iterator[str]:
    if not is_out:
        return
    led: set[str] = set()
    for port in served:
        led |= {port.floating} if port.floating else set()
        led |= {address for address in port.routed if network.cidr is None or not _is_in(address, network.cidr)}
    routes: list[dict[str, Any]] = json.loads(host.run("ip", "-j", "route", "show", "dev", _up(network)).stdout)
    found = {route["dst"] for route in routes if not route["dst"].startswith("169.254.")}
    if found != led:
        yield f"the host leads {sorted(found)} to it, not {sorted(led)}"
    answered = {entry["dst"] for entry in json.loads(host.run("ip", "-j", "neighbour", "show", "proxy").stdout)}
    if led - answered:
        yield f"the host does not answer for {sorted(led - answered)}"


def _given(host: Host, network: Network, ports: list[Port], provider: str) -> Iterator[str]:
    if not network.has_dhcp:
        return
    lines = (host.state / "networks" / f"{network.vni:06x}" / "leases").read_text().splitlines()
    found = {tuple(line.split(",")[:2]) for line in lines}
    wanted = {(port.mac, port.addresses[0].split("/")[0]) for port in ports if port.provider == provider}
    if found != wanted:
        yield f"it gives out {sorted(found)}, not {sorted(wanted)}"


def _up(network: Network) -> str:
    return f"ecu{network.vni:06x}"


def _is_in(address: str, cidr: str) -> bool:
    return ip_address(address) in ip_network(cidr)
