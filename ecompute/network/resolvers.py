"""Which name servers know what is outside of the cloud: those of the configuration, or of this host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""The second has what a resolver on this host hides behind a loopback address: resolvconf(8), systemd-resolved(8)."""


def upstream(configured: Sequence[str], files: Iterable[Path] = FILES) -> tuple[str, ...]:
    """Return the servers' IPv4 addresses: those that were configured, else those of the first file that has any.

    Loopback is not the same place inside of a network's namespace, and no way leads out for IPv6.
    """
    if configured:
        return tuple(configured)
    for file in files:
        try:
            found = parse(file.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if found:
            return found
    return ()


class Resolvers:
    """The same, over time: a file that says nothing for a moment, while it is written, changes nothing.

    Any thread may call it.
    """

    def __init__(self, configured: Sequence[str], files: Iterable[Path] = FILES) -> None:
        self._configured = tuple(configured)
        self._files = tuple(files)
        self._last: tuple[str, ...] = ()

    def upstream(self) -> tuple[str, ...]:
        """Return what is found now, or was found last."""
        found = upstream(self._configured, self._files)
        if found:
            self._last = found
        return self._last


def parse(text: str) -> tuple[str, ...]:
    """Return the servers of a resolv.conf(5) that can be asked from elsewhere. Pure."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = IPv4Address(words[1])
        except AddressValueError:
            continue
        if not address.is_loopback and not address.is_unspecified and str(address) not in found:
            found.append(str(address))
    return tuple(found)
