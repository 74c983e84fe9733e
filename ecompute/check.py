"""Whether this machine can be a host, seen without changing anything.

`look` goes through the machine and returns what it found; `judge` is pure and says of each point
whether it is well, and if not, what to install or to do. Only what can be seen from outside is
said: that a device can be made, that a guest starts, that etcd answers, is found by those who do
it, and reported by them. A *problem* keeps the host from working; a *note* does not.

Threads: any.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ecompute.cluster.addressing import mtu_over
from ecompute.cluster.config import Config
from ecompute.cluster.errors import CloudError
from ecompute.inventory import Measured, measure, shortfalls
from ecompute.network import sight
from ecompute.network.resolvers import upstream

PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "nft": "nftables",
    "dnsmasq": "dnsmasq-base",
}
"""What is run, and the Debian package that brings it."""

LOW_DISK_GB = 5
LOOPBACK = "lo"
CAP_NET_ADMIN = 12


@dataclass(frozen=True)
class Result:
    """What was found of one point."""

    name: str
    problem: str | None = None
    """Why the host cannot work, and what to do about it; None: it can, as far as this goes."""
    note: str = ""
    """What is worth knowing all the same."""

    @property
    def is_ok(self) -> bool:
        return self.problem is None


@dataclass(frozen=True)
class Found:
    """What `look` saw; by default, a machine on which all is well."""

    programs: Mapping[str, str | None] = field(default_factory=dict)
    """Program → where it is."""
    is_admin: bool = True
    """Whether we may change the machine's network."""
    libvirt_socket: str | None = None
    """Where libvirt listens, or None."""
    has_kvm: bool = True
    """Whether ``/dev/kvm`` can be opened; whether it serves, only a trial tells."""
    has_tun: bool = True
    has_vxlan: bool | None = True
    """None: cannot be seen."""
    measured: Measured | CloudError = field(default_factory=lambda: Measured(vcpus=1, memory_mb=1024, disk_gb=10))
    free_disk_gb: int = 10
    bridge_filters: tuple[str, ...] = ()
    """Those of ``bridge-nf-call-*`` that are on."""
    has_default_route: bool = True
    is_underlay_here: bool = True
    """Whether the configured underlay address is one of this machine's."""
    underlay_device: str | None = "eth0"
    """That which has the underlay address, as far as can be seen."""
    underlay_mtu: int = sight.USUAL_MTU
    """In bytes."""
    networks: tuple[tuple[ipaddress.IPv4Network, str], ...] = ()
    """The networks that this machine is on, each with its device."""
    missing_bridges: frozenset[str] = frozenset()
    """Those of the configured bridges that are not there."""
    no_bridges: frozenset[str] = frozenset()
    """Those of the configured bridges that are devices of another kind."""
    is_egress_here: bool = True
    """Whether the configured egress device is there."""
    has_egress_arp: bool = True
    """Whether others on the egress device ask for addresses by ARP."""
    dropping: tuple[str, ...] = ()
    """Chains of others that drop what is forwarded, unless one of their rules lets it pass."""
    resolvers: tuple[str, ...] = ("192.0.2.53",)
    """Name servers that guests' names are asked of."""
    files: Mapping[Path, str] = field(default_factory=dict)
    """Named by the configuration → what is wrong with it."""


def checks(config: Config) -> list[Result]:
    """Return what is to be said of this machine as a host of ``config``'s cloud."""
    return judge(look(config), config)


# --- pure ----------------------------------------------------------------------------------------


def judge(found: Found, config: Config) -> list[Result]:
    """Return a result for each point, in the order in which a newcomer would mend them. Pure."""
    return [
        _admin(found),
        *(_program(name, found.programs.get(name)) for name in PROGRAMS),
        _libvirt(found, config),
        _kvm(found, config),
        _tun(found),
        _vxlan(found),
        _bridge_filters(found),
        _underlay(found, config),
        _default_network(found, config),
        *(_bridge(found, bridge) for bridge in _bridges(config)),
        _egress(found, config),
        _forwarding(found),
        _resolvers(found),
        _offer(found, config),
        _disk(found, config),
        *(Result(f"file {path}", problem) for path, problem in sorted(found.files.items())),
    ]


