"""The words in which a host thinks of one instance: what it finds, remembers and does.

Shared by the plan, the reports and the memory. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ecompute.cluster.documents import Document, Power


class Step(StrEnum):
    """One idempotent step. What each report says is in `ecompute.instances.report`."""

    REPORT_CREATING = "report-creating"
    REMEMBER_BUILDING = "remember-building"
    FETCH_IMAGE = "fetch-image"
    OVERLAY = "overlay"
    CONFIG_DRIVE = "config-drive"
    JOIN_NETWORK = "join-network"
    DEFINE = "define"
    REMEMBER_STARTING = "remember-starting"
    START = "start"
    REMEMBER_RUNNING = "remember-running"
    """Also the power as found and the boot id of now."""
    REPORT_CREATED = "report-created"
    REPORT = "report"
    """The state is as it was; power, addresses, generation or error are not."""
    REPORT_DELETING = "report-deleting"
    REMEMBER_REMOVING = "remember-removing"
    REMEMBER_UNDOING = "remember-undoing"
    """Also the reason: it is to be reported by whoever ends the undoing."""
    TELL = "tell"
    """What it is wanted to be, by the metadata service."""
    ATTACH = "attach"
    """The interfaces that its domain lacks, now and for its next start."""
    DETACH = "detach"
    """The interfaces of ours that it is not to have; its guest has to let go."""
    LEAVE_OTHERS = "leave-others"
    """The networks that it has no interface on any more."""
    STOP = "stop"
    UNDEFINE = "undefine"
    LEAVE_NETWORK = "leave-network"
    REMOVE_CONFIG_DRIVE = "remove-config-drive"
    REMOVE_DISK = "remove-disk"
    REMEMBER_REMOVED = "remember-removed"
    REPORT_DELETED = "report-deleted"
    REPORT_FAILED = "report-failed"
    """Error, and nothing of it is left here: its claim may be released."""
    REPORT_LOST = "report-lost"
    """Error, and its claim stays: what is missing may come back."""
    REPORT_UNASSIGNED = "report-unassigned"
    FORGET = "forget"
    """The record is dropped."""
    CLEAR_REPORT = "clear-report"
    """The report is deleted: nobody asks, and nothing is here."""

    @property
    def is_report(self) -> bool:
        """Whether it writes the report; what it says is in `ecompute.instances.report`."""
        return self.value.startswith("report")

    @property
    def changes_host(self) -> bool:
        """Whether it changes anything beside the report and the record: not to be done while on hold."""
        return not self.is_report and not self.is_memory and self not in (Step.FORGET, Step.CLEAR_REPORT)

    @property
    def is_memory(self) -> bool:
        """Whether it writes the record."""
        return self.value.startswith("remember")


class Phase(StrEnum):
    """How far this host has ever come with an instance; only ever forward."""

    BUILDING = "building"
    STARTING = "starting"
    RUNNING = "running"
    UNDOING = "undoing"
    """It was never started, its first start failed, and what was made for it is being taken away."""
    REMOVING = "removing"
    REMOVED = "removed"


@dataclass(frozen=True)
class Found:
    """What of one instance is on this host, as libvirt, the disk and the kernel say, now."""

    domain: Power | None = None
    """None: there is no domain."""
    has_disk: bool = False
    """Complete: a disk is made under another name and renamed."""
    has_config_drive: bool = False
    has_network: bool = False
    """Its taps are there and joined to their bridges."""
    is_to_attach: bool = False
    """Its domain lacks an interface that is wanted."""
    is_to_detach: bool = False
    """Its domain has an interface of ours that is not wanted."""
    is_to_leave: bool = False
    """It is on a network that none of the wanted interfaces is on."""
    is_to_tell: bool = False
    """What the metadata service tells its guest is not what it is wanted to be."""
    is_mac_taken: bool = False
    """One to detach has the MAC of one to attach, and goes first."""

    @property
    def is_nothing(self) -> bool:
        return self == Found()

    @property
    def has_interfaces(self) -> bool:
        """Whether its domain has the interfaces that are wanted, and no others of ours."""
        return not self.is_to_attach and not self.is_to_detach

    @property
    def has_guest(self) -> bool:
        """Whether there is anything that cannot be made again."""
        return self.domain is not None or self.has_disk


class Record(Document, frozen=True, kw_only=True):
    """The host's own durable memory of one instance; never in etcd, never set back with it."""

    uuid: str
    epoch: int
    phase: Phase
    boot_id: str = ""
    """The boot of the host in which ``power`` was seen."""
    power: Power = Power.UNKNOWN
    error: str | None = None
    """Why its build is, or was, undone."""


@dataclass(frozen=True)
class Plan:
    steps: tuple[Step, ...]
    reason: str
    """One line for the log and for `doctor`: why just these steps."""
    error: str | None = None
    """What the report says is wrong with the instance."""
