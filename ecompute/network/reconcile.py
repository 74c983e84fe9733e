"""Drives the networks of this host to what is wanted: found and wanted in, changes applied.

The same for a network that is new, damaged, or changed elsewhere: it is read, compared, and what
differs is changed, one change at a time. Killed between any two of them, the next call ends in the
same place. A call that fails on a network of which nothing was there before takes away what it made.

What is read grows with the network: its entries and neighbours. Where a port or member elsewhere has
come or gone, `follow` takes those for what the last call has left there, as long as the devices are the
same ones and as they should be: then an arrival costs the same in a network of any size. What somebody
else has done to the entries meanwhile is found by the next `ensure`.

Any thread may call this. One network operation runs at a time on a host: the kernel has one lock for
devices anyway, an operation takes milliseconds, and the filter, which all networks share, must not
go with the last of them while another one comes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import groupby
from typing import cast, get_args

from ecompute.cluster.errors import NetworkError
from ecompute.cluster.failpoint import around, passing
from ecompute.cluster.undo import Undo
from ecompute.network import names
from ecompute.network.filter import Filter, FilterState
from ecompute.network.links import Links
from ecompute.network.plan import guests, left_to_others, mtu_here, part, plan
from ecompute.network.terms import (
    AddVxlan,
    Change,
    EntryChange,
    FoundNetwork,
    Guard,
    Harden,
    Physical,
    SetMtu,
    SetUp,
    Tap,
    Unguard,
    WantedNetwork,
)

_DEVICES = {
    Harden: names.PREFIXES,
    SetMtu: (names.VXLAN_PREFIX, names.VLAN_PREFIX, names.TAP_PREFIX),
    SetUp: (names.BRIDGE_PREFIX, names.VXLAN_PREFIX, names.VLAN_PREFIX),
}
"""What is done to several kinds of device, and to which."""

FAILPOINTS = around(
    (
        "mesh.Entries",
        *(
            ".".join(filter(None, ("mesh", kind.__name__, prefix)))
            for kind in get_args(Change)
            if kind not in get_args(EntryChange)
            for prefix in _DEVICES.get(kind, ("",))
        ),
    )
)
"""Before and after each kind of change, for each kind of device; entries and neighbours are sent at once."""


class NetworkReconciler:
    """
    Args:
        on_change: called after every change, in the thread that made it.
    """

    def __init__(self, links: Links, filter_: Filter, on_change: Callable[[Change], None] | None = None) -> None:
        self._links = links
        self._filter = filter_
        self._on_change = on_change
        self._lock = threading.Lock()
        self._starting: set[str] = set()
        self._left: dict[int, tuple[frozenset[Tap], FoundNetwork]] = {}
        """What the last call has left of a network, and the taps that were wanted."""

    def session(self) -> AbstractContextManager[None]:
        """Let this thread's calls inside, and those for the network's gateway, share one socket."""
        return self._links.session()

    @contextmanager
    def starting(self, taps: Iterable[str]) -> Iterator[None]:
        """While libvirt makes ``taps`` and puts them on their bridges, leave them to it.

        It fails on one that somebody else was quicker to put there. Entered before they are made.
        """
        taps = frozenset(taps)
        self._starting.update(taps)
        try:
            yield
        finally:
            self._starting.difference_update(taps)

    def ensure(self, wanted: WantedNetwork) -> tuple[Change, ...]:
        """Make ``wanted`` so and return the changes that this took.

        Raises:
            NetworkError: a device with our name is not ours, or the kernel refused a change.
        """
        with self._lock, self._links.session():
            return self._ensure(wanted)

    def follow(self, wanted: WantedNetwork) -> tuple[Change, ...]:
        """Do the same where only ports and members elsewhere have changed since the last call.

        Raises:
            NetworkError: as `ensure`.
        """
        with self._lock, self._links.session():
            found = self._as_left(wanted)
            if found is not None:
                changes = plan(wanted, found)
                try:
                    self._apply(changes)
                except NetworkError:  # it is not as it was left
                    del self._left[wanted.vni]
                except BaseException:
                    del self._left[wanted.vni]
                    raise
                else:
                    self._leave(wanted, found, changes)
                    return changes
            return self._ensure(wanted)

    def _ensure(self, wanted: WantedNetwork) -> tuple[Change, ...]:
        self._left.pop(wanted.vni, None)
        found = self._found(wanted.vni, wanted.tap_names, local=wanted.local, physical=wanted.physical)
        # Asked after the look: what was found loose and is not being started now is nobody's work any more.
        loose = frozenset(port for port in found.loose if port.name not in self._starting)
        changes = plan(wanted, self._guarded(wanted, replace(found, loose=loose)))
        undo = Undo()
        if not (found.has_rules or found.bridge or found.vxlan or found.vlan):
            undo.push(f"network {wanted.vni}", lambda: self._remove(wanted.vni))
        try:
            self._apply(changes)
        except Exception as error:
            undo.run()
            for name, failure in undo.failures:
                error.add_note(f"undoing {name} failed: {failure}")
            raise
        self._leave(wanted, found, changes)
        return changes

    def _leave(self, wanted: WantedNetwork, found: FoundNetwork, changes: tuple[Change, ...]) -> None:
        """Remember what is there once ``changes`` were made to ``found``."""
        devices = self._links.glance(wanted.vni) if changes else found
        is_new = any(isinstance(change, AddVxlan) for change in changes)
        foreign = frozenset() if is_new else left_to_others(wanted, found)
        left = replace(
            found,
            bridge=devices.bridge,
            vxlan=devices.vxlan,
            entries=wanted.forwarding() - foreign,
            foreign_entries=foreign,
            neighbours=wanted.neighbours,
        )
        self._left[wanted.vni] = (wanted.taps, left)

    def _as_left(self, wanted: WantedNetwork) -> FoundNetwork | None:
        """Return what is there of a network if it is as it was left, and only others' guests have changed."""
        taps, left = self._left.get(wanted.vni, (None, None))
        found = self._links.glance(wanted.vni)
        if left is None or left.vxlan is None or found.vxlan is None or found.vxlan.index != left.vxlan.index:
            return None
        if (taps, left.bridge, left.vxlan) != (wanted.taps, found.bridge, found.vxlan):
            return None
        return self._guarded(wanted, replace(left, loose=frozenset()))

    def _guarded(self, wanted: WantedNetwork, found: FoundNetwork) -> FoundNetwork:
        """Return ``found``, saying whether the filter is in place for it."""
        return replace(found, is_guarded=self._filter.state(part(wanted, found)) is FilterState.WHOLE)

    def mtu(self, wanted: WantedNetwork) -> int:
        """Return the MTU that a network has here since the last call: what carries it may leave less than is wanted."""
        with self._lock:
            _, left = self._left.get(wanted.vni, (None, None))
            return wanted.mtu if left is None else mtu_here(wanted, left)

    def repair_filter(self) -> bool:
        """Put back what somebody else has taken from the filter; return whether that was anything.

        Raises:
            NetworkError: the kernel refused it.
        """
        with self._lock:
            return self._filter.repair()

    def admit(self, taps: frozenset[Tap]) -> None:
        """Let ``taps``, which are on an operator's bridge and of no network, pass what their guests may send.

        Raises:
            NetworkError: the kernel refused it.
        """
        vni = names.NO_NETWORK
        with self._lock, self._links.session():
            found = self._found(vni, {tap.name for tap in taps})
            own = replace(part(WantedNetwork("", vni, 0, None, taps=taps), found), members=None)
            if not taps and not own.kept:
                if found.has_rules:
                    self._filter.drop(vni)
            elif self._filter.state(own) is not FilterState.WHOLE:
                self._filter.put(own)
            soft = {port.name for port in found.loose | found.ports if not port.is_hardened}
            self._apply(tuple(Harden(name) for name in sorted(soft & {tap.name for tap in taps})))

    def remove(self, vni: int) -> tuple[Change, ...]:
        """Remove what is there of a network, and with the last one the filter.

        Raises:
            NetworkError: guests' ports are still on its bridge, or a device with our name is not ours;
                nothing was changed.
        """
        with self._lock, self._links.session():
            return self._remove(vni)

    def present(self) -> frozenset[int]:
        """Return the VNIs of which something of ours is there."""
        return self._links.ours() | self._filter.present() - {names.NO_NETWORK}

    def guests(self, vni: int) -> frozenset[str]:
        """Return the ports on a network's bridge, and its taps wherever they are: what keeps it from being removed."""
        return guests(self._found(vni))

    def _found(
        self, vni: int, taps: Collection[str] = (), *, local: str | None = None, physical: Physical | None = None
    ) -> FoundNetwork:
        """Return what is there of a network, and which of ``taps``, or of those that have rules, are not on its bridge.

        Whether the filter is in place depends on what is wanted: see `_guarded`.
        """
        ruled = self._filter.taps(vni)
        has_rules = vni in self._filter.present()
        found = self._links.found(vni, ruled | set(taps), local=local, physical=physical)
        return replace(found, ruled=ruled, has_rules=has_rules)

    def _remove(self, vni: int) -> tuple[Change, ...]:
        self._left.pop(vni, None)
        changes = plan(None, self._found(vni))
        self._apply(changes)
        return changes

    def _apply(self, changes: tuple[Change, ...]) -> None:
        for is_entry, group in groupby(changes, key=lambda change: isinstance(change, EntryChange)):
            if is_entry:
                entries = cast("list[EntryChange]", list(group))
                with passing(point_of(entries[0])):
                    self._links.apply_entries(entries)
                for entry in entries:
                    self._tell(entry)
                continue
            for change in group:
                with passing(point_of(change)):
                    self._do(change)
                self._tell(change)

    def _do(self, change: Change) -> None:
        match change:
            case Guard(own):
                self._filter.put(own)
            case Unguard(vni):
                self._filter.drop(vni)
            case _:
                self._links.apply(change)

    def _tell(self, change: Change) -> None:
        if self._on_change is not None:
            self._on_change(change)


def point_of(change: Change) -> str:
    """Return what the failpoints at a change begin with."""
    if isinstance(change, EntryChange):
        return "mesh.Entries"
    prefix = change.device[:3] if isinstance(change, Harden | SetMtu | SetUp) else ""
    return ".".join(filter(None, ("mesh", type(change).__name__, prefix)))
