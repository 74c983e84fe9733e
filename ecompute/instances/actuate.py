"""The steps of a plan, done: each an *ensure*, so that done twice it is done once.

Nothing is decided here, and nothing is undone here: what a failed or killed run left is found by
the next look and taken away by the plan that follows from it (`ecompute.instances.plan`).

Called in an instance's own lane, so never twice at the same time for the same instance.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ecompute.cluster import keys
from ecompute.cluster.addressing import mac_address
from ecompute.cluster.documents import Assignment, ConfigDrive, Interface, Role, Secrets, Unreadable, decode, encode
from ecompute.cluster.errors import HypervisorError, NetworkError, StorageError, Unavailable
from ecompute.guest import configdrive
from ecompute.guest.drive import drive
from ecompute.guest.told import Guest, guest_file
from ecompute.hypervisor.api import FoundDomain, Hypervisor
from ecompute.hypervisor.domain import DomainPlan, TapPlan
from ecompute.instances.interfaces import Difference, difference, lan_uuid
from ecompute.instances.terms import Found, Step
from ecompute.network.links import Links
from ecompute.network.membership import Memberships
from ecompute.network.names import bridge_name, tap_name, vni_of
from ecompute.network.terms import Tap
from ecompute.storage import disks
from ecompute.storage.images import Image, ImageCache
from ecompute.storage.place import MARK, Place

DEADLINE_S: dict[Step, float] = {
    Step.FETCH_IMAGE: 30.0,
    Step.OVERLAY: 180.0,
    Step.CONFIG_DRIVE: 60.0,
    Step.JOIN_NETWORK: 60.0,
    Step.DEFINE: 60.0,
    Step.START: 180.0,
    Step.ATTACH: 120.0,
    Step.DETACH: 300.0,
    Step.LEAVE_OTHERS: 60.0,
    Step.STOP: 90.0,
    Step.UNDEFINE: 60.0,
    Step.LEAVE_NETWORK: 60.0,
    Step.REMOVE_CONFIG_DRIVE: 60.0,
    Step.REMOVE_DISK: 120.0,
}
"""How long a step may take before its lane is set aside; the rest, which read and write etcd or the
host's memory, have `DEFAULT_DEADLINE_S`."""
DEFAULT_DEADLINE_S = 60.0

FETCH_TRIES = 3
"""How often an image server that does not answer is asked before the build fails."""


log = logging.getLogger(__name__)


class ImagePendingError(Exception):
    """The image is on its way: the lane is free meanwhile, and ``future`` says when to come back."""

    def __init__(self, future: Future[Image]) -> None:
        super().__init__("the image is on its way")
        self.future = future


class ForeignDomain(HypervisorError):
    """A domain on this host has the uuid, and is not ours: it is not touched, whatever is wanted."""


@dataclass(frozen=True)
class Files:
    """Where one instance's files lie."""

    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"

    @property
    def config_drive(self) -> Path:
        return self.directory / "config.iso"

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"

    @property
    def metadata(self) -> Path:
        """What the metadata service tells the guest; nowhere without a disk."""
        return guest_file(self.directory.parent, self.directory.name)


