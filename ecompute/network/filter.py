"""The filter, in the kernel: all of it is there, or what is not is put back.

`guard` says what the rules are. Each network of a host has its part of them; parts come and go one by
one, each in one transaction. What is found of networks that this process has not been asked for yet
(it was started anew) stays as it is.

Any thread may call this; tables that are not ours are not read and not touched.
"""

from __future__ import annotations

import threading
from enum import StrEnum
from functools import lru_cache
from typing import Protocol

from ecompute.network import guard
from ecompute.network.nft import Ledger
from ecompute.network.tables import Key, Objects, Tables, objects
from ecompute.network.terms import Part


class FilterState(StrEnum):
    ABSENT = "absent"
    WHOLE = "whole"
    ALTERED = "altered"


class Filter(Protocol):
    def state(self, part: Part | None = None) -> FilterState:
        """Return how the rules for all networks are, and with them those of ``part``."""

    def put(self, part: Part) -> None:
        """Put the rules of a network in place, and whatever else of ours is not as it should be, at once.

        Raises:
            NetworkError: nft is missing or refused them.
        """

    def repair(self) -> bool:
        """Put back what is not there of all that was put; return whether anything was not.

        Raises:
            NetworkError: nft is missing or refused it.
        """

    def drop(self, vni: int) -> None:
        """Take the rules of a network away, and with the last one everything; nothing may be there."""

    def taps(self, vni: int) -> frozenset[str]:
        """Return the taps of a network that have rules."""

    def present(self) -> frozenset[int]:
        """Return the VNIs of the networks that have rules."""


class NftFilter:
    """The rules of the network namespace of the thread that calls: always the same one.

    Args:
        ledger: of that namespace, where others of this process have tables in it, too.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._lock = threading.RLock()
        self._tables = Tables(guard.TABLES, ledger)
        self._parts: dict[int, Part] = {}
        """As they were put last."""
        self._seen: Objects | None = None
        self._owned: dict[int | None, Objects] = {}
        """What was seen, by whose it is."""
        self._whole: dict[int, Part] = {}
        """The parts of which it is known that all is there."""

    def state(self, part: Part | None = None) -> FilterState:
        with self._lock:
            self._look()
            if not self._seen:
                return FilterState.ABSENT
            is_whole = self._owned.get(None) == _base(guard.virtual(self._seen))
            if is_whole and part is not None and self._whole.get(part.vni) != part:
                is_whole = self._owned.get(part.vni, {}) == self._objects(part)
                if is_whole:
                    self._whole[part.vni] = part
            return FilterState.WHOLE if is_whole else FilterState.ALTERED

    def put(self, part: Part) -> None:
        with self._lock:
            self._look()
            self._parts[part.vni] = part
            self._become(self._found_parts() | {vni: self._objects(known) for vni, known in self._parts.items()})

    def repair(self) -> bool:
        with self._lock:
            self._look()
            if not self._parts or all(self.state(part) is FilterState.WHOLE for part in self._parts.values()):
                return False
            self.put(next(iter(self._parts.values())))
            return True

    def drop(self, vni: int) -> None:
        with self._lock:
            self._look()
            self._parts.pop(vni, None)
            parts = {other: found for other, found in self._found_parts().items() if other != vni}
            if parts:
                self._become(parts)
            elif self._seen:
                self._tables.remove()

    def taps(self, vni: int) -> frozenset[str]:
        with self._lock:
            self._look()
            return guard.taps_in(self._owned.get(vni, ()))

    def present(self) -> frozenset[int]:
        with self._lock:
            self._look()
            return frozenset(vni for vni in self._owned if vni is not None)

    def _look(self) -> None:
        found = self._tables.found()
        if found is not self._seen:
            self._seen, self._owned, self._whole = found, {}, {}
            for key, content in found.items():
                self._owned.setdefault(guard.owner(key, content), {})[key] = content

    def _become(self, parts: dict[int, Objects]) -> None:
        wanted: Objects = {}
        for part in parts.values():
            wanted |= part
        self._tables.become(_base(guard.virtual(wanted)) | wanted)

    def _found_parts(self) -> dict[int, Objects]:
        return {vni: found for vni, found in self._owned.items() if vni is not None}

    def _objects(self, part: Part) -> Objects:
        """Return all that is to be there of a network: its rules, and what is found of the taps that are kept."""
        found = self._owned.get(part.vni, {})
        chains = {guard.chain_of(part.vni, tap) for tap in part.kept}
        kept = {key: text for key, text in found.items() if key.name in chains or _of_tap(key) in part.kept}
        return kept | _of_network(part)


def _of_tap(key: Key) -> str | None:
    """Return the tap to which an element belongs."""
    return key.element.strip('"') if key.name == guard.TAPS else None


@lru_cache(maxsize=1024)
def _of_network(part: Part) -> Objects:
    return objects(guard.of_network(part))


@lru_cache(maxsize=64)
def _base(vnis: frozenset[int]) -> Objects:
    return objects(guard.base(vnis))
