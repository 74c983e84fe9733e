"""Pools of floating addresses: ranges of the operators' egress network, made and removed by them.

No address is in two pools: who makes one compares that no other was made since those were read. A pool
goes only while none of its addresses is in use: who gives one out compares the pool, and who removes the
pool that no floating address was written since they were read. That a pool holds no underlay address is
looked at when it is made; a host that comes later is its operator's matter.

Safe from several threads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from ecompute.cluster import keys
from ecompute.cluster.claims import incarnation_of
from ecompute.cluster.documents import Node, Pool, timestamp
from ecompute.cluster.errors import CompareFailed, Conflict, InvalidInput, NotFound, Refused, one_line
from ecompute.cluster.floating import beginning, overlapping, parse_range, pool_of, size
from ecompute.cluster.store import Delete, Put, Store, Versioned, absent, unchanged, unwritten_under

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud

TRIES = 8

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_name(name: str) -> str:
    """Return ``name``.

    Raises:
        InvalidInput: it cannot be a pool's.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{one_line(name, 80)!r} cannot be a pool's name", hint="use small letters, digits and hyphens, at most 63"
        )
    return name


@dataclass(frozen=True)
class PoolView:
    """A pool, and how many of its addresses are in use."""

    pool: Pool
    used: int

    @property
    def size(self) -> int:
        return size(self.pool)


class Pools:
    """All pools of the cloud."""

    def __init__(self, cloud: Cloud, *, now: Callable[[], float] = time.time) -> None:
        self._store: Store = cloud.store
        self._now = now

    def create(self, name: str, cidr: str) -> Pool:
        """Make a pool.

        Args:
            cidr: all of it is given out: /16 to /32, IPv4.

        Raises:
            InvalidInput: the name or the range cannot be one.
            Conflict: there is a pool of that name, or one that has some of these addresses, or a host has.
        """
        check_name(name)
        wanted = parse_range(cidr)
        for _ in range(TRIES):
            incarnation = incarnation_of(self._store)
            known = self._store.list(keys.POOLS, Pool)
            self._check(name, wanted, [item.value for item in known.items])
            pool = Pool(name=name, cidr=str(wanted), created_at=timestamp(self._now()))
            try:
                self._store.commit(
                    [absent(keys.pool(name)), unwritten_under(keys.POOLS, known.revision), unchanged(incarnation)],
                    [Put(keys.pool(name), pool)],
                )
            except CompareFailed:
                continue
            return pool
        raise Conflict("pools keep changing", hint="try again")

    def all(self) -> list[PoolView]:
        """Return the pools by name."""
        return [PoolView(pool, len(self.in_use(pool)[0])) for pool in self._all()]

    def names(self, beginning: str = "", *, limit: int = 100) -> list[str]:
        """Return the names of pools that begin so."""
        if beginning and not _NAME.fullmatch(beginning.rstrip("-")):
            return []
        return [keys.last(key) for key in self._store.keys(keys.POOLS + beginning, limit=limit)[0]]

    def find(self, name: str) -> Versioned[Pool]:
        """Return the pool of that name.

        Raises:
            NotFound: there is none.
        """
        found = self._store.get(keys.pool(name), Pool) if _NAME.fullmatch(name) else None
        if found is None:
            raise NotFound(f"there is no pool {one_line(name, 80)!r}", hint="see `eschedule floating pool list`")
        return found

    def view(self, name: str) -> PoolView:
        """Return the pool of that name, and how much of it is in use.

        Raises:
            NotFound: there is none.
        """
        pool = self.find(name).value
        return PoolView(pool, len(self.in_use(pool)[0]))

    def in_use(self, pool: Pool) -> tuple[set[str], int]:
        """Return its addresses that somebody has, and the revision they were read at."""
        found, revision = self._store.keys(keys.FLOATING + beginning(pool))
        return {ip for ip in map(keys.last, found) if _is_ip(ip) and pool_of(ip, [pool]) is not None}, revision

    def candidates(self, name: str | None, ip: str | None) -> list[Versioned[Pool]]:
        """Return the pools from which an address may be taken, in the order in which they are tried.

        Args:
            name: only this one; None: any.
            ip: only the one that has it.

        Raises:
            NotFound: there is no pool, or none of that name.
            InvalidInput: no such pool has that address.
        """
        pools = list(self._store.list(keys.POOLS, Pool).items) if name is None else [self.find(name)]
        if not pools:
            raise NotFound(
                "there is no pool of floating addresses",
                hint="an operator makes one: eschedule floating pool create NAME --cidr …",
            )
        if ip is None:
            return pools
        having = [item for item in pools if pool_of(ip, [item.value]) is not None]
        if not having:
            where = "any pool" if name is None else f"pool {name} ({pools[0].value.cidr})"
            raise InvalidInput(f"{ip} is not in {where}", hint="see `eschedule floating pool list`")
        return having

    def delete(self, name: str) -> None:
        """Remove a pool of which no address is in use.

        Raises:
            NotFound: there is no such pool.
            Refused: some of its addresses are in use.
        """
        for _ in range(TRIES):
            pool = self.find(name)
            used, revision = self.in_use(pool.value)
            if used:
                raise Refused(
                    f"of pool {name} {len(used)} address{'es are' if len(used) > 1 else ' is'} in use, "
                    f"{min(used)} for one",
                    hint="delete the floating addresses first: eschedule floating list --pool " + name,
                )
            try:
                still = unwritten_under(keys.FLOATING + beginning(pool.value), revision)
                self._store.commit([unchanged(pool), still], [Delete(pool.key)])
            except CompareFailed:
                continue
            return
        raise Conflict(f"the floating addresses of pool {name} keep changing", hint="try again")

    def _check(self, name: str, wanted: IPv4Network, pools: list[Pool]) -> None:
        if any(pool.name == name for pool in pools):
            raise Conflict(
                f"there is a pool {name} already",
                hint=f"see `eschedule floating pool show {name}`, or choose another name",
            )
        other = overlapping(wanted, pools)
        if other is not None:
            raise Conflict(
                f"{wanted} has addresses of pool {other.name} ({other.cidr})", hint="an address is in one pool only"
            )
        for item in self._store.list(keys.NODES, Node).items:
            if _is_in(item.value.underlay, wanted):
                raise Conflict(
                    f"{wanted} has the underlay address of host {item.value.name} ({item.value.underlay})",
                    hint="a pool has addresses of the egress network that no machine has",
                )

    def _all(self) -> list[Pool]:
        return [item.value for item in self._store.list(keys.POOLS, Pool).items]


def _is_ip(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_in(address: str, cidr: IPv4Network) -> bool:
    return _is_ip(address) and IPv4Address(address) in cidr
