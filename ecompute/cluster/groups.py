"""Groups as rows in placement: which class stands for one, and which provider carries it where. Pure.

A hard group has a class of its own, and a member holds one unit of it in its claim. Apart
(anti-affinity), the class is given to each place with a total of one, when the first member goes
there: placement then takes no second one. Together (affinity), it is given to the one place that the
first member chose: nobody can claim it elsewhere.

A place is a host or a zone. A host's classes are on a child of its provider, so that they are in no
way of the inventory that the host keeps itself; a zone's are on the zone's own provider.
"""

from __future__ import annotations

from uuid import UUID, uuid5

from ecompute.cluster.documents import Policy
from ecompute.cluster.placement import MAX_INT, Inventory

NAMESPACE = UUID("0f6e4a02-9d0c-5b57-8f6a-6c1d1a3d94b7")
"""Of the uuids of hosts' group providers."""

_PREFIXES = {Policy.ANTI_AFFINITY: "CUSTOM_AAG_", Policy.AFFINITY: "CUSTOM_AFG_"}
PREFIXES = tuple(_PREFIXES.values())


def class_of(uuid: str, policy: Policy) -> str:
    """Return the resource class of a group; empty where the policy is soft and has none."""
    prefix = _PREFIXES.get(policy)
    return "" if prefix is None else prefix + UUID(uuid).hex.upper()


def group_of(resource_class: str) -> str | None:
    """Return the uuid of the group that a class stands for; None: it is another thing's class."""
    for prefix in PREFIXES:
        if resource_class.startswith(prefix):
            try:
                return str(UUID(resource_class.removeprefix(prefix)))
            except ValueError:
                return None
    return None


def is_together(resource_class: str) -> bool:
    return resource_class.startswith(_PREFIXES[Policy.AFFINITY])


def inventory_of(policy: Policy) -> Inventory:
    """Return what a place has of the class."""
    return Inventory(total=1) if policy is Policy.ANTI_AFFINITY else Inventory(total=MAX_INT)


def provider_of_host(provider: str) -> str:
    """Return the uuid of the child of a host's provider that carries its groups."""
    return str(uuid5(NAMESPACE, provider))


def name_of_host(provider: str) -> str:
    """Return that child's name. Hosts may be renamed, and names are unique: so it is not the host's."""
    return f"{provider}/groups"


def name_of_zone(zone: str) -> str:
    return f"zone-{zone}/groups"
