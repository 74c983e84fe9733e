"""The configuration: what ``compute.yaml`` may say, and what holds where it says nothing.

Every process reads the same file: the daemon, the tool, the API. A missing or empty file is a whole
configuration (everything on this machine), and so is a key with nothing behind it. A mistake is
never passed over: all of them are found in one reading and reported with their lines. A secret
stands in a file of its own, which the configuration names; it is never a value here, and a value
that may hold one is not repeated in a message.

Loading reads that one file and nothing else: whether a certificate exists, or an address is this
machine's, is found by who uses it. The settings are frozen, and any thread may read them.
``compute.yaml.example`` shows every key with its default; a test holds it against this module.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ecompute.cluster.config_reading import (
    IPNetwork,
    Node,
    Reading,
    Section,
    read_accelerator,
    read_address,
    read_boolean,
    read_bridges,
    read_device,
    read_endpoint,
    read_guest_network,
    read_host,
    read_image,
    read_integer,
    read_libvirt_uri,
    read_list_of,
    read_name,
    read_network,
    read_node,
    read_rank,
    read_ratio,
    read_server,
    read_service_url,
    read_uuid,
)
from ecompute.cluster.errors import InvalidConfig

Accelerator = Literal["auto", "kvm", "tcg"]
Rank = Literal["spread", "pack"]

FILE_NAME = "compute.yaml"
SYSTEM_FILE = Path("/etc/ecompute") / FILE_NAME
DEFAULT_NETWORK = ipaddress.IPv4Network("10.10.0.0/24")
MAX_FILE_BYTES = 1 << 20
MAX_LANES = 12
"""libvirtd has 20 workers; what the lanes leave serves events, inventory and people."""


@dataclass(frozen=True)
class EtcdSettings:
    endpoints: tuple[str, ...] = ("127.0.0.1:2379",)
    """``host:port`` each; an IPv6 address in brackets."""
    ca: Path | None = None
    """Set: TLS, and the server's certificate must be signed by it."""
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password_file: Path | None = None


@dataclass(frozen=True)
class PlacementSettings:
    endpoint: str = "http://127.0.0.1:8080"
    """Without a slash at its end."""
    ca: Path | None = None
    token_file: Path | None = None
    """None: the token ``admin``, which placement takes under ``noauth2``."""


@dataclass(frozen=True)
class ReservedSettings:
    """What is kept from guests, for the host itself."""

    vcpus: int = 0
    memory_mb: int = 512
    disk_gb: int = 0


@dataclass(frozen=True)
class RatioSettings:
    """How often the same resource is given out."""

    vcpus: float = 1.0
    memory: float = 1.0
    disk: float = 1.0


@dataclass(frozen=True)
class InventorySettings:
    vcpus: int | None = None
    """A share of the machine, like the two below; None: all that is measured."""
    memory_mb: int | None = None
    disk_gb: int | None = None
    reserved: ReservedSettings = field(default_factory=ReservedSettings)
    ratios: RatioSettings = field(default_factory=RatioSettings)


@dataclass(frozen=True)
class ImageSettings:
    default: str = "https://download.cirros-cloud.net/0.6.3/cirros-0.6.3-x86_64-disk.img"
    allow_paths: tuple[Path, ...] = ()
    """Directories from which an image may be taken by its path on the host."""
    allow_networks: tuple[IPNetwork, ...] = ()
    """Private, loopback and link-local targets of image URLs are refused unless they lie in one."""
    max_gb: int = 64
    """The largest image that is fetched."""


