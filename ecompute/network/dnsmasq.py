"""What dnsmasq is told of a network: its configuration, whose address is whose, and the names of all.

Pure: files in, as text; equal networks give equal bytes. `service` runs it. The formats are those of dnsmasq(8).

Invariants:

- Only ports of this host are given addresses, each by its MAC; who is unknown gets no answer.
- What is off is off: without DNS nothing listens on port 53, without DHCP nothing on 67 and 547.
- Names come from elsewhere (`Port.name`): nothing but a label gets into a file, and none that dnsmasq would take
  for something else than a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_interface
from itertools import chain
from pathlib import Path

from ecompute.cluster.addressing import is_unicast_mac, label
from ecompute.cluster.documents import Network, Port
from ecompute.network.names import LAN, METADATA

LEASE_S = 86_400

_RA_INTERVAL_S = 200
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MISTAKEN = re.compile(r"[0-9]+[smhdw]?|infinite|ignore")
"""What dnsmasq takes for the time of a lease, or an order, where a name may stand."""


@dataclass(frozen=True)
class Files:
    """What one dnsmasq reads."""

    conf: str
    leases: str
    """Of ``dhcp-hostsfile``: read anew at SIGHUP."""
    names: str
    """Of ``addn-hosts``: read anew at SIGHUP."""

    @property
    def conf_digest(self) -> str:
        return _digest(self.conf)

    @property
    def told_digest(self) -> str:
        """Of what may change while it runs."""
        return _digest(self.leases + "\0" + self.names)


@dataclass(frozen=True)
class Paths:
    """Where one dnsmasq's files lie, and as whom it reads them."""

    directory: Path
    user: str = "nobody"

    def conf(self, digest: str) -> Path:
        """The name has the digest, so that the command line of a process says what it was told."""
        return self.directory / f"dnsmasq-{digest}.conf"

    @property
    def leases(self) -> Path:
        return self.directory / "leases"

    @property
    def names(self) -> Path:
        return self.directory / "names"

    @property
    def given(self) -> Path:
        return self.directory / "given"

    @property
    def pid(self) -> Path:
        return self.directory / "pid"


def render(
    network: Network, provider: str, ports: Sequence[Port], paths: Paths, upstream: Sequence[str] = ()
) -> Files | None:
    """Return what the dnsmasq of ``network`` on the host ``provider`` is told; None where there is to be none.

    Args:
        ports: all of the network.
        upstream: the addresses of the servers that know other names.
    """
    if not network.has_dhcp and not network.has_dns:
        return None
    mine = [port for port in ports if port.provider == provider]
    return Files(
        conf=_conf(network, paths, upstream),
        leases=_leases(network, mine) if network.has_dhcp else "",
        names=_names(network, ports) if network.has_dns else "",
    )


def without_former(given: str, before: str, after: str) -> str:
    """Return the leases that dnsmasq holds without those of addresses that are somebody else's now.

    It keeps an address for whom it gave it to until the lease ends, and gives it to nobody else meanwhile.

    Args:
        given: its file of leases.
        before: what it was told of who has which address when that was written; ``after``: what it is to be told.
    """
    had, have = _by_address(before), _by_address(after)
    return "".join(line for line in given.splitlines(keepends=True) if not _is_former(line, had, have))


def _is_former(line: str, had: Mapping[str, str], have: Mapping[str, str]) -> bool:
    # Expiry, MAC (of IPv6 the IAID), address, name, client; one line says who the server is.
    fields = line.split()
    if len(fields) < 3 or (mac := have.get(fields[2])) is None:
        return False
    return (had.get(fields[2]) if ":" in fields[2] else fields[1].lower()) != mac


def _by_address(leases: str) -> dict[str, str]:
    """Return the MAC by each address of what `_leases` made."""
    rows = (line.split(",") for line in leases.splitlines())
    return {part.strip("[]"): mac for mac, *parts in rows for part in parts if "." in part or part.startswith("[")}


def domain_of(network: Network) -> str | None:
    """Return the network's domain, if it is one."""
    labels = (network.domain or "").lower().rstrip(".").split(".")
    domain = ".".join(labels)
    return domain if len(domain) <= 253 and all(_LABEL.fullmatch(part) for part in labels) else None


def _conf(network: Network, paths: Paths, upstream: Sequence[str]) -> str:
    lines = [
        f"pid-file={paths.pid}",
        f"user={paths.user}",
        f"interface={LAN}",
        "except-interface=lo",
        "bind-interfaces",
        "no-hosts",
        "no-resolv",
        "no-poll",
    ]
    domain = domain_of(network)
    if domain is not None:
        lines.append(f"domain={domain}")
    lines += _dns(paths, domain, upstream) if network.has_dns else ["port=0"]
    lines += _dhcp(network, paths, domain) if network.has_dhcp else []
    return "\n".join(lines) + "\n"


