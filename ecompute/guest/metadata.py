"""What a guest is told about itself: OpenStack's metadata documents, made from its assignment.

The config drive carries them as files; a metadata service may answer with the same bytes. The formats
are those of https://docs.openstack.org/nova/latest/user/metadata.html and of the schema of
``network_data.json`` linked there; cloud-init, and what else reads OpenStack's, reads ours.

Invariants: pure and deterministic, equal assignments give equal bytes. Every document parses, whatever
a name, a key or user data holds: nothing is pasted into text. Any thread may call it.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from ecompute.cluster.addressing import label
from ecompute.cluster.documents import Assignment, Interface, Secrets
from ecompute.cluster.errors import InvalidInput, NotFound

LABEL = "config-2"
"""By which readers find the drive (https://docs.openstack.org/nova/latest/user/metadata.html#config-drives)."""

VERSIONS = ("2018-08-27", "latest")
"""The versions of the format under which the documents are found; readers take the newest that they know."""

AVAILABILITY_ZONE = "default"

Json = dict[str, Any]


def documents(assignment: Assignment, secrets: Secrets | None) -> dict[str, bytes]:
    """Return the documents of one guest by path, ``openstack/latest/meta_data.json`` and so on.

    ``user_data`` is left out when there is none.

    Args:
        assignment: what the host is to run.
        secrets: the user data that belongs to it; passed over unless the assignment says there is some.

    Raises:
        NotFound: the assignment says that user data belongs to it, and ``secrets`` has none. A guest
            that quietly started without it would never be what was asked for.
        InvalidInput: an address or a gateway of the assignment is none.
    """
    tree = {
        "meta_data.json": render(meta_data(assignment)),
        "network_data.json": render(network_data(assignment.spec.interfaces)),
        "vendor_data.json": render({}),
    }
    if assignment.spec.has_user_data:
        tree["user_data"] = user_data(assignment, secrets)
    return {f"openstack/{version}/{name}": data for version in VERSIONS for name, data in tree.items()}


def meta_data(assignment: Assignment) -> Json:
    """Return ``meta_data.json``: who the guest is, and who may log in."""
    names = [f"key-{place}" for place in range(1, len(assignment.spec.ssh_keys) + 1)]
    keys = dict(zip(names, assignment.spec.ssh_keys, strict=True))
    document: Json = {
        "uuid": assignment.uuid,
        "name": assignment.name,
        "hostname": hostname(assignment.name, assignment.uuid),
        "project_id": assignment.namespace,
        "availability_zone": AVAILABILITY_ZONE,
        "launch_index": 0,
        "devices": [],
    }
    if keys:
        document["public_keys"] = keys
        document["keys"] = [{"name": name, "type": "ssh", "data": key} for name, key in keys.items()]
    return document


def network_data(interfaces: tuple[Interface, ...]) -> Json:
    """Return ``network_data.json``: a link for each interface, a network for each of its addresses.

    An interface without addresses asks DHCP.
    """
    links: list[Json] = []
    networks: list[Json] = []
    nameservers: list[str] = []
    for interface in interfaces:
        # A guest finds the device by its MAC; the identifiers only join the lists of this document.
        link = f"link{len(links)}"
        links.append(
            {
                "id": link,
                "vif_id": interface.uuid,
                "type": "phy",
                "mtu": interface.mtu,
                "ethernet_mac_address": interface.mac.lower(),
            }
        )
        joined = {"link": link, "network_id": interface.network_uuid}
        described = [address_data(interface, address) for address in interface.addresses] or [{"type": "ipv4_dhcp"}]
        networks += [{"id": f"network{place}", **joined, **one} for place, one in enumerate(described, len(networks))]
        nameservers += [address for address in interface.nameservers if address not in nameservers]
    return {"links": links, "networks": networks, "services": [dns(address) for address in nameservers]}


def address_data(interface: Interface, address: str) -> Json:
    """Return what one ``address`` of ``interface``, with prefix length, adds to its entry in ``networks``."""
    try:
        own = ipaddress.ip_interface(address)
        gateway = gateway_of(interface, own.version)
    except ValueError as error:
        raise InvalidInput(f"interface {interface.uuid}: {error}") from error
    routes: list[Json] = []
    if gateway is not None:
        everything = "0.0.0.0" if own.version == 4 else "::"  # noqa: S104 -- the default route, nothing listens
        routes = [{"network": everything, "netmask": everything, "gateway": str(gateway)}]
    return {
        "type": f"ipv{own.version}",
        "ip_address": str(own.ip),
        "netmask": str(own.netmask),
        "routes": routes,
        "services": [dns(server) for server in interface.nameservers],
    }


def gateway_of(interface: Interface, version: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the gateway of the default route for addresses of that version of IP.

    Raises:
        ValueError: what stands there is no such address.
    """
    text = interface.gateway if version == 4 else interface.gateway6
    if text is None:
        return None
    return ipaddress.IPv4Address(text) if version == 4 else ipaddress.IPv6Address(text)


def dns(address: str) -> Json:
    return {"type": "dns", "address": address}


def hostname(name: str, uuid: str) -> str:
    """Return a host name (RFC 1123, one label) as near to ``name`` as can be, or made of ``uuid`` if none is left."""
    return label(name) or f"server-{uuid}"


def user_data(assignment: Assignment, secrets: Secrets | None) -> bytes:
    if secrets is None or secrets.user_data is None:
        raise NotFound(
            f"the user data of instance {assignment.uuid} is not there",
            hint="destroy the instance and launch it again",
        )
    # Half a surrogate pair is no character, but a string may hold one; that is the guest's to complain of.
    return secrets.user_data.encode("utf-8", errors="surrogatepass")


def render(document: Json) -> bytes:
    """Return ``document`` as JSON in plain ASCII, which every reader decodes alike."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")
