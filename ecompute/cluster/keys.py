"""The names of all keys in etcd: the one place where a key is put together or taken apart.

What a host acts on, or writes, has its provider first in the key, so that a host watches only its
own prefixes and an etcd role can be drawn around them. ``docs/key-schema.md`` is the reference for
people; a test holds it against this module. Every argument is checked: a part with a slash would
name another key.
"""

from __future__ import annotations

from hashlib import sha256
from uuid import UUID

from ecompute.cluster.errors import InvalidInput

CLUSTER = "/cluster/"
INCARNATION = "/cluster/incarnation"
SCHEMA = "/cluster/schema"

INSTANCES = "/instances/"
HOSTS = "/hosts/"
SECRETS = "/secrets/"
SEEN = "/seen/"
BOOTED = "/booted/"
NODES = "/nodes/"
AUDITS = "/audits/"
ADMIN = "/admin/"
ALIVE = "/alive/"
LOAD = "/load/"
NETWORKS = "/networks/"
VNIS = "/vnis/"
POOLS = "/pools/"
FLOATING = "/floating/"
NAMES = "/names/"
ZONES = "/zones/"
QUOTAS = "/quotas/"
GROUPS = "/groups/"
TAGS = "/tags/"
GANGS = "/gangs/"
UUIDS = "/uuids/"
IDEMPOTENCY = "/idempotency/"
EXPIRIES = "/expiries/"
COPIES = "/copies/"
INTENTS = "/intents/"
OPERATIONS = "/operations/"
LEAD = "/lead/"
EVENTS = "/events/"

EVENT_RING = 32
"""How many events one writer keeps of one object."""


def _part(text: str) -> str:
    if not text or "/" in text or "\x00" in text:
        raise InvalidInput(f"{text!r} cannot be a part of a key")
    return text


def is_uuid(text: str) -> bool:
    """Whether ``text`` is a uuid as we write it. What stands in a key need not be: anybody may put keys."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def last(key: str) -> str:
    """Return what stands behind the last slash of ``key``."""
    return key.rsplit("/", 1)[1]


def parts(key: str) -> list[str]:
    """Return the parts of ``key`` without the empty one before the first slash."""
    return key.strip("/").split("/")


def instance(uuid: str) -> str:
    return INSTANCES + _part(uuid)


def assignments(provider: str) -> str:
    return f"{HOSTS}{_part(provider)}/"


def assignment(provider: str, uuid: str) -> str:
    return assignments(provider) + _part(uuid)


def secrets_for(provider: str) -> str:
    return f"{SECRETS}{_part(provider)}/"


def secrets(provider: str, uuid: str) -> str:
    return secrets_for(provider) + _part(uuid)


def seen_by(provider: str) -> str:
    return f"{SEEN}{_part(provider)}/"


def seen(provider: str, uuid: str) -> str:
    return seen_by(provider) + _part(uuid)


def booted(uuid: str) -> str:
    return BOOTED + _part(uuid)


def node(provider: str) -> str:
    return NODES + _part(provider)


def audit(provider: str) -> str:
    return AUDITS + _part(provider)


def admin(provider: str) -> str:
    return ADMIN + _part(provider)


def alive(provider: str) -> str:
    return ALIVE + _part(provider)


def load(provider: str) -> str:
    return LOAD + _part(provider)


def network(uuid: str) -> str:
    """The network itself; what belongs to it lies below ``network_prefix``."""
    return NETWORKS + _part(uuid)


def network_prefix(uuid: str) -> str:
    return network(uuid) + "/"


def ports(network_uuid: str) -> str:
    return network_prefix(network_uuid) + "ports/"


def port(network_uuid: str, interface_uuid: str) -> str:
    return ports(network_uuid) + _part(interface_uuid)


def addresses(network_uuid: str) -> str:
    return network_prefix(network_uuid) + "addresses/"


def address(network_uuid: str, ip: str) -> str:
    return addresses(network_uuid) + _part(ip)


def macs(network_uuid: str) -> str:
    return network_prefix(network_uuid) + "macs/"


def mac(network_uuid: str, mac_: str) -> str:
    return macs(network_uuid) + _part(mac_)


def network_hosts(network_uuid: str) -> str:
    return network_prefix(network_uuid) + "hosts/"


def network_host(network_uuid: str, provider: str) -> str:
    return network_hosts(network_uuid) + _part(provider)


def vni(number: int) -> str:
    return f"{VNIS}{number}"


def pool(name_: str) -> str:
    return POOLS + _part(name_)


def floating(ip: str) -> str:
    return FLOATING + _part(ip)


def names(namespace: str, kind: str) -> str:
    return f"{NAMES}{_part(namespace)}/{_part(kind)}/"


def named(namespace: str, kind: str, name: str) -> str:
    """The prefix under which every object of that name has one key, ending in its uuid."""
    return names(namespace, kind) + _part(name) + "/"


def name(namespace: str, kind: str, name_: str, uuid: str) -> str:
    return named(namespace, kind, name_) + _part(uuid)


def zone(name_: str) -> str:
    return ZONES + _part(name_)


def quota(namespace: str) -> str:
    return QUOTAS + _part(namespace)


def group(uuid: str) -> str:
    """The group itself; its members lie below."""
    return GROUPS + _part(uuid)


def members(group_uuid: str) -> str:
    return group(group_uuid) + "/members/"


def member(group_uuid: str, instance_uuid: str) -> str:
    return members(group_uuid) + _part(instance_uuid)


def tagged(namespace: str, tag: str) -> str:
    """The prefix under which every instance with that tag has one key."""
    return f"{TAGS}{_part(namespace)}/{_part(tag)}/"


def tag(namespace: str, tag_: str, uuid: str) -> str:
    return tagged(namespace, tag_) + _part(uuid)


def gang(uuid: str) -> str:
    return GANGS + _part(uuid)


def used_uuid(uuid: str) -> str:
    return UUIDS + _part(uuid)


def idempotency(namespace: str, key: str) -> str:
    return f"{IDEMPOTENCY}{_part(namespace)}/{_part(key)}"


def expiry(seconds: int, uuid: str) -> str:
    return f"{EXPIRIES}{seconds:012d}/{_part(uuid)}"


def copies(provider: str) -> str:
    return f"{COPIES}{_part(provider)}/"


def copy(provider: str, image: str) -> str:
    """What tells whether a host holds an image: its URL, made fit for a key."""
    return copy_of(provider, image_digest(image))


def copy_of(provider: str, digest: str) -> str:
    """The same, of the URL's `image_digest`."""
    return copies(provider) + _part(digest[:32])


def image_digest(image: str) -> str:
    """What stands for an image's URL, in keys and in the names of files."""
    return sha256(image.encode(errors="surrogatepass")).hexdigest()


def intent(consumer: str) -> str:
    return INTENTS + _part(consumer)


def operations(provider: str) -> str:
    return f"{OPERATIONS}{_part(provider)}/"


def operation(provider: str, uuid: str) -> str:
    return operations(provider) + _part(uuid)


def lead(role: str) -> str:
    return LEAD + _part(role)


def events_by(writer: str) -> str:
    """All events of one writer: first in the key, so that a role in etcd can end there."""
    return f"{EVENTS}{_part(writer)}/"


def event_ring(kind: str, uuid: str, writer: str) -> str:
    return f"{events_by(writer)}{_part(kind)}/{_part(uuid)}/"


def event(kind: str, uuid: str, writer: str, n: int) -> str:
    return f"{event_ring(kind, uuid, writer)}{n % EVENT_RING}"
