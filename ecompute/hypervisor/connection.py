"""The hypervisor behind libvirt (``libvirt-python``; its other users are `sessions`, `watch` and `plug`).

What concerns all domains goes over one shared connection, what concerns one domain over the calling
thread's own (see `sessions`); what changes by itself comes over a third (see `watch`). A call that meets
a broken connection is made once more on a new one: all of them may be repeated.

Nothing here asks a guest's monitor in order to tell its state. But while libvirt kills a guest that hangs
(ten seconds between SIGTERM and SIGKILL), it holds that domain: asking for its state, and so listing all,
waits for the end of it. Asking for one other domain does not.

Threads: any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

import libvirt

from ecompute.cluster.documents import Power
from ecompute.cluster.errors import HypervisorError, HypervisorUnavailable
from ecompute.hypervisor import domain, plug
from ecompute.hypervisor.api import FoundDomain, HostCapabilities, foreign
from ecompute.hypervisor.domain import DomainPlan, TapPlan
from ecompute.hypervisor.sessions import Opener, Sessions, close, is_broken
from ecompute.hypervisor.watch import Watch

T = TypeVar("T")

_POWER = {
    libvirt.VIR_DOMAIN_RUNNING: Power.ON,
    libvirt.VIR_DOMAIN_BLOCKED: Power.ON,
    libvirt.VIR_DOMAIN_SHUTDOWN: Power.ON,  # on its way, and its process is there
    libvirt.VIR_DOMAIN_PAUSED: Power.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: Power.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: Power.OFF,
    libvirt.VIR_DOMAIN_CRASHED: Power.CRASHED,
}

_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


def power(state: int, reason: int) -> Power:
    """Return what libvirt's state and reason mean to us."""
    if state == libvirt.VIR_DOMAIN_SHUTOFF and reason == libvirt.VIR_DOMAIN_SHUTOFF_CRASHED:
        return Power.CRASHED
    return _POWER.get(state, Power.UNKNOWN)


def answers(uri: str, *, timeout_s: float = 5.0) -> bool:
    """Whether a libvirtd greets at ``uri`` within the time."""
    try:
        close(Opener(uri, timeout_s=timeout_s).connect())
    except HypervisorUnavailable:
        return False
    return True