@dataclass(frozen=True)
class Config:
    path: Path | None = None
    """The file that was read, or None."""
    uuid: str | None = None
    """The resource provider's; None: made once and kept in ``state_dir``."""
    name: str | None = None
    """The resource provider's; None: the host name."""
    state_dir: Path = Path("/var/lib/ecompute")
    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    upkeep: EtcdSettings | None = None
    """How to reach etcd for the lead's work, whose rights are not a host's; None: as for the rest."""
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    inventory: InventorySettings = field(default_factory=InventorySettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    resize: bool = True
    """Whether a guest's disk is grown to the DISK_GB that it claimed."""
    bridge: str | None = None
    """A bridge of the host on which every guest gets a second interface."""
    bridges: Mapping[str, str] = field(default_factory=dict)
    """Bridges of the host that carry physical networks, by what operators call them in the whole cloud."""
    underlay: str | None = None
    """The address at which other hosts send VXLAN packets; None: the source of the default route."""
    egress: str | None = None
    """The device by which guests get out, and floating addresses in; None: that of the default route."""
    dns: tuple[str, ...] = ()
    """Name servers that know what is outside of guests' networks; empty: those of the host's resolv.conf."""
    default_network: ipaddress.IPv4Network = DEFAULT_NETWORK
    """The range of each namespace's first network."""
    libvirt_uri: str = "qemu:///system"
    accelerator: Accelerator = "auto"
    lanes: int = MAX_LANES
    """How many instances are worked on side by side."""
    rank: Rank = "spread"
    """Which hosts are asked first: the emptiest, or the fullest that have room."""


def find(explicit: Path | None = None) -> Path | None:
    """Return the file to load: the one named, else the working directory's, else the system's.

    Raises:
        InvalidConfig: the one named does not exist. (Defaults in its place would be another cloud.)
    """
    if explicit is not None:
        if not explicit.exists():
            raise InvalidConfig(str(explicit), ["there is no such file"])
        return explicit
    return next((path for path in (Path(FILE_NAME), SYSTEM_FILE) if path.exists()), None)


def load(path: Path | None = None) -> Config:
    """Return the configuration that the file holds; the defaults if there is none.

    Relative paths in it start at the directory of the file.

    Raises:
        InvalidConfig: with all problems of the file.
    """
    if path is None:
        return Config()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise InvalidConfig(str(path), [f"cannot be read: {error.strerror}"]) from error
    if len(data) > MAX_FILE_BYTES:
        raise InvalidConfig(str(path), [f"has more than {MAX_FILE_BYTES} bytes"])
    return parse(data, path)


def parse(data: bytes, path: Path) -> Config:
    """Return the configuration that ``data`` says, as if it had been read from ``path``. Pure.

    Raises:
        InvalidConfig: with all problems.
    """
    reading = Reading(path.absolute().parent)
    config = _config(reading, reading.compose(data), path)
    if reading.problems:
        raise InvalidConfig(str(path), [f"line {line}: {text}" for line, text in sorted(reading.problems)])
    return config


# --- the file ------------------------------------------------------------------------------------

_MANY = 10**9


def _config(reading: Reading, root: Node | None, path: Path) -> Config:
    top = reading.section(
        root,
        "",
        {
            "uuid": read_uuid,
            "name": read_name,
            "state_dir": reading.path,
            "etcd": read_node,
            "upkeep": read_node,
            "placement": read_node,
            "inventory": read_node,
            "image": read_node,
            "resize": read_boolean,
            "bridge": read_device,
            "bridges": read_bridges,
            "underlay": read_address,
            "egress": read_device,
            "dns": read_list_of(read_server),
            "default_network": read_guest_network,
            "libvirt": read_libvirt_uri,
            "accelerator": read_accelerator,
            "lanes": read_integer(1, MAX_LANES),
            "rank": read_rank,
        },
    )
    values = dict(top.values)
    etcd = _etcd(reading, values.pop("etcd", None))
    upkeep = _upkeep(reading, values.pop("upkeep", None), etcd)
    placement = _placement(reading, values.pop("placement", None))
    inventory = _inventory(reading, values.pop("inventory", None))
    images = _images(reading, values.pop("image", None))
    if "libvirt" in values:
        values["libvirt_uri"] = values.pop("libvirt")
    return Config(
        path=path, etcd=etcd, upkeep=upkeep, placement=placement, inventory=inventory, images=images, **values
    )


def _etcd(reading: Reading, node: Node | None) -> EtcdSettings:
    said = reading.section(
        node,
        "etcd",
        {
            "host": read_host,
            "port": read_integer(1, 65535),
            "endpoints": read_list_of(read_endpoint),
            "ca": reading.path,
            "cert": reading.path,
            "key": reading.path,
            "user": read_name,
            "password_file": reading.path,
        },
    )
    values = dict(said.values)
    host = values.pop("host", "127.0.0.1")
    port = values.pop("port", 2379)
    if said.has("endpoints"):
        for other in ("host", "port"):
            if said.has(other):
                reading.report(said.line_of(other), f"etcd.{other}: stands beside etcd.endpoints; keep one of them")
        if values.get("endpoints") == ():
            reading.report(said.line_of("endpoints"), "etcd.endpoints: must name at least one")
    elif said.has("host") or said.has("port"):
        values["endpoints"] = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}",)
    _in_pairs(reading, said, "etcd")
    if said.has("cert") and not said.has("ca"):
        reading.report(said.line_of("cert"), "etcd.cert: needs etcd.ca beside it, or TLS is not used")
    return EtcdSettings(**values)