class Actuator:
    """What a host can do to one of its instances.

    Args:
        place: where the instances' files lie.
        bridge: a bridge of the host on which each guest gets a second interface, or ``None``.
        bridges: what operators call the host's bridges that carry physical networks, and their names.
        accelerator: ``kvm`` or ``tcg``, as tried.
        secrets: reads the secrets of an instance from etcd.
        create_overlay, write_config_drive: make the two disks of a guest.
    """

    def __init__(
        self,
        *,
        provider: str,
        place: Place,
        hypervisor: Hypervisor,
        images: ImageCache,
        memberships: Memberships,
        links: Links,
        accelerator: str,
        resize: bool,
        bridge: str | None,
        bridges: Mapping[str, str] = MappingProxyType({}),
        secrets: Callable[[str], Secrets | None],
        create_overlay: disks.CreateOverlay = disks.create_overlay,
        write_config_drive: configdrive.WriteDrive = configdrive.write,
    ) -> None:
        self._provider = provider
        self._place = place
        self._hypervisor = hypervisor
        self._images = images
        self._memberships = memberships
        self._links = links
        self._accelerator = accelerator
        self._resize = resize
        self._bridge = bridge
        self._bridges = bridges
        self._secrets = secrets
        self._create_overlay = create_overlay
        self._put_config_drive = write_config_drive
        self._fetching: dict[str, Future[Image]] = {}
        self._tried: dict[str, int] = {}
        self._told: dict[str, tuple[tuple[int, int, int], Assignment | None]] = {}
        """What the metadata service tells of an instance, and of which file that was read."""

    def files(self, uuid: str) -> Files:
        if not keys.is_uuid(uuid):
            raise StorageError(f"{uuid[:50]!r} is no uuid: no path is made of it")
        return Files(self._place.path / uuid)

    def with_files(self) -> set[str]:
        """Return the uuids of the instances that have files here.

        Raises:
            StorageUnavailable: it cannot be said.
        """
        self._place.check()
        return {path.name for path in self._place.path.iterdir() if keys.is_uuid(path.name) and path.is_dir()}

    def strays(self) -> frozenset[str]:
        """Return the names of what lies beside the instances' directories, and is none.

        Raises:
            StorageUnavailable: it cannot be said.
        """
        self._place.check()
        return frozenset(
            path.name
            for path in self._place.path.iterdir()
            if path.name != MARK and not (keys.is_uuid(path.name) and path.is_dir())
        )

    def fetching(self) -> frozenset[str]:
        """Return the uuids of the instances whose image is on its way."""
        return frozenset(self._fetching)

    def look(self, uuid: str, assignment: Assignment | None) -> Found:
        """Return what of the instance is on this host, now.

        Raises:
            ForeignDomain: see there.
            HypervisorUnavailable, StorageUnavailable, NetworkError: it cannot be said.
        """
        domain = self._hypervisor.get(uuid)
        if domain is not None and not domain.is_ours:
            raise ForeignDomain(
                f"a domain with the uuid {uuid} is on this host and is not ours", hint="it is never touched; remove it"
            )
        self._place.check()
        files = self.files(uuid)
        _sweep(files)
        is_to_go = assignment is not None and assignment.role is Role.ABSENT
        differs = self._difference(uuid, assignment, domain)
        return Found(
            domain=None if domain is None else domain.power,
            has_disk=files.directory.exists() if is_to_go else files.disk.exists(),
            has_config_drive=files.config_drive.exists(),
            has_network=self._has_network(uuid, assignment),
            is_to_attach=bool(differs.missing),
            is_to_detach=bool(differs.surplus),
            is_to_leave=assignment is not None and not is_to_go and self._memberships.has_others(uuid, assignment),
            is_mac_taken=differs.is_mac_taken,
            is_to_tell=domain is not None and self._is_to_tell(files, assignment),
        )

    def _difference(self, uuid: str, assignment: Assignment | None, domain: FoundDomain | None) -> Difference:
        if assignment is None or assignment.role is not Role.RUN or domain is None or domain.interfaces is None:
            return Difference()
        return difference(uuid, self._interfaces(assignment), domain.interfaces)

    def _has_network(self, uuid: str, assignment: Assignment | None) -> bool:
        if assignment is None:
            return False
        if assignment.role is Role.RUN:
            has_joined = all(self._memberships.has_joined(uuid, interface) for interface in assignment.spec.interfaces)
            return has_joined and (self._bridge is None or self._memberships.is_admitted(uuid))
        return (
            self._memberships.has_others(uuid)
            or any(self._memberships.has_to_leave(uuid, interface) for interface in assignment.spec.interfaces)
            or self._memberships.is_admitted(uuid)
        )

    def adopt(self, assignment: Assignment) -> None:
        """Take note of a guest that is here already: its networks are put right soon."""
        lan = None if self._bridge is None else self._lan(assignment.uuid, self._bridge)
        self._memberships.adopt(assignment.uuid, assignment.spec.interfaces, lan)

    def do(self, step: Step, uuid: str, assignment: Assignment | None, *, is_build: bool = False) -> None:
        """Do one step that changes the host.

        Args:
            is_build: the instance has never run.

        Raises:
            StepFailed, InvalidImage: it could not be done.
            Unavailable: it could not be tried.
            ImagePendingError: see there.
        """
        if step is Step.STOP:
            self._hypervisor.stop(uuid)
        elif step is Step.UNDEFINE:
            self._hypervisor.undefine(uuid)
        elif step is Step.REMOVE_CONFIG_DRIVE:
            configdrive.remove(self.files(uuid).config_drive)
        elif step is Step.REMOVE_DISK:
            self._remove_files(uuid)
        elif assignment is None:
            raise AssertionError(f"{step} needs an assignment")
        elif step is Step.FETCH_IMAGE:
            self._fetch(assignment)
        elif step is Step.OVERLAY:
            self._overlay(assignment)
        elif step is Step.CONFIG_DRIVE:
            self._write_config_drive(assignment)
        elif step is Step.JOIN_NETWORK:
            self._join(assignment, is_build=is_build)
        elif step is Step.LEAVE_NETWORK:
            self.files(uuid).metadata.unlink(missing_ok=True)
            self._told.pop(uuid, None)
            for interface in assignment.spec.interfaces:
                self._memberships.leave(uuid, interface)
            self._memberships.leave_others(uuid)
            self._memberships.dismiss(uuid)
        elif step is Step.ATTACH:
            self._attach(assignment)
        elif step is Step.DETACH:
            surplus = self._difference(uuid, assignment, self._hypervisor.get(uuid)).surplus
            for one in surplus:
                self._hypervisor.detach(uuid, one.tap)
            # A daemon that was not there when it was on them takes no note of their networks.
            for vni in {vni for one in surplus if (vni := vni_of(one.bridge)) is not None}:
                self._memberships.sweep_one(vni)
        elif step is Step.TELL:
            self._tell(assignment)
        elif step is Step.LEAVE_OTHERS:
            self._memberships.leave_others(uuid, assignment)
        elif step is Step.DEFINE:
            self._hypervisor.define(self.domain_plan(assignment))
        elif step is Step.START:
            taps = sorted(self.taps(assignment))
            with self._memberships.starting(taps):
                self._hypervisor.start(uuid)
            for tap in taps:
                self._links.harden(tap)
        else:
            raise AssertionError(f"{step} changes nothing on the host")

    def prune_images(self) -> None:
        """Drop the cached images that no disk here is made upon, and that nobody has asked for lately."""
        used = disks.images_in_use(self.files(uuid).disk for uuid in self.with_files())
        for sha256 in self._images.prune(used):
            log.info("dropped image %s: no disk is made upon it", sha256)

    def stop_fetching(self, uuid: str) -> None:
        """The image is not wanted any more; the fetch ends if nobody else waits for it."""
        self._tried.pop(uuid, None)
        future = self._fetching.pop(uuid, None)
        if future is not None:
            future.cancel()

    def domain_plan(self, assignment: Assignment) -> DomainPlan:
        files = self.files(assignment.uuid)
        return DomainPlan(
            uuid=assignment.uuid,
            name=assignment.name,
            namespace=assignment.namespace,
            provider=self._provider,
            vcpus=assignment.spec.resources.vcpus,
            memory_mb=assignment.spec.resources.memory_mb,
            accelerator=self._accelerator,
            root_disk=files.disk,
            config_drive=None if assignment.spec.config_drive is ConfigDrive.NONE else files.config_drive,
            interfaces=self._taps(assignment),
            console_log=files.console_log,
        )

    def taps(self, assignment: Assignment) -> frozenset[str]:
        """Return the devices that the guest has while it runs."""
        return frozenset(tap.tap for tap in self._taps(assignment))

    def _attach(self, assignment: Assignment) -> None:
        missing = self._difference(assignment.uuid, assignment, self._hypervisor.get(assignment.uuid)).missing
        with self._memberships.starting(one.tap for one in missing):
            for one in missing:
                self._hypervisor.attach(assignment.uuid, one)
        for one in missing:
            self._links.harden(one.tap)

    def _taps(self, assignment: Assignment) -> tuple[TapPlan, ...]:
        if self._bridge is None:
            return self._interfaces(assignment)
        lan = self._lan(assignment.uuid, self._bridge)
        own = TapPlan(tap=lan.name, bridge=self._bridge, mac=lan.mac, mtu=None, model="virtio")
        return (*self._interfaces(assignment), own)

    def _interfaces(self, assignment: Assignment) -> tuple[TapPlan, ...]:
        return tuple(
            TapPlan(
                tap=tap_name(interface.uuid),
                bridge=self._bridge_of(interface),
                mac=interface.mac,
                mtu=interface.mtu,
                model=interface.model,
            )
            for interface in assignment.spec.interfaces
        )

    def _bridge_of(self, interface: Interface) -> str:
        if interface.physical is None or interface.vlan is not None:
            return bridge_name(interface.vni)
        return self._bridges.get(interface.physical, "")  # without it joining fails, and says so

    @staticmethod
    def _lan(uuid: str, bridge: str) -> Tap:
        """Return the tap on a bridge of the host's own: its guest may have any address there."""
        lan = lan_uuid(uuid, bridge)
        return Tap(tap_name(lan), mac_address(lan), None)

    def _fetch(self, assignment: Assignment) -> None:
        uuid = assignment.uuid
        future = self._fetching.get(uuid)
        if future is None:
            future = self._fetching[uuid] = self._images.ensure(assignment.spec.image)
        if not future.done():
            raise ImagePendingError(future)
        try:
            future.result()
        except Unavailable as error:
            self._fetching.pop(uuid)
            tried = self._tried[uuid] = self._tried.get(uuid, 0) + 1
            if tried < FETCH_TRIES:
                raise
            self._tried.pop(uuid)
            raise StorageError(f"{error} (tried {tried} times)") from error

    def _overlay(self, assignment: Assignment) -> None:
        self._tried.pop(assignment.uuid, None)
        future = self._fetching.pop(assignment.uuid, None)
        if future is None:
            raise StorageError("the image was not fetched")
        files = self.files(assignment.uuid)
        files.directory.mkdir(exist_ok=True, mode=0o711)
        self._create_overlay(
            future.result(), files.disk, disk_gb=assignment.spec.resources.disk_gb, resize=self._resize
        )

    def _is_to_tell(self, files: Files, assignment: Assignment | None) -> bool:
        if assignment is None or assignment.role is not Role.RUN:
            return False
        try:
            there = files.metadata.stat()
        except OSError:
            return True
        mark = there.st_mtime_ns, there.st_ino, there.st_size
        kept = self._told.get(assignment.uuid)
        if kept is None or kept[0] != mark:
            told = _told(files)
            kept = self._told[assignment.uuid] = mark, None if told is None else told.assignment
        return kept[1] != assignment

    def _secrets_of(self, assignment: Assignment) -> Secrets | None:
        return self._secrets(assignment.uuid) if assignment.spec.has_user_data else None

    def _tell(self, assignment: Assignment) -> None:
        """Write what the metadata service tells the guest."""
        secrets = self._secrets_of(assignment)
        if secrets is None and assignment.spec.has_user_data:  # etcd has lost them, and we need not
            before = _told(self.files(assignment.uuid))
            secrets = None if before is None else before.secrets
        told = Guest(assignment=assignment, secrets=secrets)
        path = self.files(assignment.uuid).metadata
        new = path.with_suffix(".new")
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(encode(told))
            new.replace(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}", hint="free space on that disk") from error

    def _write_config_drive(self, assignment: Assignment) -> None:
        secrets = self._secrets_of(assignment)
        if assignment.spec.has_user_data and secrets is None:
            raise StorageError("its user data is not in etcd", hint="destroy it and launch it again")
        files = self.files(assignment.uuid)
        files.directory.mkdir(exist_ok=True, mode=0o711)
        made = drive(assignment, secrets)
        self._put_config_drive(files.config_drive, made.files, label=made.label)

    def _join(self, assignment: Assignment, *, is_build: bool) -> None:
        if self._bridge is not None and not self._links.has_bridge(self._bridge):
            raise NetworkError(
                f"this host has no bridge {self._bridge}", hint="make it, or change `bridge` in compute.yaml"
            )
        if self._bridge is not None:
            self._memberships.admit(assignment.uuid, self._lan(assignment.uuid, self._bridge))
        for interface in assignment.spec.interfaces:
            self._memberships.join(assignment.uuid, interface, is_new=is_build)
        self._tell(assignment)

    def _remove_files(self, uuid: str) -> None:
        try:
            shutil.rmtree(self.files(uuid).directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"the files of {uuid} cannot be removed: {error.strerror}") from error


def _told(files: Files) -> Guest | None:
    """Return what the metadata service tells of an instance, if that can be read."""
    try:
        return decode(files.metadata.read_bytes(), Guest, files.metadata.name)
    except (OSError, Unreadable):
        return None


def _sweep(files: Files) -> None:
    """Remove what a killed run left half made; only the instance's own lane calls this."""
    if files.directory.is_dir():
        disks.sweep(files.directory)
        configdrive.partial_of(files.config_drive).unlink(missing_ok=True)
        if not files.disk.exists():
            files.metadata.unlink(missing_ok=True)
            files.metadata.with_suffix(".new").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty, which is the rule
            files.directory.rmdir()
