"""What a guest is to libvirt: from a plan to domain XML, and from XML back to whose it is.

Pure. The XML is put together by ElementTree alone, so that no text can become an element; characters
that XML cannot carry are dropped from a user's text and refused in everything else. A user's text
reaches only ``<title>`` and our metadata: the domain's name, its uuid and all paths are made from uuids.

Threads: any.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree as ET  # reads only what libvirt says; it expands no external entities

from ecompute.cluster.documents import INTERFACE_MODELS
from ecompute.cluster.errors import InvalidInput

METADATA_NAMESPACE = "urn:etcd-compute:instance:1"
"""The XML namespace of our metadata element."""

METADATA_PREFIX = "ec"

NAME_PREFIX = "ec-"

TCG_CODE_MB = 256
"""QEMU would keep up to a gigabyte of translated code a guest, which no inventory knows of."""

SPARE_PORTS = 8
"""How many interfaces a guest may get while it runs: each needs a port that was there when it started.
Measured: a dozen of them change neither the time nor the memory in which a small guest boots."""

ASSET_TAG = "OpenStack Compute"
"""Of the chassis, by which cloud-init knows, where there is no drive, that OpenStack's metadata can be asked for
(its ``ds-identify``). The rest of the firmware's tables is QEMU's own."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

ET.register_namespace(METADATA_PREFIX, METADATA_NAMESPACE)


@dataclass(frozen=True)
class TapPlan:
    """One interface: a tap that libvirt makes and puts on a bridge that is there."""

    tap: str
    bridge: str
    mac: str
    mtu: int | None
    """Of the guest's interface and its tap; ``None``: the bridge's."""
    model: str = "virtio"


@dataclass(frozen=True)
class DomainPlan:
    """What a guest is to be, with everything resolved. ``accelerator`` is ``kvm`` or ``tcg``."""

    uuid: str
    name: str
    namespace: str
    provider: str
    vcpus: int
    memory_mb: int
    accelerator: str
    root_disk: Path
    config_drive: Path | None
    interfaces: tuple[TapPlan, ...]
    console_log: Path


@dataclass(frozen=True)
class FoundInterface:
    """One interface as a domain has it; what it says not of itself is ``""``."""

    mac: str
    tap: str
    bridge: str


@dataclass(frozen=True)
class Owner:
    """What our metadata says of a domain."""

    provider: str
    namespace: str
    name: str


def domain_name(uuid: str) -> str:
    """Return the name that the domain of the instance ``uuid`` has in libvirt."""
    return NAME_PREFIX + uuid


def render(plan: DomainPlan) -> str:
    """Return the domain XML of ``plan`` (https://libvirt.org/formatdomain.html).

    Raises:
        InvalidInput: the plan has a value that no guest can have; says which.
    """
    _check(plan)
    is_kvm = plan.accelerator == "kvm"
    domain = ET.Element("domain", type="kvm" if is_kvm else "qemu")
    _add(domain, "name", domain_name(plan.uuid))
    _add(domain, "uuid", plan.uuid)
    _add(domain, "title", " ".join(_carried(plan.name).split()) or plan.uuid)
    domain.append(_metadata(plan))
    _add(domain, "memory", str(plan.memory_mb), unit="MiB")
    _add(domain, "vcpu", str(plan.vcpus), placement="static")
    _machine(domain, plan, is_kvm)
    _add(_add(_add(domain, "sysinfo", type="smbios"), "chassis"), "entry", ASSET_TAG, name="asset")
    devices = _add(domain, "devices")
    _disks(devices, plan)
    for tap in plan.interfaces:
        devices.append(_interface(tap))
    _console(devices, plan.console_log)
    # No USB: nothing is plugged in, and the firmware would take its time looking.
    _add(devices, "controller", type="usb", model="none")
    _ports(devices, plan)
    _add(_add(devices, "video"), "model", type="vga")
    _add(devices, "memballoon", model="virtio")
    _add(_add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def render_interface(tap: TapPlan) -> str:
    """Return the XML of one interface, for a domain that gets it later.

    Raises:
        InvalidInput: no guest can have it; says why.
    """
    if problems := _problems(tap):
        raise InvalidInput("a guest cannot have an interface like this: " + "; ".join(problems))
    interface = _interface(tap)
    ET.indent(interface)
    return ET.tostring(interface, encoding="unicode") + "\n"


def interfaces(domain_xml: str) -> dict[FoundInterface, str]:
    """Return the interfaces of a domain, and the XML of each as libvirt has it."""
    found = {}
    for element in ET.fromstring(domain_xml).iterfind("devices/interface"):  # noqa: S314 - from libvirt
        mac, target, source = (element.find(tag) for tag in ("mac", "target", "source"))
        interface = FoundInterface(
            mac="" if mac is None else mac.get("address", "").lower(),
            tap="" if target is None else target.get("dev", ""),
            bridge="" if source is None else source.get("bridge", ""),
        )
        found[interface] = ET.tostring(element, encoding="unicode")
    return found


def owner(metadata_xml: str) -> Owner | None:
    """Return what our metadata element says, or ``None`` if it is not as we write it."""
    try:
        element = ET.fromstring(metadata_xml)  # noqa: S314 - from libvirt, which has parsed it
    except ET.ParseError:
        return None
    values = {_local(child.tag): child.text or "" for child in element}
    if _local(element.tag) != "instance" or not values.get("provider"):
        return None
    return Owner(values["provider"], values.get("namespace", ""), values.get("name", ""))


def _local(tag: str) -> str:
    return tag.rsplit("}", 1)[-1]


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _metadata(plan: DomainPlan) -> ET.Element:
    metadata = ET.Element("metadata")
    instance = _add(metadata, f"{{{METADATA_NAMESPACE}}}instance")
    for tag, text in (("provider", plan.provider), ("namespace", plan.namespace), ("name", plan.name)):
        _add(instance, f"{{{METADATA_NAMESPACE}}}{tag}", _carried(text))
    return metadata


def _machine(domain: ET.Element, plan: DomainPlan, is_kvm: bool) -> None:
    os = _add(domain, "os")
    # Measured with a small Linux under TCG: at its first line after 3.1 s, 4.3 s with "pc".
    _add(os, "type", "hvm", arch="x86_64", machine="q35")
    _add(os, "boot", dev="hd")
    _add(os, "smbios", mode="sysinfo")
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if not is_kvm:
        _add(_add(features, "tcg"), "tb-cache", str(TCG_CODE_MB), unit="MiB")
    cpu = _add(domain, "cpu", mode="host-passthrough" if is_kvm else "maximum", check="none")
    _add(cpu, "topology", sockets="1", cores=str(plan.vcpus), threads="1")
    clock = _add(domain, "clock", offset="utc")
    _add(clock, "timer", name="rtc", tickpolicy="catchup")
    _add(clock, "timer", name="pit", tickpolicy="delay")
    _add(clock, "timer", name="hpet", present="no")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "destroy")


