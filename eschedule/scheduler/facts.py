"""What a scheduler knows of etcd: read when first needed, and kept for a few seconds.

Nothing here decides: whatever a request depends on it compares, as it was read, and what has changed
meanwhile is read again (`Facts.forget`). An old fact costs a refused transaction, never a wrong one.
What only ranks (who holds an image, who is on a network, where tagged instances are) may be old.

One question reads at most the hosts of one answer, however many there are.

Threads: everything may be called from any; no lock is held while etcd is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from ecompute.cluster import keys
from ecompute.cluster.claims import incarnation_of
from ecompute.cluster.closing import Bar, bar_of
from ecompute.cluster.documents import Admin, Alive, Copy, Incarnation, Member, NetworkHost, Node, Tagged
from ecompute.cluster.store import Store, Versioned
from eschedule.cloud.groups import members

T = TypeVar("T")

TTL_S = 5.0
COUNT_TTL_S = 60.0
"""How many hosts there are settles the size of a shard, and changes slowly."""
MEMBERS = 1000
"""Of a group at most so many members are looked at: of more, they say enough of where the others are."""
KEPT = 20_000
"""Facts kept at most; with more, those that are too old are thrown away."""


@dataclass(frozen=True)
class Target:
    """A host that takes instances, as it was read."""

    node: Versioned[Node]
    admin: Versioned[Admin] | None
    is_alive: bool

    @property
    def provider(self) -> str:
        return self.node.value.provider

    @property
    def name(self) -> str:
        return self.node.value.name

    @property
    def zone(self) -> str | None:
        return None if self.admin is None else self.admin.value.zone


@dataclass(frozen=True)
class _Host:
    node: Versioned[Node] | None
    admin: Versioned[Admin] | None
    is_alive: bool

    @property
    def bar(self) -> Bar | None:
        return bar_of(None if self.node is None else self.node.value, None if self.admin is None else self.admin.value)


class Facts:
    """Args:
    clock: monotonic seconds.
    """

    def __init__(self, store: Store, *, ttl_s: float = TTL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[Hashable, tuple[float, Any]] = {}

    # --- the cluster ---------------------------------------------------------------------------

    def incarnation(self) -> Versioned[Incarnation]:
        """Return which life of its data this etcd has.

        Raises:
            OnHold: it holds no cloud: no host has registered, or its data was lost.
        """
        return self._one("incarnation", lambda: incarnation_of(self._store))

    def host_count(self) -> int:
        """Return how many hosts have ever registered, about."""
        return self._one("count", lambda: self._store.count(keys.NODES), ttl_s=COUNT_TTL_S)

    # --- hosts ---------------------------------------------------------------------------------

    def targets(self, providers: Iterable[str]) -> dict[str, Target]:
        """Return those of ``providers`` that are hosts of this cloud and take new instances."""
        return {
            provider: Target(host.node, host.admin, host.is_alive)
            for provider, host in self._hosts(providers).items()
            if host.node is not None and host.bar is None
        }

    def refusals(self, providers: Iterable[str]) -> dict[str, str]:
        """Return {provider: why it takes nothing new, with its name} of those of ``providers`` that do not."""
        return {
            provider: f"{provider if host.node is None else host.node.value.name} {bar.says}"
            for provider, host in self._hosts(providers).items()
            if (bar := host.bar) is not None
        }

    def forget(self, *names: Hashable) -> None:
        """Read again what is known of these: hosts and groups by their uuid, ``incarnation``, ``zones``."""
        with self._lock:
            for name in names:
                self._known.pop(name, None)
                self._known.pop(("host", name), None)
                self._known.pop(("members", name), None)

    def _hosts(self, providers: Iterable[str]) -> dict[str, _Host]:
        return self._many("host", providers, self._read_hosts)

    def _read_hosts(self, wanted: list[str]) -> dict[str, _Host]:
        nodes = _by_last(self._store.get_many([keys.node(p) for p in wanted], Node).items)
        admins = _by_last(self._store.get_many([keys.admin(p) for p in wanted], Admin).items)
        alive = _by_last(self._store.get_many([keys.alive(p) for p in wanted], Alive).items)
        return {p: _Host(nodes.get(p), admins.get(p), p in alive) for p in wanted}

    # --- what only ranks -----------------------------------------------------------------------

    def holders(self, image: str, providers: Iterable[str]) -> frozenset[str]:
        """Return those of ``providers`` that hold a copy of ``image``."""

        def read(wanted: list[str]) -> dict[str, bool]:
            found = self._store.get_many([keys.copy(p, image) for p in wanted], Copy).items
            holding = {keys.parts(item.key)[1] for item in found if item.value.url == image}
            return {p: p in holding for p in wanted}

        return frozenset(p for p, holds in self._many(f"image {image}", providers, read).items() if holds)

    def on_network(self, network_uuid: str, providers: Iterable[str]) -> frozenset[str]:
        """Return those of ``providers`` that have a member of a network."""

        def read(wanted: list[str]) -> dict[str, bool]:
            found = self._store.get_many([keys.network_host(network_uuid, p) for p in wanted], NetworkHost).items
            members = {keys.last(item.key) for item in found}
            return {p: p in members for p in wanted}

        return frozenset(p for p, is_in in self._many(f"network {network_uuid}", providers, read).items() if is_in)

    def tagged(self, namespace: str, tag: str) -> dict[str, int]:
        """Return {provider: how many instances there have a tag}."""

        def read() -> dict[str, int]:
            counts: dict[str, int] = {}
            for item in self._store.list(keys.tagged(namespace, tag), Tagged).items:
                counts[item.value.provider] = counts.get(item.value.provider, 0) + 1
            return counts

        return self._one(("tag", namespace, tag), read)

    def members(self, group: str) -> tuple[tuple[Member, ...], bool]:
        """Return the members of a group, the first `MEMBERS` of them, and whether they were read just now."""
        is_new = False

        def read() -> list[Member]:
            nonlocal is_new
            is_new = True
            return members(self._store, group, limit=MEMBERS)

        found = self._one(("members", group), read)
        with self._lock:
            return tuple(found), is_new

    def joined(self, group: str, member: Member) -> None:
        """Take note of a member that was launched here."""
        with self._lock:
            known = self._known.get(("members", group))
            if known is not None:
                known[1].append(member)

    def zones(self) -> dict[str, str | None]:
        """Return {provider: its zone} of all hosts of which anything was said."""

        def read() -> dict[str, str | None]:
            return {keys.last(item.key): item.value.zone for item in self._store.list(keys.ADMIN, Admin).items}

        return self._one("zones", read)

    def load(self, provider: str) -> float | None:
        """Return how busy a host is now, 0 to 1; None: it does not say. It may rank, and never refuse."""
        return None

    # --- keeping -------------------------------------------------------------------------------

    def _one(self, name: Hashable, read: Callable[[], T], *, ttl_s: float | None = None) -> T:
        now_s = self._clock()
        with self._lock:
            known = self._known.get(name)
        if known is not None and now_s - known[0] < (self._ttl_s if ttl_s is None else ttl_s):
            return known[1]  # type: ignore[no-any-return]
        value = read()
        self._keep({name: value}, now_s)
        return value

    def _many(self, kind: str, providers: Iterable[str], read: Callable[[list[str]], dict[str, T]]) -> dict[str, T]:
        now_s = self._clock()
        wanted = sorted(set(providers))
        with self._lock:
            known = {p: self._known.get((kind, p)) for p in wanted}
        values: dict[str, T] = {
            p: entry[1] for p, entry in known.items() if entry is not None and now_s - entry[0] < self._ttl_s
        }
        missing = [p for p in wanted if p not in values]
        if missing:
            found = read(missing)
            self._keep({(kind, p): value for p, value in found.items()}, now_s)
            values |= found
        return {p: values[p] for p in wanted}

    def _keep(self, values: dict[Any, Any], now_s: float) -> None:
        with self._lock:
            if len(self._known) + len(values) > KEPT:
                self._known = {n: e for n, e in self._known.items() if now_s - e[0] < self._ttl_s}
            self._known |= {name: (now_s, value) for name, value in values.items()}


def _by_last(items: tuple[Versioned[T], ...]) -> dict[str, Versioned[T]]:
    return {keys.last(item.key): item for item in items}
