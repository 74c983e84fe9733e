"""The documents of a drive without a cloud: cloud-init's NoCloud format, for images that read no other.

``meta-data``, ``user-data`` and ``network-config`` (version 2) as in
https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html, in YAML. ``user-data`` is always
there, since readers take a drive without it for none.

Invariants: pure and deterministic. Every document parses, whatever a name or a key holds: the YAML is
JSON, but for what YAML escapes in another way. Any thread may call it.
"""

from __future__ import annotations

import ipaddress
import json
import re

from ecompute.cluster.documents import Assignment, Interface, Secrets
from ecompute.cluster.errors import InvalidInput
from ecompute.guest.metadata import Json, gateway_of, hostname, user_data

LABEL = "cidata"

_ESCAPE = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})|\\.|\x7f")


def documents(assignment: Assignment, secrets: Secrets | None) -> dict[str, bytes]:
    """Return the files of the drive by name.

    Args:
        assignment: what the host is to run.
        secrets: the user data that belongs to it; passed over unless the assignment says there is some.

    Raises:
        NotFound: the assignment says that user data belongs to it, and ``secrets`` has none.
        InvalidInput: an address or a gateway of the assignment is none.
    """
    return {
        "meta-data": render(meta_data(assignment)),
        "network-config": render(network_config(assignment.spec.interfaces)),
        "user-data": user_data(assignment, secrets) if assignment.spec.has_user_data else b"",
    }


def meta_data(assignment: Assignment) -> Json:
    document: Json = {
        "instance-id": assignment.uuid,
        "local-hostname": hostname(assignment.name, assignment.uuid),
    }
    if assignment.spec.ssh_keys:
        document["public-keys"] = list(assignment.spec.ssh_keys)
    return document


def network_config(interfaces: tuple[Interface, ...]) -> Json:
    """Return ``network-config``: a device is found by its MAC. One without addresses asks DHCP."""
    ethernets = {f"eth{place}": ethernet(f"eth{place}", interface) for place, interface in enumerate(interfaces)}
    return {"version": 2, "ethernets": ethernets}


def ethernet(name: str, interface: Interface) -> Json:
    try:
        versions = sorted({ipaddress.ip_interface(address).version for address in interface.addresses})
        gateways = [(version, gateway_of(interface, version)) for version in versions]
    except ValueError as error:
        raise InvalidInput(f"interface {interface.uuid}: {error}") from error
    entry: Json = {"match": {"macaddress": interface.mac.lower()}, "set-name": name, "mtu": interface.mtu}
    if not interface.addresses:
        return entry | {"dhcp4": True}
    entry["addresses"] = list(interface.addresses)
    routes = [
        {"to": "0.0.0.0/0" if version == 4 else "::/0", "via": str(gateway)}
        for version, gateway in gateways
        if gateway is not None
    ]
    if routes:
        entry["routes"] = routes
    if interface.nameservers:
        entry["nameservers"] = {"addresses": list(interface.nameservers)}
    return entry


def render(document: Json) -> bytes:
    """Return ``document`` as YAML that is JSON, but for characters beyond the first 65536 and DEL."""

    def escape(found: re.Match[str]) -> str:
        if found[0] == "\x7f":
            return r"\x7f"
        if found[1] is None:
            return found[0]
        return f"\\U{0x10000 + ((int(found[1], 16) & 0x3FF) << 10) + (int(found[2], 16) & 0x3FF):08x}"

    return (_ESCAPE.sub(escape, json.dumps(document, separators=(", ", ": "))) + "\n").encode("ascii")
