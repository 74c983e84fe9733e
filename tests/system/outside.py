"""What lies outside of a cloud: an egress network that all hosts are on, and somebody there who knows nothing of us.

Each host gets a leg ``eth1`` on it, with its default route; pools of floating addresses may be cut from it. On it
stands `Outside`, a namespace that has the route's address and, behind it, an address elsewhere. It has no route to
anything of ours, so that what it answers has been translated.
"""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from ecompute.dev.hosts import Underlay, ip
from ecompute.dev.processes import Child

if TYPE_CHECKING:
    from host import Host

NETWORK = IPv4Network("203.0.113.0/24")
"""For documentation (RFC 5737): no route of any machine leads there, and these are namespaces of ours."""
POOL = "203.0.113.128/28"
GATEWAY = "203.0.113.1"
ELSEWHERE = "198.51.100.7"
"""Of RFC 5737, too: what guests reach through the gateway."""
PORT = 8000
HERE = Path(__file__).parent


class Outside:
    """See this module's head. ``netns`` goes with the underlay's namespaces."""

    def __init__(self, underlay: Underlay, directory: Path) -> None:
        self.netns = f"{underlay.prefix}h98"
        self._under = f"{underlay.prefix}under"
        self._directory = directory
        self._service: Child | None = None
        ip("-n", self._under, "link", "add", "outside", "type", "bridge", "forward_delay", "0")
        ip("-n", self._under, "link", "set", "outside", "up")
        ip("netns", "add", self.netns)
        ip("-n", self.netns, "link", "set", "lo", "up")
        ip("-n", self.netns, "address", "add", f"{ELSEWHERE}/32", "dev", "lo")
        self._leg(self.netns, "eth0", "outer98", GATEWAY)

    def _leg(self, netns: str, device: str, outer: str, address: str) -> None:
        ip("-n", netns, "link", "add", device, "type", "veth", "peer", "name", outer, "netns", self._under)
        ip("-n", self._under, "link", "set", outer, "master", "outside", "up")
        ip("-n", netns, "address", "add", f"{address}/{NETWORK.prefixlen}", "dev", device)
        ip("-n", netns, "link", "set", device, "up")

    def join(self, host: Host, number: int) -> None:
        """Give a host its leg and its default route; before its daemon starts."""
        self._leg(host.netns, "eth1", f"outer{number}", str(NETWORK[10 + number]))
        ip("-n", host.netns, "route", "add", "default", "via", GATEWAY, "dev", "eth1")

    def start(self) -> Outside:
        """Answer to HTTP at `ELSEWHERE`, telling who asks."""
        argv = ["ip", "netns", "exec", self.netns, sys.executable, HERE / "teller.py", str(PORT)]
        self._service = Child("a service outside", argv, self._directory / "outside.log").start()
        self._service.wait_ready(lambda: "listening" in self._log(), timeout_s=30)
        return self

    def _log(self) -> str:
        return (self._directory / "outside.log").read_text() if (self._directory / "outside.log").exists() else ""

    def stop(self) -> None:
        if self._service is not None:
            self._service.kill()

    def run(self, *argv: str, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Run a program there."""
        return subprocess.run(
            ["ip", "netns", "exec", self.netns, *argv], capture_output=True, text=True, timeout=timeout_s, check=False
        )
