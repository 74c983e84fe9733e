"""Instances, as those who ask know them: found, listed, waited for, destroyed.

Safe from several threads.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from msgspec import structs

from ecompute.cluster import expiring, keys, states
from ecompute.cluster.documents import Alive, Booted, Event, Expiry, Instance, Port, Power, Seen, State
from ecompute.cluster.ending import mark_deleting
from ecompute.cluster.errors import CompareFailed, Conflict, DeadlineExceeded, NotFound
from ecompute.cluster.events import INSTANCE, read, rings
from ecompute.cluster.store import Delete, Op, Put, Store, Versioned, unchanged
from eschedule.cloud import references
from eschedule.cloud.connection import Cloud

PAGE = 100
TICK_S = 1.0
"""How often a wait says how long it has taken, and looks again although nothing woke it."""
SILENCE_S = 5.0
"""For so long a daemon may be away (it is started anew) before it counts as not answering."""


class HostSilent(DeadlineExceeded):
    """Nothing will change before the host's daemon is back."""


@dataclass(frozen=True)
class View:
    """One instance: what is wanted, joined with what its host reports."""

    instance: Versioned[Instance]
    seen: Seen | None
    ports: tuple[Port, ...] = ()
    """Where they were asked for: what is handed to its interfaces, only they say."""

    @property
    def state(self) -> State:
        return states.life(self.instance.value, self.seen)

    @property
    def power(self) -> Power:
        return self.seen.power if self.seen is not None else Power.UNKNOWN

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(a for interface in self.instance.value.spec.interfaces for a in interface.addresses)

    @property
    def floating(self) -> tuple[str, ...]:
        """The floating addresses that are translated to addresses of its own."""
        return tuple(port.floating for port in self.ports if port.floating is not None)

    @property
    def routed(self) -> tuple[str, ...]:
        """The addresses that are handed to it without translation."""
        return tuple(ip for port in self.ports for ip in port.routed)

    @property
    def error(self) -> str | None:
        return self.instance.value.error or (self.seen.error if self.seen is not None else None)


