"""What of ours is there in a host's network, as a list: for who asks whether each thing has an owner.

The list is all that the audit knows of devices. What else comes to belong to a network on a host is one
more entry of it, with a kind of its own.

Pure: the lists are made by `links`, `gateways` and their fakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    BRIDGE = "bridge"
    VXLAN = "vxlan"
    VLAN = "vlan"
    TAP = "tap"
    """Of one interface of one guest, which its name says (`mesh.tap_name`)."""
    VETH = "veth"
    """The outer end of a pair that leads into a network's namespace."""
    NAMESPACE = "namespace"


@dataclass(frozen=True)
class Device:
    """One thing that has a name of ours and is of the kind that the name promises."""

    name: str
    kind: Kind
    vni: int | None
    """The network that it is part of; of a tap, that of the bridge it is on: None if it is on none of ours."""
