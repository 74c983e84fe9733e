"""A network brought up on a host by the same operations as ours, and nothing else: no planning, reading or comparing.

What is to be there is rendered beforehand, untimed, by the product's own pure code. Then: the rules of the host in one
transaction, one netlink socket in the host's namespace and one in the network's, each device, setting, address, entry
and route once, and the same dnsmasq.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecompute.cluster.documents import Network, NetworkHost, Port
from ecompute.network import gateway, guard, inside, mesh, names, netlink, netns, nft, outside, reading
from ecompute.network.dnsmasq import LAN, Paths
from ecompute.network.egress import TABLES as HOST_TABLES
from ecompute.network.egress import HostRules
from ecompute.network.gateway_terms import UPLINK_MTU
from ecompute.network.nat import TABLE, UP
from ecompute.network.plan import part
from ecompute.network.service import Services
from ecompute.network.tables import commands, objects
from ecompute.network.terms import FoundNetwork

TRANSIT = "169.254.9.9"
_SELF, _PERMANENT_NOARP = 0x02, 0xC0
"""NTF_SELF; NUD_PERMANENT | NUD_NOARP"""
DEVICE = "eth0"


class ByHand:
    """One network of one host, in whose namespace the calls are made.

    Args:
        before: a network that is there already; what the host has for it is not put again.
    """

    def __init__(
        self,
        network: Network,
        provider: str,
        ports: Sequence[Port],
        hosts: Sequence[NetworkHost],
        directory: Path,
        before: ByHand | None = None,
    ) -> None:
        self.vni, self.provider, self.mtu = network.vni, provider, network.mtu
        self.namespace = gateway.namespace_name(network.vni, provider)
        self.mesh = mesh.wanted(network, provider, ports, hosts)
        paths: Paths = Services(directory).paths(network.vni)
        paths.directory.mkdir(parents=True, exist_ok=True)
        for path in (paths.directory, directory):
            path.chmod(0o711)
        upstream = ("198.51.100.1",)
        self.gateway = gateway.wanted(network, provider, ports, paths, transit=TRANSIT, upstream=upstream)
        self.paths = paths
        own = guard.of_network(part(self.mesh, FoundNetwork(network.vni)))
        networks = [*(before.networks if before is not None else []), (network.vni, own)]
        self.networks = networks
        refused = frozenset(host.underlay for host in hosts)
        host_rules = HostRules(device=DEVICE, refused=refused, resolvers=frozenset(upstream)).items()
        found = {} if before is None else _objects(before.networks)
        changes = commands(_objects(networks), found)
        self.rules = nft.as_script([*changes, *({"add": item} for item in host_rules if before is None)])
        self.inner_rules = nft.script([TABLE], self.gateway.rules.items())

    def up(self) -> None:
        vni = self.vni
        nft.change(self.rules)
        with netlink.opened() as here:
            self._segment(here)
            netns.make(self.namespace)
            self._pair(here, LAN, names.gateway_name(vni), self.mtu, {})
            mac = {"address": names.uplink_outer_mac(vni)}
            self._pair(here, UP, names.uplink_name(vni), UPLINK_MTU, mac)
            netns.in_namespace(self.namespace, self._inside)
            self._outside(here)
        for setting in ("conf/eth0/forwarding", "neigh/eth0/proxy_delay"):
            Path("/proc/sys/net/ipv4", setting).write_text("1\n" if setting.startswith("conf") else "0\n")

    def _segment(self, here: Any) -> None:
        vni, bridge, vxlan = self.vni, names.bridge_name(self.vni), names.vxlan_name(self.vni)
        here.link("add", ifname=bridge, kind="bridge", address=names.bridge_mac(vni), **reading.BRIDGE_OPTIONS)
        bridge_index = netlink.index(bridge)
        here.link("set", index=bridge_index, mtu=self.mtu)
        netlink.set_all(bridge, reading.hardening(bridge))
        here.link(
            "add",
            ifname=vxlan,
            kind="vxlan",
            vxlan_id=vni,
            vxlan_local=self.mesh.local,
            vxlan_port=names.VXLAN_PORT,
            vxlan_learning=0,
            vxlan_proxy=1,
            mtu=self.mtu,
        )
        index = netlink.index(vxlan)
        netlink.set_all(vxlan, {"ipv6/disable_ipv6": 1})
        netlink.set_all(vxlan, reading.hardening(vxlan))
        here.link("set", index=index, master=bridge_index)
        for mac, underlay in self.mesh.forwarding():
            command = "append" if mac == names.ZEROS else "replace"
            here.fdb(command, ifindex=index, lladdr=mac, dst=underlay, flags=_SELF, state=_PERMANENT_NOARP)
        for address, mac in self.mesh.neighbours:
            here.neigh("replace", ifindex=index, dst=address, lladdr=mac, state=netlink.PERMANENT)
        here.link("set", index=bridge_index, state="up")
        here.link("set", index=index, state="up")

    def _pair(self, here: Any, inner: str, outer: str, mtu: int, mac: dict[str, str]) -> None:
        there = os.open(netns.path_of(self.namespace), os.O_RDONLY | os.O_CLOEXEC)
        try:
            peer = {"ifname": inner, "address": gateway.mac_of(self.vni, inner), "mtu": mtu, "net_ns_fd": there}
            here.link("add", ifname=outer, kind="veth", mtu=mtu, peer=peer, **mac)
        finally:
            os.close(there)

    def _inside(self) -> None:
        nft.change(self.inner_rules)
        with netlink.opened() as there:
            there.link("set", index=netlink.index("lo"), state="up")
            netlink.set_all("all", inside._OF_ALL)
            for inner in (LAN, UP):
                index = netlink.index(inner)
                netlink.set_all(inner, inside.SETTINGS[inner])
                there.link("set", index=index, mtu=self.gateway.mtu_of(inner))
                for address in gateway.addresses_of(self.gateway, inner):
                    ip, length = address.split("/")
                    flags = inside._NO_DAD if ":" in ip else 0
                    there.addr("replace", index=index, address=ip, prefixlen=int(length), flags=flags)
                there.link("set", index=index, state="up")
            for name, address, mac in gateway.neighbours_of(self.gateway):
                there.neigh("replace", ifindex=netlink.index(name), dst=address, lladdr=mac, state=netlink.PERMANENT)
            for route in gateway.routes_of(self.gateway):
                there.route("replace", **inside._route(route))
        self._serve()

    def _outside(self, here: Any) -> None:
        vni = self.vni
        lan, up = (netlink.index(name(vni)) for name in (names.gateway_name, names.uplink_name))
        for inner, name, index in ((LAN, names.gateway_name(vni), lan), (UP, names.uplink_name(vni), up)):
            netlink.set_all(name, outside.SETTINGS[inner])
            here.link("set", index=index, mtu=self.gateway.mtu_of(inner))
        here.link("set", index=lan, master=netlink.index(names.bridge_name(vni)))
        here.link("set", index=lan, state="up")
        here.link("set", index=up, state="up")
        here.addr("replace", index=up, address=gateway.HOST_TRANSIT, prefixlen=32, scope=netlink.LINK_SCOPE)
        here.neigh("replace", ifindex=up, dst=TRANSIT, lladdr=names.uplink_mac(vni), state=netlink.PERMANENT)
        here.route("replace", dst=f"{TRANSIT}/32", oif=up, scope=netlink.LINK_SCOPE, proto=netlink.STATIC)

    def _serve(self) -> None:
        files, paths = self.gateway.files, self.paths
        assert files is not None
        conf = paths.conf(files.conf_digest)
        for path, text in ((conf, files.conf), (paths.leases, files.leases), (paths.names, files.names)):
            path.write_text(text)
            path.chmod(0o644)
        subprocess.run(["dnsmasq", f"--conf-file={conf}"], check=True, capture_output=True, timeout=10)

    def down(self) -> None:
        """Take away what is there of it, whatever that is, and all tables of the host."""
        if self.paths.pid.exists():
            held = os.pidfd_open(int(self.paths.pid.read_text()))
            try:
                signal.pidfd_send_signal(held, signal.SIGTERM)
                signal.pidfd_send_signal(held, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(held)
            self.paths.pid.unlink()
        for name in (names.gateway_name, names.uplink_name, names.vxlan_name, names.bridge_name):
            subprocess.run(["ip", "link", "delete", name(self.vni)], check=False, capture_output=True)
        netns.remove(self.namespace)
        nft.change(nft.script([*guard.TABLES, *HOST_TABLES], []))


def _objects(networks: Sequence[tuple[int, list[nft.Json]]]) -> dict[Any, str]:
    vnis = [vni for vni, _ in networks]
    return objects([*guard.base(vnis), *(item for _, items in networks for item in items)])