def _admin(found: Found) -> Result:
    problem = None if found.is_admin else "networks cannot be made without CAP_NET_ADMIN; run it as root"
    return Result("privileges", problem)


def _program(name: str, path: str | None) -> Result:
    return Result(name, None if path else f"is not on PATH; apt-get install {PROGRAMS[name]}", path or "")


def _libvirt(found: Found, config: Config) -> Result:
    if found.libvirt_socket:
        return Result("libvirt", note=found.libvirt_socket)
    return Result(
        "libvirt",
        f"nothing listens where {config.libvirt_uri} says; apt-get install libvirt-daemon-system, "
        "then systemctl enable --now libvirtd",
    )


def _kvm(found: Found, config: Config) -> Result:
    name = "/dev/kvm"
    if config.accelerator == "tcg":
        return Result(name, note="not used: accelerator is tcg")
    if found.has_kvm:
        return Result(name, note="whether it serves is tried at the daemon's start")
    if config.accelerator == "kvm":
        return Result(name, "cannot be opened; switch virtualization on in the firmware, or set accelerator: auto")
    return Result(name, note="cannot be opened: guests will be emulated, and slow")


def _tun(found: Found) -> Result:
    return Result("/dev/net/tun", None if found.has_tun else "cannot be opened; modprobe tun")


def _vxlan(found: Found) -> Result:
    if found.has_vxlan is None:
        return Result("vxlan", note="cannot be seen from here; the first network will tell")
    return Result("vxlan", None if found.has_vxlan else "this kernel has no such module; install one that has")


def _bridge_filters(found: Found) -> Result:
    name = "bridge-nf-call"
    if not found.bridge_filters:
        return Result(name)
    settings = " ".join(f"net.bridge.{setting}=0" for setting in found.bridge_filters)
    return Result(
        name,
        "what passes our bridges would also pass this host's own packet filter, and be dropped or translated there; "
        f"sysctl -w {settings} (and in /etc/sysctl.d; often a container engine sets it)",
    )


def _underlay(found: Found, config: Config) -> Result:
    name = "underlay"
    narrow = ""
    if found.underlay_mtu < sight.USUAL_MTU:
        narrow = (
            f", with an MTU of {found.underlay_mtu}: guests here get no larger datagrams of others "
            f"than {mtu_over(found.underlay_mtu)} bytes"
        )
    if config.underlay is None:
        if found.has_default_route:
            return Result(name, note=f"the source address of the default route{narrow}")
        return Result(name, "there is no default route to take the address from; set underlay in compute.yaml")
    if not found.is_underlay_here:
        return Result(name, f"{config.underlay} is not an address of this machine; set another underlay")
    if ipaddress.ip_address(config.underlay).is_loopback and not _is_alone(config):
        return Result(name, f"no other host reaches {config.underlay}; set underlay to an address that they reach")
    return Result(name, note=f"{config.underlay}{narrow}")


