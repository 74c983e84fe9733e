"""An interface as it is asked for: what people write of it, read and checked. Pure.

::

    NET                 on that network, by its name or uuid, with any free address
    NET@ADDRESS         with that one
    network_uuid=NET,address=ADDRESS,macaddress=MAC,model=MODEL
                        what is left out is chosen; ``address`` once for IPv4 and once for IPv6, or ``none``

Whether the network has such an address, and whether it is free, is for `eschedule.cloud.ports` to find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from ecompute.cluster.addressing import check_mac
from ecompute.cluster.documents import INTERFACE_MODELS
from ecompute.cluster.errors import InvalidInput, one_line

NONE = "none"
"""No interface at all, where a network is named; no address, where an address is."""
LIMIT = 8
"""Interfaces of one instance."""
MODEL = "virtio"

_KEYS = {
    "network_uuid": "network",
    "network": "network",
    "address": "address",
    "macaddress": "mac",
    "mac": "mac",
    "model": "model",
}
_EXAMPLE = "write it like network_uuid=web,address=10.0.0.5,model=e1000"


@dataclass(frozen=True)
class InterfaceRequest:
    """One interface, as asked for."""

    network: str | None = None
    """A name or a uuid; None: the namespace's default network."""
    address: str | None = None
    """IPv4; None: any free one."""
    address6: str | None = None
    mac: str | None = None
    """None: made from the interface's uuid."""
    model: str = MODEL
    has_address: bool = True
    """False: it is given none, although the network has a range."""


DEFAULT = (InterfaceRequest(),)
"""What an instance has that asks for nothing else."""


def read_interfaces(texts: Sequence[str]) -> tuple[InterfaceRequest, ...]:
    """Return what the texts of a command line ask for, in their order; none at all: the default network.

    Raises:
        InvalidInput: one of them cannot be meant, or they cannot be together.
    """
    if not texts:
        return DEFAULT
    if NONE in texts:
        if len(texts) > 1:
            raise InvalidInput(
                "no interface and an interface were asked for", hint=f"give {NONE} alone, or leave it out"
            )
        return ()
    return check_all([read_interface(text) for text in texts])


def read_interface(text: str) -> InterfaceRequest:
    """Return what ``NET``, ``NET@ADDRESS`` or ``KEY=VALUE,…`` asks for.

    Raises:
        InvalidInput: it cannot be meant.
    """
    if "=" in text:
        return from_parts([(key.strip(), value.strip()) for key, value in map(_part, text.split(","))])
    network, at, address = text.partition("@")
    if not network or (at and not address):
        raise InvalidInput(f"{one_line(text, 80)!r} names no network", hint="write NET or NET@ADDRESS")
    return from_parts([("network", network), *([("address", address)] if at else [])])


def _part(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"{one_line(text, 80)!r} is not KEY=VALUE", hint=_EXAMPLE)
    return key, value


def from_parts(parts: Sequence[tuple[str, str]]) -> InterfaceRequest:
    """Return what keys and values ask for; only ``address`` may be there twice.

    Raises:
        InvalidInput: it cannot be meant.
    """
    request = InterfaceRequest()
    given: dict[str, str] = {}
    for key, value in parts:
        field = _KEYS.get(key)
        if field is None:
            raise InvalidInput(f"{one_line(key, 80)!r} says nothing of an interface", hint=_EXAMPLE)
        if field != "address" and field in given:
            raise InvalidInput(f"{key} is given twice", hint="give it once")
        if not value:
            raise InvalidInput(f"{key} has no value", hint=_EXAMPLE)
        if field == "address":
            request = _with_address(request, value)
        given[field] = value
    if given.get("network") == NONE:
        raise InvalidInput("the network none stands for no interface", hint="say it alone, or leave it out")
    return check(replace(request, network=given.get("network"), mac=given.get("mac"), model=given.get("model", MODEL)))


def check(request: InterfaceRequest) -> InterfaceRequest:
    """Return ``request`` with its MAC as we write it.

    Raises:
        InvalidInput: no guest can have such an interface.
    """
    if request.model not in INTERFACE_MODELS:
        raise InvalidInput(
            f"{one_line(request.model, 40)!r} is no model of an interface",
            hint=f"use one of {', '.join(sorted(INTERFACE_MODELS))}",
        )
    return request if request.mac is None else replace(request, mac=check_mac(request.mac))


def check_all(requests: Sequence[InterfaceRequest]) -> tuple[InterfaceRequest, ...]:
    """Return all interfaces of one instance, checked.

    Raises:
        InvalidInput: one of them cannot be, or they cannot be together.
    """
    if len(requests) > LIMIT:
        raise InvalidInput(f"{len(requests)} interfaces are too many", hint=f"at most {LIMIT}")
    checked = tuple(check(request) for request in requests)
    no_two_alike(checked)
    # A guest tells its interfaces apart by their MACs, whatever they are on.
    no_two_alike([InterfaceRequest(mac=request.mac) for request in checked])
    return checked


def no_two_alike(requests: Iterable[InterfaceRequest]) -> None:
    """See that no address and no MAC is asked for twice on one network, by those that are launched together.

    Raises:
        InvalidInput: one is.
    """
    wanted = Counter(
        (request.network, value)
        for request in requests
        for value in (request.address, request.address6, request.mac)
        if value is not None
    )
    for (_, value), count in wanted.items():
        if count > 1:
            raise InvalidInput(f"{value} is asked for {count} times", hint="only one interface can have it")


def _with_address(request: InterfaceRequest, text: str) -> InterfaceRequest:
    if text == NONE:
        if request.address or request.address6:
            raise InvalidInput("no address and an address were asked for", hint="say one of the two")
        return replace(request, has_address=False)
    if not request.has_address:
        raise InvalidInput("no address and an address were asked for", hint="say one of the two")
    try:
        parsed = ip_address(text)
    except ValueError:
        parsed = None
    if parsed is None or "%" in text:
        shown = repr(one_line(text, 80))
        raise InvalidInput(f"{shown} is no address", hint="write it like 10.0.0.5, without a prefix length")
    if (request.address if parsed.version == 4 else request.address6) is not None:
        raise InvalidInput(f"two addresses were asked for, {parsed} for one", hint="one of IPv4, one of IPv6")
    return replace(request, address=str(parsed)) if parsed.version == 4 else replace(request, address6=str(parsed))