class LibvirtHypervisor:
    """`ecompute.hypervisor.api.Hypervisor` on libvirt's QEMU driver.

    Args:
        uri: ``qemu:///system``, or the like.
        provider_uuid: whose domains are ours.
        is_stopping: while true, a lost connection for events is not opened again.

    Raises:
        HypervisorUnavailable: libvirtd does not answer now.
    """

    def __init__(self, uri: str, provider_uuid: str, *, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self._provider = provider_uuid
        opener = Opener(uri)
        self._opener = opener
        self._sessions = Sessions(opener)
        self._sessions.shared()
        self._watch = Watch(opener, is_stopping=is_stopping)

    def list(self) -> dict[str, FoundDomain]:
        return self._call("list domains", self._list, self._sessions.shared)

    def get(self, uuid: str) -> FoundDomain | None:
        def read(connection: Any) -> FoundDomain | None:
            found = _look_up(connection, uuid)
            if found is None:
                return None
            try:
                return replace(self._found(found, *found.state()), interfaces=plug.found_on(found))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None  # it went between the two calls
                raise

        return self._call(f"look up domain {uuid}", read, self._sessions.mine)

    def define(self, plan: DomainPlan) -> None:
        xml = domain.render(plan)
        if plan.provider != self._provider:
            raise HypervisorError(f"domain {plan.uuid} is planned for provider {plan.provider}, not for this host")

        def write(connection: Any) -> None:
            self._ours(connection, plan.uuid)
            connection.defineXML(xml)

        self._call(f"define domain {plan.uuid}", write, self._sessions.mine)

    def start(self, uuid: str) -> None:
        def write(connection: Any) -> None:
            found = self._ours(connection, uuid)
            if found is None:
                raise HypervisorError(f"cannot start domain {uuid}: it is not defined")
            try:
                found.create()
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or not found.isActive():
                    raise

        self._call(f"start domain {uuid}", write, self._sessions.mine)

    def stop(self, uuid: str) -> None:
        def write(connection: Any) -> None:
            found = self._ours(connection, uuid)
            if found is None or not found.isActive():
                return
            try:
                found.destroy()
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return
                if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or found.isActive():
                    raise

        self._call(f"stop domain {uuid}", write, self._sessions.mine)

    def undefine(self, uuid: str) -> None:
        def write(connection: Any) -> None:
            found = self._ours(connection, uuid)
            if found is None:
                return
            if found.isActive():
                raise HypervisorError(f"cannot undefine domain {uuid}: it is running", hint="stop it first")
            try:
                found.undefineFlags(_UNDEFINE)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise

        self._call(f"undefine domain {uuid}", write, self._sessions.mine)

    def attach(self, uuid: str, interface: TapPlan) -> None:
        def write(connection: Any) -> None:
            found = self._ours(connection, uuid)
            if found is None:
                raise HypervisorError(f"cannot give domain {uuid} an interface: it is not defined")
            plug.attach(found, interface)

        self._call(f"give domain {uuid} an interface", write, self._sessions.mine)

    def detach(self, uuid: str, tap: str) -> None:
        def write(connection: Any) -> None:
            found = self._ours(connection, uuid)
            if found is None:
                return
            try:
                plug.detach(connection, found, tap)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise

        self._call(f"take the interface behind {tap} from domain {uuid}", write, self._sessions.mine)

    def on_change(self, listener: Callable[[str], None]) -> None:
        self._watch.add(listener)

    def capabilities(self) -> HostCapabilities:
        return self._call("read the host's capabilities", _capabilities, self._sessions.shared)

    def release_thread(self) -> None:
        self._sessions.release_thread()

    def close(self) -> None:
        self._watch.close()
        self._sessions.close()

    def _call(self, what: str, action: Callable[[Any], T], session: Callable[[], Any]) -> T:
        for is_last in (False, True):
            connection = session()
            try:
                return action(connection)
            except libvirt.libvirtError as error:
                if not is_broken(connection, error):
                    if (explained := plug.explained(error)) is not None:
                        raise explained from error
                    raise HypervisorError(f"cannot {what}: {error.get_error_message()}") from error
                self._sessions.discard(connection)
                if is_last:
                    raise self._opener.lost(error) from error
        raise AssertionError("the last turn returns or raises")

    def _list(self, connection: Any) -> dict[str, FoundDomain]:
        # One call for the state of all; it needs no guest's monitor.
        records = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0)
        found = (self._found(record, stats["state.state"], stats["state.reason"]) for record, stats in records)
        return {item.uuid: item for item in found}

    def _found(self, found: Any, state: int, reason: int) -> FoundDomain:
        uuid, name = str(found.UUIDString()), str(found.name())
        owner = _owner(found) if name == domain.domain_name(uuid) else None
        return FoundDomain(
            uuid=uuid,
            power=power(state, reason),
            is_ours=owner is not None and owner.provider == self._provider,
            provider=None if owner is None else owner.provider,
            name=name,
        )

    def _ours(self, connection: Any, uuid: str) -> Any:
        """Return the domain, or ``None``; refuse one that is not ours."""
        found = _look_up(connection, uuid)
        if found is not None and not self._found(found, libvirt.VIR_DOMAIN_NOSTATE, 0).is_ours:
            raise foreign(uuid)
        return found


def _look_up(connection: Any, uuid: str) -> Any:
    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _owner(found: Any) -> domain.Owner | None:
    try:
        text = found.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, domain.METADATA_NAMESPACE, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise
    return domain.owner(text)


def _capabilities(connection: Any) -> HostCapabilities:
    host = ET.fromstring(connection.getCapabilities()).find("host/cpu")  # noqa: S314 - libvirtd's own
    guest = ET.fromstring(connection.getDomainCapabilities(None, None, None, "qemu", 0))  # noqa: S314 - the same
    emulated = guest.find("cpu/mode[@name='host-model'][@supported='yes']")
    return HostCapabilities(
        cpu_model="unknown" if host is None else host.findtext("model", "unknown"),
        cpu_features=frozenset() if host is None else _features(connection, host),
        libvirt_version=_version(connection.getLibVersion()),
        qemu_version=_version(connection.getVersion()),
        emulated_features=frozenset() if emulated is None else _features(connection, emulated),
    )


def _features(connection: Any, described: ET.Element) -> frozenset[str]:
    """Return all features of a CPU that libvirt describes as a model and what it has beyond it, or lacks."""
    model = described.find("model")
    if model is None or not model.text:
        return frozenset()
    cpu = ET.Element("cpu")
    ET.SubElement(cpu, "arch").text = described.findtext("arch", "x86_64")
    ET.SubElement(cpu, "model").text = model.text
    expanded = connection.baselineCPU(
        [ET.tostring(cpu, encoding="unicode")], libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
    )
    names = {str(feature.get("name")) for feature in ET.fromstring(expanded).iter("feature")}  # noqa: S314
    for feature in described.iter("feature"):
        if feature.get("policy", "require") in ("require", "force"):
            names.add(str(feature.get("name")))
        else:
            names.discard(str(feature.get("name")))
    return frozenset(names)


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