def _disks(devices: ET.Element, plan: DomainPlan) -> None:
    root = _add(devices, "disk", type="file", device="disk")
    _add(root, "driver", name="qemu", type="qcow2", discard="unmap")
    _add(root, "source", file=str(plan.root_disk))
    _add(root, "target", dev="vda", bus="virtio")
    if plan.config_drive is not None:
        drive = _add(devices, "disk", type="file", device="disk")
        _add(drive, "driver", name="qemu", type="raw")
        _add(drive, "source", file=str(plan.config_drive))
        _add(drive, "target", dev="vdb", bus="virtio")
        _add(drive, "readonly")


def _ports(devices: ET.Element, plan: DomainPlan) -> None:
    """Say where devices are plugged in: libvirt by itself makes one port to spare, and for PCI Express alone."""
    _add(devices, "controller", type="pci", model="pcie-root")
    # Beside the interfaces: root disk, config drive, balloon, random numbers, and the bridge below.
    for _ in range(5 + len(plan.interfaces) + SPARE_PORTS):
        _add(devices, "controller", type="pci", model="pcie-root-port")
    # Where the older models go, which are plain PCI.
    _add(devices, "controller", type="pci", model="pcie-to-pci-bridge")


def _interface(tap: TapPlan) -> ET.Element:
    interface = ET.Element("interface", type="bridge")
    _add(interface, "mac", address=tap.mac)
    _add(interface, "source", bridge=tap.bridge)
    _add(interface, "target", dev=tap.tap)
    _add(interface, "model", type=tap.model)
    if tap.mtu is not None:
        _add(interface, "mtu", size=str(tap.mtu))
    # No guest boots from the network, and the firmware would load a boot program for each interface.
    _add(interface, "rom", enabled="no")
    return interface


def _console(devices: ET.Element, log: Path) -> None:
    serial = _add(devices, "serial", type="pty")
    _add(serial, "log", file=str(log), append="on")
    _add(_add(serial, "target", type="isa-serial", port="0"), "model", name="isa-serial")
    _add(_add(devices, "console", type="pty"), "target", type="serial", port="0")


def _carried(text: str) -> str:
    """Return ``text`` without the characters that XML cannot carry."""
    return _NOT_XML.sub("", text)


def _check(plan: DomainPlan) -> None:
    problems = []
    for what, uuid in (("uuid", plan.uuid), ("provider", plan.provider)):
        try:
            is_canonical = str(UUID(uuid)) == uuid
        except ValueError:
            is_canonical = False
        if not is_canonical:
            problems.append(f"{what} {uuid!r} is not a uuid in its canonical form")
    if plan.vcpus < 1:
        problems.append(f"{plan.vcpus} vcpus")
    if plan.memory_mb < 1:
        problems.append(f"{plan.memory_mb} MB of memory")
    if plan.accelerator not in ("kvm", "tcg"):
        problems.append(f"accelerator {plan.accelerator!r} is neither kvm nor tcg")
    for path in (plan.root_disk, plan.config_drive, plan.console_log):
        if path is not None and (not path.is_absolute() or not str(path).isprintable()):
            problems.append(f"path {str(path)!r} is not absolute, or has unprintable characters")
    problems += [problem for tap in plan.interfaces for problem in _problems(tap)]
    if problems:
        raise InvalidInput("a guest cannot be like this: " + "; ".join(problems))


def _problems(tap: TapPlan) -> list[str]:
    problems = [
        f"{device!r} cannot be a device's name" for device in (tap.tap, tap.bridge) if not _DEVICE.fullmatch(device)
    ]
    if not _MAC.fullmatch(tap.mac):
        problems.append(f"{tap.mac!r} is not a MAC address")
    if tap.mtu is not None and not 68 <= tap.mtu <= 65535:
        problems.append(f"MTU {tap.mtu}")
    if tap.model not in INTERFACE_MODELS:
        problems.append(f"interface model {tap.model!r} is none of {', '.join(sorted(INTERFACE_MODELS))}")
    return problems