class Instances:
    """All instances of a cloud. Safe from several threads."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._store: Store = cloud.store

    def find(self, ref: str, namespace: str) -> Versioned[Instance]:
        """Return the instance that ``ref`` names: see `eschedule.cloud.references.find`."""
        return references.find(self._store, ref, namespace)

    def several(self, uuids: Sequence[str]) -> list[Versioned[Instance]]:
        """Return the instances of ``uuids`` that are there, in that order."""
        found = self._store.get_many([keys.instance(uuid) for uuid in uuids], Instance).items
        by_uuid = {item.value.uuid: item for item in found}
        return [by_uuid[uuid] for uuid in uuids if uuid in by_uuid]

    def views(self, uuids: Sequence[str]) -> list[View]:
        """Return the instances of ``uuids`` that are there, with their reports, in that order."""
        instances = self.several(uuids)
        reports = self._store.get_many([keys.seen(i.value.provider, i.value.uuid) for i in instances], Seen)
        seen = {item.value.uuid: item.value for item in reports.items}
        return [View(instance, seen.get(instance.value.uuid)) for instance in instances]

    def view(self, instance: Versioned[Instance]) -> View:
        value = instance.value
        seen = self._store.get(keys.seen(value.provider, value.uuid), Seen)
        return View(instance, None if seen is None else seen.value)

    def whole(self, views: Sequence[View]) -> list[View]:
        """Return ``views`` with the ports of their instances."""
        wanted = [[keys.port(i.network_uuid, i.uuid) for i in view.instance.value.spec.interfaces] for view in views]
        found = self._store.get_many([key for some in wanted for key in some], Port).items
        ports = {item.key: item.value for item in found}
        return [
            replace(view, ports=tuple(ports[key] for key in some if key in ports))
            for view, some in zip(views, wanted, strict=True)
        ]

    def all(self, namespace: str | None) -> Iterator[View]:
        """Yield the instances of ``namespace``, or of all of them, by namespace and name, with their ports."""
        if namespace is None:
            found = self._store.list(keys.INSTANCES, Instance).items
        else:
            names, _ = self._store.keys(keys.names(namespace, INSTANCE))
            found = self._store.get_many([keys.instance(keys.last(name)) for name in names], Instance).items
        instances = sorted(found, key=lambda item: (item.value.namespace, item.value.name, item.value.uuid))
        for start in range(0, len(instances), PAGE):
            page = instances[start : start + PAGE]
            reports = self._store.get_many([keys.seen(i.value.provider, i.value.uuid) for i in page], Seen)
            seen = {item.value.uuid: item.value for item in reports.items}
            yield from self.whole([View(instance, seen.get(instance.value.uuid)) for instance in page])

    def booted(self, uuid: str) -> Booted | None:
        """Return the report for people and old tools."""
        found = self._store.get(keys.booted(uuid), Booted)
        return None if found is None else found.value

    def is_host_alive(self, provider: str) -> bool:
        return self._store.get(keys.alive(provider), Alive) is not None

    # --- events --------------------------------------------------------------------------------

    def events(self, instance: Instance) -> list[Event]:
        return read(self._store, INSTANCE, instance.uuid, instance.provider)

    def follow_events(self, instance: Instance) -> Iterator[Event]:
        """Yield the events there are, and then each as it comes, until the instance is gone."""
        shown: set[tuple[str, int]] = set()
        with self.wakes(instance) as woken:
            while True:
                # In this order: what came before the end is shown before the end.
                is_gone = self._store.get(keys.instance(instance.uuid), Instance) is None
                for event in self.events(instance):
                    if (event.writer, event.n) not in shown:
                        shown.add((event.writer, event.n))
                        yield event
                if is_gone:
                    return
                woken.get()

    # --- ending --------------------------------------------------------------------------------

    def destroy(self, instance: Versioned[Instance]) -> None:
        """Mark ``instance`` deleting and its assignment absent. Its host does the rest.

        Idempotent; raises nothing when somebody else was first.
        """
        found: Versioned[Instance] | None = instance
        while found is not None and found.value.state is not State.DELETING:
            try:
                mark_deleting(self._store, self._cloud.events, found)
                return
            except CompareFailed:
                found = self._store.get(instance.key, Instance)

    def extend(self, instance: Versioned[Instance], expires: str | None) -> Versioned[Instance]:
        """Have ``instance`` expire at another time; return it as it is then.

        Args:
            expires: a duration from now (``2h``) or a time (RFC 3339); None: never.

        Raises:
            InvalidInput: it is no time to come.
            Conflict: it is being destroyed.
        """
        at_s = None if expires is None else expiring.moment(expires, time.time())
        found: Versioned[Instance] | None = instance
        while found is not None:
            if found.value.state is State.DELETING:
                raise Conflict(f"{found.value.name} is being destroyed", hint="launch another one")
            try:
                return self._expire(found, at_s)
            except CompareFailed:
                found = self._store.get(instance.key, Instance)
        raise NotFound(f"{instance.value.name} is gone", hint="launch another one")

    def _expire(self, instance: Versioned[Instance], at_s: int | None) -> Versioned[Instance]:
        value = instance.value
        changed = structs.replace(value, expires_at=None if at_s is None else expiring.expires_at(at_s))
        old, new = expiring.key_of(value), expiring.key_of(changed)
        if old == new:
            return instance
        says = "it does not expire any more" if at_s is None else f"it expires at {changed.expires_at}"
        operations: list[Op] = [
            Put(instance.key, changed),
            self._cloud.events.record(INSTANCE, value.uuid, "expiry.changed", says),
        ]
        operations += [] if old is None else [Delete(old)]
        operations += [] if new is None else [Put(new, Expiry(uuid=value.uuid))]
        revision = self._store.commit([unchanged(instance)], operations)
        return replace(instance, value=changed, mod_revision=revision)

    def finish(self, uuid: str) -> None:
        """Do for ``uuid`` what its host's report allows: release its claim, remove its keys."""
        from ecompute.cluster.upkeep.finish import Finisher

        Finisher(self._store, self._cloud.placement, self._cloud.events).finish(uuid)

    # --- waiting -------------------------------------------------------------------------------

    def wait(
        self,
        instance: Versioned[Instance],
        *,
        until: frozenset[State],
        timeout_s: float,
        is_host_needed: bool = False,
        on_view: Callable[[State, str], None] = lambda state, doing: None,
    ) -> View | None:
        """Wait until the instance is in one of the states ``until``; return it then.

        Returns ``None`` once its keys are gone. ``finish`` is run when the host's report allows it.

        Args:
            is_host_needed: do not wait for a host that does not answer any more.
            on_view: called with the state and the last event whenever something changes, and once a
                second in between.

        Raises:
            HostSilent: with ``is_host_needed``, its host has not answered for `SILENCE_S`.
            DeadlineExceeded: it took longer than ``timeout_s``; the instance goes on by itself.
        """
        value = instance.value
        answered = time.monotonic()
        deadline = answered + timeout_s
        with self.wakes(value) as woken:
            while True:
                current = self._store.get(instance.key, Instance)
                if current is None:
                    return None
                view = self.view(current)
                events = self.events(value)
                on_view(view.state, events[-1].message if events else "")
                if view.seen is not None and view.seen.is_gone:
                    self.finish(value.uuid)
                elif is_host_needed:
                    now = time.monotonic()
                    answered = now if self.is_host_alive(value.provider) else answered
                    if now - answered > SILENCE_S:
                        raise HostSilent(f"the host of {value.name} ({value.uuid}) does not answer")
                if view.state in until:
                    return view
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DeadlineExceeded(
                        f"{value.name} ({value.uuid}) is still {view.state} after {timeout_s:g} s",
                        hint=f"it goes on by itself; see `eschedule doctor {value.uuid}`",
                    )
                drain(woken, timeout_s=min(TICK_S, left))

    @contextmanager
    def wakes(self, instance: Instance) -> Iterator[queue.SimpleQueue[None]]:
        """Give a queue that something is put into whenever the instance, its events or its report change."""
        uuid, provider = instance.uuid, instance.provider
        woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        watcher = self._store.watcher()
        try:
            watcher.follow(keys.instance(uuid), Instance, lambda change: woken.put(None))
            for ring in rings(INSTANCE, uuid, provider):
                watcher.follow(ring, Event, lambda change: woken.put(None))
            watcher.follow(keys.seen(provider, uuid), Seen, lambda change: woken.put(None))
            yield woken
        finally:
            watcher.close()


def drain(woken: queue.SimpleQueue[None], *, timeout_s: float) -> None:
    """Return once something was put into ``woken``, or after ``timeout_s``; leave it empty."""
    try:
        woken.get(timeout=timeout_s)
        while True:
            woken.get_nowait()
    except queue.Empty:
        pass
