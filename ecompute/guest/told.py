"""What the metadata service may tell, and to whom: documents on the host's own disk, written by `ecompute`.

Two kinds of file. One an instance, beside its disk: `Guest`, the assignment and the secrets from which all
documents follow, as on its config drive. One a network: `Callers`, who asks from which address. Both are put in
place as a whole. The service that reads them has no credentials, and goes on while the daemon is down.

Pure; any thread may call it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from ecompute.cluster.documents import Assignment, Document, Port, Secrets

LOG = "log"
LOG_LIMIT_BYTES = 1 << 20
"""The service cannot write more than this, and tells what it does in a few lines."""


class Guest(Document, frozen=True, kw_only=True):
    """All that a guest may be told."""

    assignment: Assignment
    secrets: Secrets | None = None


class Callers(Document, frozen=True, kw_only=True):
    """Who is who on one network, of the guests on this host."""

    network_uuid: str
    addresses: dict[str, str] = {}  # noqa: RUF012 - msgspec copies an empty default for each document
    """Address → instance."""
    macs: dict[str, str] = {}  # noqa: RUF012
    """MAC → instance: who asks from a link-local IPv6 address is known by what is in it."""
    floating: dict[str, str] = {}  # noqa: RUF012
    """Instance → the floating address of its interface here."""


def directory_of(state: Path) -> Path:
    """Return where the service's socket and the files of the networks lie."""
    return state / "metadata"


def guest_file(instances: Path, uuid: str) -> Path:
    """Return the file of an instance, whose directory lies in ``instances``."""
    return instances / uuid / "metadata.json"


def callers_file(directory: Path, vni: int) -> Path:
    return directory / f"{vni:06x}.json"


def callers(network_uuid: str, provider: str, ports: Iterable[Port]) -> Callers:
    """Return who is who among the ports on the host ``provider``."""
    addresses: dict[str, str] = {}
    macs: dict[str, str] = {}
    floating: dict[str, str] = {}
    for port in sorted((port for port in ports if port.provider == provider), key=lambda port: port.interface_uuid):
        addresses |= {address.split("/")[0]: port.instance_uuid for address in (*port.addresses, *port.routed)}
        macs[port.mac] = port.instance_uuid
        if port.floating is not None:
            floating[port.instance_uuid] = port.floating
    return Callers(network_uuid=network_uuid, addresses=addresses, macs=macs, floating=floating)


def caller(known: Callers, source: str) -> str | None:
    """Return the instance that asks from the address ``source``, or None: nobody known.

    A link-local IPv6 address is taken for that of the MAC in it (RFC 4291, appendix A): the filter lets a guest
    send from no other.
    """
    address = ip_address(source.split("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.is_link_local:
            mac = _mac_in(address)
            return None if mac is None else known.macs.get(mac)
    return known.addresses.get(str(address))


def _mac_in(address: IPv6Address) -> str | None:
    tail = address.packed[8:]
    if tail[3:5] != b"\xff\xfe":
        return None
    return bytes([tail[0] ^ 2, *tail[1:3], *tail[5:]]).hex(":")
