"""What a host asks of its hypervisor, whichever it is.

Two classes are held to it by the same tests: `connection.LibvirtHypervisor` and `fake.FakeHypervisor`.
Everything is safe to repeat: a caller that was killed in the middle does it again.

A domain that our metadata does not claim for our provider is foreign: it is listed, and any attempt to
change it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ecompute.cluster.documents import Power
from ecompute.cluster.errors import HypervisorError
from ecompute.hypervisor.domain import DomainPlan, FoundInterface, TapPlan


@dataclass(frozen=True)
class FoundDomain:
    """A domain as the hypervisor has it.

    ``provider`` is the one that its metadata names, or ``None``; ``is_ours`` says that it is this host's.
    ``name`` is the hypervisor's (``ec-<uuid>`` for ours), not the user's. ``interfaces`` are those that
    it has now, or, powered off, will have; ``None`` where that was not looked at: in a list of all domains.
    """

    uuid: str
    power: Power
    is_ours: bool
    provider: str | None
    name: str
    interfaces: frozenset[FoundInterface] | None = None


@dataclass(frozen=True)
class HostCapabilities:
    """What the machine and its programs can do. Feature names are libvirt's (``sse4.2``).

    ``cpu_features`` are the machine's own, which a guest under KVM gets; ``emulated_features`` are what
    QEMU's own CPU has, which a guest under TCG gets instead.
    """

    cpu_model: str
    cpu_features: frozenset[str]
    libvirt_version: str
    qemu_version: str
    emulated_features: frozenset[str] = field(default_factory=frozenset)

    def features_for(self, accelerator: str) -> frozenset[str]:
        """Return the CPU features that a guest under ``accelerator`` gets."""
        return self.cpu_features if accelerator == "kvm" else self.emulated_features


def foreign(uuid: str) -> HypervisorError:
    """Return what to raise when a domain that is not ours was to be changed."""
    return HypervisorError(
        f"a domain with the uuid {uuid} is on this host and is not ours", hint="it is never touched; remove it"
    )


def clings(uuid: str, tap: str) -> HypervisorError:
    """Return what to raise when a guest that is on does not let go of an interface."""
    return HypervisorError(
        f"the guest of domain {uuid} does not let go of the interface behind {tap}",
        hint="it goes when the guest heeds it, or is powered off",
    )


class Hypervisor(Protocol):
    """Any method may be called from any thread. All raise `HypervisorUnavailable` while the hypervisor
    does not answer, and `HypervisorError` when it answers that something went wrong."""

    def list(self) -> dict[str, FoundDomain]:
        """Return all domains by uuid, ours and foreign. Waits while a hung guest is killed: some ten seconds."""
        ...

    def get(self, uuid: str) -> FoundDomain | None:
        """Return one domain, or ``None``. What befalls other domains does not hold it up."""
        ...

    def define(self, plan: DomainPlan) -> None:
        """Make the domain known, powered off. One that is defined already gets the new definition.

        Raises:
            InvalidInput: the plan cannot be rendered.
        """
        ...

    def start(self, uuid: str) -> None:
        """Power the domain on; nothing happens if it is on."""
        ...

    def stop(self, uuid: str) -> None:
        """Power the domain off hard; nothing happens if it is off or not there.

        A guest that does not react is killed; that takes some ten seconds.
        """
        ...

    def undefine(self, uuid: str) -> None:
        """Forget the domain, which must be off; nothing happens if it is not there."""
        ...

    def attach(self, uuid: str, interface: TapPlan) -> None:
        """Give the domain an interface: at once if it is on, and in its definition. Nothing happens if it has it.

        Raises:
            InvalidInput: no guest can have such an interface.
            HypervisorError: also where the domain is not defined, or the machine has no such model.
        """
        ...

    def detach(self, uuid: str, tap: str) -> None:
        """Take an interface from the domain, and from its definition; nothing happens if it has none with that tap.

        A guest that is on has to let go of it, and is waited for.

        Raises:
            HypervisorError: also where the guest does not let go; it may still do so later.
        """
        ...

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with the uuid of each domain that changes, from a thread of its own.

        It is called with ``""`` first, and whenever changes may have been missed since: look at
        everything. It may take its time; changes wait. Its exceptions are logged.
        """
        ...

    def capabilities(self) -> HostCapabilities: ...

    def release_thread(self) -> None:
        """Give back what the calling thread holds: call it where a worker thread ends."""
        ...

    def close(self) -> None:
        """Stop telling of changes and give back what is held. Guests run on."""
        ...
