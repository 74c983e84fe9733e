"""What a guest is told about itself in EC2's words: a tree of short texts, made from its assignment.

After the public reference of instance metadata categories
(https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-metadata.html), as far as they have a meaning here;
what has none is left out rather than made up. The same facts as OpenStack's documents (`ecompute.guest.metadata`).

Pure and deterministic. Any thread may call it.
"""

from __future__ import annotations

import ipaddress
import json

from ecompute.cluster.documents import Assignment, Interface, Secrets
from ecompute.cluster.errors import InvalidInput
from ecompute.guest import metadata

VERSIONS = ("2009-04-04", "latest")

Tree = dict[str, bytes]
"""Path below the version → what lies there: ``meta-data/instance-id``."""


def documents(assignment: Assignment, secrets: Secrets | None, *, floating: str | None = None) -> Tree:
    """Return the documents of one guest.

    Args:
        secrets: as for `ecompute.guest.metadata.documents`.
        floating: the floating address of its interface on the network on which it asks.

    Raises:
        NotFound, InvalidInput: as `ecompute.guest.metadata.documents`.
    """
    label = metadata.hostname(assignment.name, assignment.uuid)
    first = next(iter(assignment.spec.interfaces), None)
    address = None if first is None else _first(first, 4)
    texts = {
        "ami-id": f"ami-{assignment.uuid.replace('-', '')[:17]}",
        "ami-launch-index": "0",
        "hostname": label,
        "instance-action": "none",
        "instance-id": instance_id(assignment.uuid),
        "instance-type": instance_type(assignment),
        "local-hostname": label,
        "placement/availability-zone": metadata.AVAILABILITY_ZONE,
        "reservation-id": f"r-{assignment.uuid.replace('-', '')[:17]}",
        "block-device-mapping/ami": "vda",
        "block-device-mapping/root": "/dev/vda",
    }
    if address is not None:
        texts["local-ipv4"] = address
    if first is not None:
        texts["mac"] = first.mac
    if floating is not None:
        texts["public-ipv4"] = floating
    for number, key in enumerate(assignment.spec.ssh_keys):
        texts[f"public-keys/{number}/openssh-key"] = key
    for number, interface in enumerate(assignment.spec.interfaces):
        below = f"network/interfaces/macs/{interface.mac}"
        texts |= {f"{below}/{name}": text for name, text in _interface(number, interface).items()}
    tree = {f"meta-data/{name}": text.encode() for name, text in texts.items()}
    tree["dynamic/instance-identity/document"] = _identity(assignment, address)
    if assignment.spec.has_user_data:
        tree["user-data"] = metadata.user_data(assignment, secrets)
    return tree


def listing(tree: Tree, path: str) -> bytes | None:
    """Return what is listed at ``path``, a directory without slashes around it; None: there is none.

    A directory ends in a slash; the one of a key is ``0=key-1``, as its readers expect.
    """
    prefix = f"{path}/" if path else ""
    found: dict[str, None] = {}
    for name in sorted(tree):
        if name.startswith(prefix):
            child, slash, _ = name[len(prefix) :].partition("/")
            found[f"{child}=key-{int(child) + 1}" if path == "meta-data/public-keys" else child + slash] = None
    return "\n".join(found).encode() if found else None


def instance_id(uuid: str) -> str:
    """Return an identifier of the form that EC2's readers know, the same for the same instance."""
    return f"i-{uuid.replace('-', '')[:17]}"


def instance_type(assignment: Assignment) -> str:
    """Return the size: there are no named ones here."""
    resources = assignment.spec.resources
    return f"vcpu{resources.vcpus}.mem{resources.memory_mb}m.disk{resources.disk_gb}g"


def _interface(number: int, interface: Interface) -> dict[str, str]:
    addresses = _addresses(interface)
    v4, v6 = ([one for one in addresses if one.version == version] for version in (4, 6))
    texts = {"device-number": str(number), "interface-id": f"eni-{interface.uuid.replace('-', '')[:17]}"}
    texts["mac"] = interface.mac
    if v4:
        texts["local-ipv4s"] = "\n".join(str(one.ip) for one in v4)
        texts["subnet-ipv4-cidr-block"] = str(v4[0].network)
    if v6:
        texts["ipv6s"] = "\n".join(str(one.ip) for one in v6)
        texts["subnet-ipv6-cidr-blocks"] = str(v6[0].network)
    return texts


def _first(interface: Interface, version: int) -> str | None:
    return next((str(one.ip) for one in _addresses(interface) if one.version == version), None)


def _addresses(interface: Interface) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    try:
        return [ipaddress.ip_interface(address) for address in interface.addresses]
    except ValueError as error:
        raise InvalidInput(f"interface {interface.uuid}: {error}") from error


def _identity(assignment: Assignment, address: str | None) -> bytes:
    document = {
        "accountId": assignment.namespace,
        "architecture": "x86_64",
        "availabilityZone": metadata.AVAILABILITY_ZONE,
        "imageId": f"ami-{assignment.uuid.replace('-', '')[:17]}",
        "instanceId": instance_id(assignment.uuid),
        "instanceType": instance_type(assignment),
        "privateIp": address,
        "region": metadata.AVAILABILITY_ZONE,
        "version": "2017-09-30",
    }
    return json.dumps(document, indent=2).encode("ascii")