def _upkeep(reading: Reading, node: Node | None, etcd: EtcdSettings) -> EtcdSettings | None:
    said = reading.section(
        node,
        "upkeep",
        {"cert": reading.path, "key": reading.path, "user": read_name, "password_file": reading.path},
    )
    _in_pairs(reading, said, "upkeep")
    if not said.values:
        return None
    if said.has("cert") and said.has("key") and etcd.ca is None:
        reading.report(said.line_of("cert"), "upkeep.cert: needs etcd.ca, or TLS is not used")
    # The host's user does not stay beside another's certificate: etcd would take it for the host.
    return replace(etcd, **{"user": None, "password_file": None, **said.values})


def _in_pairs(reading: Reading, said: Section, section: str) -> None:
    for one, other in (("cert", "key"), ("key", "cert"), ("user", "password_file"), ("password_file", "user")):
        if said.has(one) and not said.has(other):
            reading.report(said.line_of(one), f"{section}.{one}: needs {section}.{other} beside it")


def _placement(reading: Reading, node: Node | None) -> PlacementSettings:
    said = reading.section(
        node, "placement", {"endpoint": read_service_url, "ca": reading.path, "token_file": reading.path}
    )
    settings = PlacementSettings(**said.values)
    if said.has("ca") and settings.endpoint.startswith("http://"):
        reading.report(said.line_of("ca"), "placement.ca: needs an https:// URL in placement.endpoint")
    return settings


def _inventory(reading: Reading, node: Node | None) -> InventorySettings:
    sizes = ("vcpus", "memory_mb", "disk_gb")
    said = reading.section(
        node,
        "inventory",
        {**{size: read_integer(1, _MANY) for size in sizes}, "reserved": read_node, "ratios": read_node},
    )
    values = dict(said.values)
    reserved = reading.section(
        values.pop("reserved", None), "inventory.reserved", dict.fromkeys(sizes, read_integer(0, _MANY))
    )
    ratios = reading.section(
        values.pop("ratios", None), "inventory.ratios", dict.fromkeys(("vcpus", "memory", "disk"), read_ratio)
    )
    settings = InventorySettings(
        reserved=ReservedSettings(**reserved.values), ratios=RatioSettings(**ratios.values), **values
    )
    for size in sizes:
        total, kept = getattr(settings, size), getattr(settings.reserved, size)
        if total is not None and kept > total:
            line = reserved.line_of(size) if reserved.has(size) else said.line_of(size)
            reading.report(line, f"inventory.reserved.{size}: reserves {kept} of only {total}")
    return settings


def _images(reading: Reading, node: Node | None) -> ImageSettings:
    said = reading.section(
        node,
        "image",
        {
            "default": read_image,
            "allow_paths": read_list_of(reading.path),
            "allow_networks": read_list_of(read_network),
            "max_gb": read_integer(1, 65536),
        },
    )
    return ImageSettings(**said.values)
