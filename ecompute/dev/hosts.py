"""Places for several hosts on one machine: a network namespace each, joined by an underlay.

The underlay is a bridge in a namespace of its own, where no firewall of the machine looks at what
passes. The machine has a leg on it, with the first address of the range: there etcd, placement and
image servers listen for the hosts. Each host has a leg that is its ``eth0``, and nothing else.

A host's libvirtd is started in its namespace (see `ecompute.dev.libvirtd`); its guests' taps, bridges and VXLAN
devices are then made there. Its daemon is started with `enter`: ``ip netns exec`` would give it mounts of its own, and
the namespaces of its networks would be lost with it.

Invariants: every namespace and device has the prefix that the caller chose, which nobody else has on
this machine; `remove` takes away all of them, also after a start that failed half-way. Processes in
the namespaces are the caller's to end, before that; what the networks of a host have left, too, with
`remove_networks`.

Threads: one at a time. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Self

from ecompute.cluster.errors import StepFailed, one_line
from ecompute.network.netns import DIRECTORY

PREFIX_LIMIT = 14
"""A device's name has at most 15 characters, and the machine's leg is named by one behind the prefix."""

RANGE = IPv4Network("198.18.0.0/15")
"""Kept for benchmarks of networks (RFC 2544): no route of a usual machine leads there."""

_TIMEOUT_S = 20.0


class Underlay:
    """The network between the hosts.

    Args:
        prefix: what the names of all namespaces and devices begin with.
        network: the range of its addresses, a /24.
    """

    def __init__(self, prefix: str, network: IPv4Network) -> None:
        if not re.fullmatch(rf"[a-z][a-z0-9]{{0,{PREFIX_LIMIT - 1}}}", prefix):
            raise ValueError(f"{prefix!r} cannot be the beginning of devices' names")
        self.prefix = prefix
        self.network = network
        self._count = 0

    @property
    def address(self) -> str:
        """The machine's own."""
        return str(self.network.network_address + 1)

    def start(self) -> Self:
        """Make the bridge and the machine's leg.

        Raises:
            StepFailed: a namespace or device could not be made; nothing is left.
        """
        try:
            ip("netns", "add", self._namespace)
            ip("-n", self._namespace, "link", "add", "under", "type", "bridge", "forward_delay", "0")
            ip("-n", self._namespace, "link", "set", "under", "up")
            ip("link", "add", self.leg, "type", "veth", "peer", "name", "machine", "netns", self._namespace)
            ip("-n", self._namespace, "link", "set", "machine", "master", "under", "up")
            ip("address", "add", f"{self.address}/{self.network.prefixlen}", "dev", self.leg)
            ip("link", "set", self.leg, "up")
        except StepFailed:
            self.remove()
            raise
        return self

    def add(self) -> tuple[str, str]:
        """Make one more host's namespace; return its name and the host's underlay address.

        Raises:
            StepFailed: it could not be made.
        """
        self._count += 1
        netns, leg = f"{self.prefix}h{self._count}", f"h{self._count}"
        address = str(IPv4Address(int(self.network.network_address) + 10 + self._count))
        ip("netns", "add", netns)
        ip("-n", netns, "link", "set", "lo", "up")
        ip("-n", netns, "link", "add", "eth0", "type", "veth", "peer", "name", leg, "netns", self._namespace)
        ip("-n", self._namespace, "link", "set", leg, "master", "under", "up")
        ip("-n", netns, "address", "add", f"{address}/{self.network.prefixlen}", "dev", "eth0")
        ip("-n", netns, "link", "set", "eth0", "up")
        return netns, address

    def cut(self, netns: str) -> None:
        """Take a host off the underlay, as a pulled cable would."""
        ip("-n", netns, "link", "set", "eth0", "down")

    def mend(self, netns: str) -> None:
        ip("-n", netns, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Remove everything. Idempotent.

        Raises:
            StepFailed: a namespace could not be removed.
        """
        if any(link["ifname"] == self.leg for link in json.loads(ip("-j", "link", "show") or "[]")):
            ip("link", "delete", self.leg)  # the kernel takes its time over the devices of a namespace
        for netns in namespaces():
            if re.fullmatch(rf"{self.prefix}(under|h\d+)", netns):
                ip("netns", "delete", netns)

    @property
    def _namespace(self) -> str:
        return f"{self.prefix}under"

    @property
    def leg(self) -> str:
        """The machine's device on it."""
        return f"{self.prefix}u"


def free_network() -> IPv4Network:
    """Return a /24 of `RANGE` to which no route of this machine leads.

    Raises:
        StepFailed: there is none.
    """
    routes = [
        IPv4Network(route["dst"], strict=False)
        for route in json.loads(ip("-4", "-j", "route", "show", "table", "all") or "[]")
        if re.fullmatch(r"[\d.]+(/\d+)?", route.get("dst", ""))
    ]
    candidates = list(RANGE.subnets(new_prefix=24))
    first = os.getpid() % len(candidates)
    for network in candidates[first:] + candidates[:first]:
        if not any(network.overlaps(route) for route in routes if route.prefixlen):
            return network
    raise StepFailed(f"every part of {RANGE} is in use on this machine")


def enter(netns: str) -> list[str]:
    """Return what to put before a command line so that it runs in a network namespace, and in it alone."""
    return ["nsenter", f"--net={DIRECTORY / netns}", "--"]


def remove_networks(netns: str) -> None:
    """Remove the namespaces into which the devices of a host lead, with all processes in them.

    The metadata service, which has sockets in them, runs in the host's own: it ends, too.

    Raises:
        StepFailed: one could not be removed.
    """
    for pid in ip("netns", "pids", netns).split():
        with contextlib.suppress(OSError):
            if b"md_server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(int(pid), signal.SIGKILL)
    for name in networks(netns):
        for pid in ip("netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        ip("netns", "delete", name)


def networks(netns: str) -> list[str]:
    """Return the names of the namespaces of a host's networks."""
    ids = json.loads(ip("-n", netns, "-j", "netns", "list-id") or "[]")
    return sorted(name for entry in ids if (name := entry.get("name", "")).startswith("ec-"))


def namespaces() -> list[str]:
    """Return the names of all network namespaces of this machine."""
    return [entry["name"] for entry in json.loads(ip("-j", "netns", "list") or "[]")]


def ip(*arguments: str) -> str:
    """Run ``ip`` and return what it printed.

    Raises:
        StepFailed: it is missing, or failed; says what it said.
    """
    try:
        done = subprocess.run(
            ["ip", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StepFailed(f"`ip {' '.join(arguments)}`: {error}", hint="install the package iproute2") from error
    if done.returncode != 0:
        raise StepFailed(f"`ip {' '.join(arguments)}`: {one_line(done.stderr)}")
    return done.stdout
