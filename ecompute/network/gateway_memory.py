"""What a host remembers of the gateways of its networks, one file a network, named by its VNI.

The address that it chose for the uplink, what it answers for on which device, and what the rules of all networks
together need of each: so that the first network that a new daemon looks at does not take away what the others have.
A file that says nothing, or nothing that can be read, is the mark that the network was brought up here.

Safe from several threads for different networks.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from ecompute.cluster.decoding import from_json
from ecompute.cluster.errors import NetworkError
from ecompute.cluster.failpoint import reach

FAILPOINTS = ("gateway.memory.written",)

log = logging.getLogger(__name__)


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    transit: str | None = None
    """None: it has no uplink."""
    addresses: frozenset[str] = frozenset()
    """Those that lead in from outside."""
    proxied: frozenset[tuple[str, str]] = frozenset()
    """(address, device): for which the host answers, or may still do so."""
    underlays: frozenset[str] = frozenset()
    """The addresses of its member hosts."""


class GatewayMemory:
    """The files in ``directory``; read once, written through."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._known: dict[int, Remembered] = {}
        for path in directory.iterdir():
            if path.name.isdigit():
                self._known[int(path.name)] = _read(path)

    def of(self, vni: int) -> Remembered:
        return self._known.get(vni, Remembered())

    def all(self) -> dict[int, Remembered]:
        return dict(self._known)

    def put(self, vni: int, remembered: Remembered) -> None:
        """Replace what is remembered, if it is something else.

        Raises:
            NetworkError: it cannot be written.
        """
        if self._known.get(vni) == remembered:
            return
        path = self._directory / str(vni)
        new = self._new(vni)
        try:
            new.write_bytes(msgspec.json.encode(remembered))
            reach("gateway.memory.written")
            new.replace(path)
        except OSError as error:
            raise NetworkError(f"{path} cannot be written: {error.strerror}", hint="free space on that disk") from error
        self._known[vni] = remembered

    def forget(self, vni: int) -> None:
        """Keep the mark, and nothing else."""
        if self.of(vni) != Remembered():
            self.put(vni, Remembered())
        self._new(vni).unlink(missing_ok=True)
        self._known.pop(vni, None)

    def _new(self, vni: int) -> Path:
        return self._directory / f"{vni}.new"


def _read(path: Path) -> Remembered:
    try:
        data = path.read_bytes()
        return from_json(data, Remembered) if data else Remembered()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s cannot be read and is made anew: %s", path, error)
        return Remembered()