def _dns(paths: Paths, domain: str | None, upstream: Sequence[str]) -> list[str]:
    lines = [f"addn-hosts={paths.names}", "domain-needed", "bogus-priv", "no-ident"]
    if domain is not None:
        lines.append(f"local=/{domain}/")
    return lines + [f"server={address}" for address in upstream]


def _dhcp(network: Network, paths: Paths, domain: str | None) -> list[str]:
    lines = [
        f"dhcp-hostsfile={paths.leases}",
        f"dhcp-leasefile={paths.given}",
        "dhcp-authoritative",
        "dhcp-ignore=tag:!known",
        "dhcp-ignore-names",  # what a guest calls itself is not what others call it
        "no-ping",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
        f"dhcp-option=option:mtu,{network.mtu}",
    ]
    if domain is not None:
        lines.append(f"dhcp-option=option:domain-search,{domain}")
    if network.cidr is not None:
        cidr = IPv4Network(network.cidr)
        lines.append(f"dhcp-range={cidr.network_address},static,{cidr.netmask},{LEASE_S}")
        server = network.gateway if network.has_dns else None
        lines.append("dhcp-option=option:dns-server" + (f",{server}" if server else ""))
    if network.gateway is not None:
        lines += _routes(network.gateway, has_way_out=network.has_nat)
    if network.cidr6 is not None:
        cidr6 = IPv6Network(network.cidr6)
        lines += [
            "enable-ra",
            f"dhcp-range={cidr6.network_address},static,{cidr6.prefixlen},{LEASE_S}",
            # A lifetime of 0: no router for what is elsewhere; no way leads out for IPv6.
            f"ra-param={LAN},mtu:{network.mtu},{_RA_INTERVAL_S},0",
        ]
        server = network.gateway6 if network.has_dns else None
        lines.append("dhcp-option=option6:dns-server" + (f",[{server}]" if server else ""))
        if domain is not None:
            lines.append(f"dhcp-option=option6:domain-search,{domain}")
    return lines


OUT = "out"
"""The tag of ports that have a way out in a network that has none: by an address of their own."""


def _routes(gateway: str, *, has_way_out: bool) -> list[str]:
    # Who is told classless routes passes over the router (RFC 3442): the default route stands in both.
    metadata = f"option:classless-static-route,{METADATA}/32,{gateway}"
    if has_way_out:
        return [f"dhcp-option=option:router,{gateway}", f"dhcp-option={metadata},0.0.0.0/0,{gateway}"]
    return [
        "dhcp-option=option:router",
        f"dhcp-option={metadata}",
        f"dhcp-option=tag:{OUT},option:router,{gateway}",
        f"dhcp-option=tag:{OUT},{metadata},0.0.0.0/0,{gateway}",
    ]


def _leases(network: Network, ports: Iterable[Port]) -> str:
    lines = []
    for port in ports:
        four, six = _in(port.addresses, network.cidr), _in(port.addresses, network.cidr6)
        if not is_unicast_mac(port.mac) or not (four or six):
            continue
        parts = [port.mac, *four[:1], *(f"[{address}]" for address in six[:1])]
        name = label(port.name)
        if name is not None and not _MISTAKEN.fullmatch(name):
            parts.append(name)
        if port.floating is not None or port.routed:
            parts.append(f"set:{OUT}")
        lines.append(",".join(parts))
    return _text(lines)


def _names(network: Network, ports: Iterable[Port]) -> str:
    domain, ranges = domain_of(network), (network.cidr, network.cidr6)
    return _text(chain.from_iterable([_called(port.name, port.addresses, domain, ranges) for port in ports]))


@lru_cache(maxsize=1 << 16)
def _called(
    name: str | None, addresses: tuple[str, ...], domain: str | None, ranges: tuple[str | None, str | None]
) -> tuple[str, ...]:
    """Return the lines of one port. Kept: all of a network's are asked for again when one comes."""
    short = label(name)
    if short is None:
        return ()
    called = short if domain is None else f"{short}.{domain} {short}"
    return tuple(f"{address} {called}" for cidr in ranges for address in _in(addresses, cidr))


def _in(addresses: Iterable[str], cidr: str | None) -> list[str]:
    """Return those of ``addresses`` that are in ``cidr``, without prefix length."""
    if cidr is None:
        return []
    range_ = _range(cidr)
    found = []
    for text in addresses:
        try:
            address = ip_interface(text).ip
        except ValueError:
            continue
        if address in range_:
            found.append(str(address))
    return found


@lru_cache(maxsize=1 << 8)
def _range(cidr: str) -> IPv4Network | IPv6Network:
    return IPv4Network(cidr) if ":" not in cidr else IPv6Network(cidr)


def _text(lines: Iterable[str]) -> str:
    return "\n".join([*sorted(lines), ""])


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