def _is_alone(config: Config) -> bool:
    """Whether etcd is this machine's own, so that there can be no other host."""
    hosts = {endpoint.rpartition(":")[0].strip("[]") for endpoint in config.etcd.endpoints}
    return all(host == "localhost" or _is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bridges(config: Config) -> list[str]:
    named = [*([config.bridge] if config.bridge else []), *config.bridges.values()]
    return list(dict.fromkeys(named))


def _bridge(found: Found, bridge: str) -> Result:
    is_missing = bridge in found.missing_bridges
    if bridge in found.no_bridges:
        return Result(f"bridge {bridge}", f"{bridge} is a device, and no bridge; name a bridge in compute.yaml")
    return Result(f"bridge {bridge}", f"there is none; ip link add {bridge} type bridge" if is_missing else None)


def _default_network(found: Found, config: Config) -> Result:
    """What this machine is on itself, guests with such a range would look for among themselves."""
    name, cidr = "default_network", config.default_network
    over = [(network, device) for network, device in found.networks if network.overlaps(cidr)]
    said = [f"{cidr} overlaps {network} on {device}" for network, device in over]
    advice = "set another default_network, on all machines"
    if any(device == found.underlay_device for _, device in over):
        return Result(name, f"{said[0]}, the underlay; {advice}")
    return Result(name, note=f"{said[0]}, which guests will not reach; {advice}" if said else str(cidr))


def _egress(found: Found, config: Config) -> Result:
    name = "egress"
    no_arp = "" if found.has_egress_arp else " has no ARP: floating addresses need an egress device that has"
    if config.egress is None:
        if found.has_default_route:
            return Result(name, note=f"the device of the default route{no_arp}")
        return Result(name, note="there is no default route: guests do not get out; set egress in compute.yaml")
    if config.egress == LOOPBACK:
        return Result(name, f"nothing is reached by {LOOPBACK}; set another egress")
    if not found.is_egress_here:
        return Result(name, f"there is no device {config.egress}; set another egress")
    return Result(name, note=f"{config.egress}{no_arp}")


def _forwarding(found: Found) -> Result:
    if not found.dropping:
        return Result("forwarding")
    return Result(
        "forwarding",
        note=f"{', '.join(found.dropping)} drops what no rule there lets pass: NAT and floating addresses need one for "
        "ecu*, either way, such as iptables -I FORWARD -i ecu+ -j ACCEPT and iptables -I FORWARD -o ecu+ -j ACCEPT",
    )


def _resolvers(found: Found) -> Result:
    if found.resolvers:
        return Result("dns", note=", ".join(found.resolvers))
    return Result("dns", note="resolv.conf names no server that guests can ask for what is outside; set dns")


def _offer(found: Found, config: Config) -> Result:
    name = "inventory"
    if isinstance(found.measured, CloudError):
        return Result(name, str(found.measured))
    texts = shortfalls(found.measured, config.inventory)
    return Result(name, note="; ".join(texts))


def _disk(found: Found, config: Config) -> Result:
    name = f"disk under {config.state_dir}"
    if found.free_disk_gb < 1:
        return Result(name, "less than 1 GB is free; set state_dir to a larger file system")
    if found.free_disk_gb < LOW_DISK_GB:
        return Result(name, note=f"only {found.free_disk_gb} GB are free")
    if isinstance(found.measured, Measured):
        offered = min(config.inventory.disk_gb or found.measured.disk_gb, found.measured.disk_gb)
        left = offered - config.inventory.reserved.disk_gb
        if left > found.free_disk_gb:
            return Result(
                name,
                note=f"{left} GB are offered and {found.free_disk_gb} GB are free; what others use belongs into "
                "inventory.reserved.disk_gb",
            )
    return Result(name, note=f"{found.free_disk_gb} GB are free")


# --- the machine ---------------------------------------------------------------------------------


def look(config: Config) -> Found:
    """Return what this machine is like. Changes nothing, sends nothing."""
    measured: Measured | CloudError
    try:
        measured = measure(config.state_dir)
    except CloudError as error:
        measured = error
    networks = sight.networks()
    underlay = sight.device_of(config.underlay, networks)
    return Found(
        programs={name: shutil.which(name) for name in PROGRAMS},
        is_admin=bool(_capabilities() >> CAP_NET_ADMIN & 1),
        libvirt_socket=next((str(path) for path in libvirt_sockets(config.libvirt_uri) if _is_socket(path)), None),
        has_kvm=os.access("/dev/kvm", os.R_OK | os.W_OK),
        has_tun=os.access("/dev/net/tun", os.R_OK | os.W_OK),
        has_vxlan=_has_vxlan(),
        measured=measured,
        free_disk_gb=_free_gb(config.state_dir),
        bridge_filters=_bridge_filters_on(),
        has_default_route=sight.default_device() is not None,
        is_underlay_here=config.underlay is None or _is_here(config.underlay),
        underlay_device=underlay,
        underlay_mtu=sight.mtu(underlay),
        networks=networks,
        missing_bridges=frozenset(bridge for bridge in _bridges(config) if not sight.is_device(bridge)),
        no_bridges=frozenset(
            bridge for bridge in _bridges(config) if sight.is_device(bridge) and not sight.is_device(f"{bridge}/bridge")
        ),
        is_egress_here=config.egress is None or sight.is_device(config.egress),
        has_egress_arp=sight.has_arp(config.egress or sight.default_device()),
        dropping=_dropping(),
        resolvers=upstream(config.dns),
        files={path: problem for path, problem in _files(config) if problem},
    )


def libvirt_sockets(uri: str) -> list[Path]:
    """Return where the daemon that ``uri`` names may listen: the one for all of libvirt, or QEMU's own."""
    url = urlsplit(uri)
    named = parse_qs(url.query).get("socket")
    if named:
        return [Path(named[0])]
    if url.path == "/session":
        directory = Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")) / "libvirt"
    else:
        directory = Path("/run/libvirt")
    return [directory / "libvirt-sock", directory / "virtqemud-sock"]


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _has_vxlan() -> bool | None:
    """Whether the kernel has VXLAN: loaded, built in, or as a module that it loads when asked."""
    if Path("/sys/module/vxlan").exists():
        return True
    directory = Path("/lib/modules") / os.uname().release
    lists = [directory / "modules.builtin", directory / "modules.dep"]
    if not all(path.exists() for path in lists):
        return None
    return any("/vxlan.ko" in path.read_text(encoding="utf-8", errors="replace") for path in lists)


def _free_gb(directory: Path) -> int:
    existing = directory.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return shutil.disk_usage(existing).free >> 30


def _bridge_filters_on() -> tuple[str, ...]:
    directory = Path("/proc/sys/net/bridge")
    names = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")
    return tuple(
        name
        for name in names
        if (path := directory / name).exists() and path.read_text(encoding="ascii").strip() != "0"
    )


def _dropping() -> tuple[str, ...]:
    """Return the chains of others, as far as they can be seen, that drop what is forwarded by default."""
    found = []
    with contextlib.suppress(ValueError, KeyError):
        for item in json.loads(_said("nft", "-j", "list", "chains"))["nftables"]:
            chain = item.get("chain", {})
            is_drop = (chain.get("hook"), chain.get("policy")) == ("forward", "drop")
            if is_drop and chain.get("family") in ("ip", "inet"):
                found.append(f"table {chain['family']} {chain['table']}")
    if Path("/proc/net/ip_tables_names").exists() and "-P FORWARD DROP" in _said("iptables-legacy", "-S", "FORWARD"):
        found.append("iptables-legacy")
    return tuple(found)


def _said(*command: str) -> str:
    """Return what a program says that only looks; nothing if it is not there or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    return ""


def _is_here(address: str) -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _files(config: Config) -> list[tuple[Path, str]]:
    lead = config.upkeep or config.etcd
    secret = [config.etcd.key, config.etcd.password_file, lead.key, lead.password_file, config.placement.token_file]
    public = [config.etcd.ca, config.etcd.cert, lead.cert, config.placement.ca]
    return [(path, _of_file(path, is_secret=False)) for path in public if path] + [
        (path, _of_file(path, is_secret=True)) for path in secret if path
    ]


def _of_file(path: Path, *, is_secret: bool) -> str:
    """Return what is wrong with a file that the configuration names, or nothing."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            is_empty = not file.read(1)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if is_empty:
        return "is empty"
    if is_secret and mode & 0o007:
        return f"is a secret that everybody may read; chmod o= {path}"
    return ""
