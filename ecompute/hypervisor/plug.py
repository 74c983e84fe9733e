"""Interfaces of a domain, plugged in and pulled out through libvirt.

A domain that is on has two descriptions: what it has now and what it is started with the next time. Each
is looked at and changed by itself, so that a call that died in the middle is finished by the next one.

A guest has to let go of what is pulled out. libvirt asks it and waits some seconds; then we wait for the
event, and believe what the description says.

Threads: any; the connection is the calling thread's own. What libvirt's loop calls only sets an event.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libvirt

from ecompute.cluster.errors import HypervisorError
from ecompute.hypervisor import domain
from ecompute.hypervisor.api import clings
from ecompute.hypervisor.domain import FoundInterface, TapPlan

DETACH_TIMEOUT_S = 30.0
"""How long a guest may take to let go, with what libvirt itself waits."""
LOOK_PERIOD_S = 5.0
"""How often it is looked all the same: an event may be missed while libvirtd starts anew."""

_NO_MODEL = re.compile(r"'([\w.-]+)' is not a valid device model name")
_ASKED_BEFORE = "already in the process of unplug"


def attach(found: Any, interface: TapPlan) -> None:
    """Give the domain ``found`` an interface, now if it is on and for its next start.

    Raises:
        libvirt.libvirtError: as the calls do.
    """
    xml = domain.render_interface(interface)
    for scope in _scopes(found):
        if not _behind(found, scope, interface.tap):
            found.attachDeviceFlags(xml, scope)


def detach(connection: Any, found: Any, tap: str) -> None:
    """Take what is behind ``tap`` from the domain ``found``, and wait until its guest has let go.

    Raises:
        HypervisorError: the guest does not let go.
        libvirt.libvirtError: as the calls do.
    """
    # From its definition first: then it is gone at the latest with the guest's next start.
    for xml in _behind(found, libvirt.VIR_DOMAIN_AFFECT_CONFIG, tap):
        found.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    deadline = time.monotonic() + DETACH_TIMEOUT_S
    is_asked = False
    with _told(connection, found) as has_gone:
        while behind := _behind(found, libvirt.VIR_DOMAIN_AFFECT_LIVE, tap):
            if not is_asked:
                _ask(found, behind[0])
                is_asked = True
                continue
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise clings(str(found.UUIDString()), tap)
            has_gone.wait(min(left_s, LOOK_PERIOD_S))
            has_gone.clear()


def _ask(found: Any, xml: str) -> None:
    """Have the guest asked to let go; libvirt waits for it for some seconds."""
    try:
        found.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if _ASKED_BEFORE not in error.get_error_message():
            raise


def found_on(found: Any) -> frozenset[FoundInterface]:
    """Return the interfaces that a domain has now; one that is off, those that it will have."""
    return frozenset(domain.interfaces(found.XMLDesc(0)))


def explained(error: libvirt.libvirtError) -> HypervisorError | None:
    """Return what to say where QEMU lacks an interface model, or ``None`` for any other error."""
    model = _NO_MODEL.search(error.get_error_message())
    if model is None:
        return None
    return HypervisorError(f"the QEMU of this host has no interface model {model[1]}", hint="use another, like virtio")


def _scopes(found: Any) -> list[int]:
    now = [libvirt.VIR_DOMAIN_AFFECT_LIVE] if found.isActive() else []
    return [*now, libvirt.VIR_DOMAIN_AFFECT_CONFIG]


def _behind(found: Any, scope: int, tap: str) -> list[str]:
    """Return the XML of the interfaces behind ``tap`` in one of the domain's descriptions: one, or none."""
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if scope == libvirt.VIR_DOMAIN_AFFECT_CONFIG else 0
    return [xml for interface, xml in domain.interfaces(found.XMLDesc(flags)).items() if interface.tap == tap]


@contextmanager
def _told(connection: Any, found: Any) -> Iterator[threading.Event]:
    """Yield what is set whenever a device of the domain has gone, or its guest has refused."""
    told = threading.Event()
    numbers = [
        connection.domainEventRegisterAny(found, event, lambda *_: told.set(), None)
        for event in (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED)
    ]
    try:
        yield told
    finally:
        for number in numbers:
            try:
                connection.domainEventDeregisterAny(number)
            except libvirt.libvirtError:  # it broke, and its events with it
                continue
