"""Instances, as those who ask know them: found, listed, waited for, destroyed."""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

from msgspec import structs

from ecompute.cluster import keys, states
from ecompute.cluster.documents import (
    Alive,
    Assignment,
    Booted,
    Event,
    Instance,
    Intent,
    Node,
    Power,
    Role,
    Seen,
    State,
)
from ecompute.cluster.errors import Ambiguous, CompareFailed, DeadlineExceeded, NotFound
from ecompute.cluster.events import INSTANCE, read
from ecompute.cluster.placement import ConsumerAllocations
from ecompute.cluster.store import Put, Store, Versioned, unchanged
from ecompute.cluster.upkeep.finish import Finisher
from eschedule.cloud.connection import Cloud

PAGE = 100


@dataclass(frozen=True)
class View:
    """One instance: what is wanted, joined with what its host reports."""

    instance: Versioned[Instance]
    seen: Seen | None

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
    def error(self) -> str | None:
        return self.instance.value.error or (self.seen.error if self.seen is not None else None)


@dataclass(frozen=True)
class Diagnosis:
    """Everything that is known of one uuid, side by side, and what it waits for."""

    uuid: str
    intent: Intent | None
    instance: Instance | None
    claim: ConsumerAllocations
    assignment: Assignment | None
    seen: Seen | None
    host: Node | None
    is_host_alive: bool
    waits_for: str


class Instances:
    """Safe from several threads."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._store: Store = cloud.store

    def find(self, ref: str, namespace: str) -> Versioned[Instance]:
        """Return the instance that ``ref`` names: a uuid, a name, or the beginning of a uuid.

        A full uuid is found in any namespace; a name or a beginning in ``namespace`` only.

        Raises:
            NotFound: none, with what to do.
            Ambiguous: several, which are named.
        """
        uuid = full_uuid(ref)
        if uuid is not None:
            found = self._store.get(keys.instance(uuid), Instance)
            if found is None:
                raise NotFound(f"there is no instance {uuid}", hint="see `eschedule list`")
            return found
        uuids = self._named(ref, namespace)
        if not uuids:
            raise NotFound(f"there is no instance {ref[:80]!r} in namespace {namespace}", hint="see `eschedule list`")
        if len(uuids) > 1:
            raise Ambiguous(
                f"{ref[:80]!r} names {len(uuids)} instances: {', '.join(sorted(uuids)[:5])}",
                hint="give more of the uuid",
            )
        found = self._store.get(keys.instance(uuids.pop()), Instance)
        if found is None:
            raise NotFound(f"instance {ref[:80]!r} is gone", hint="see `eschedule list`")
        return found

    def view(self, instance: Versioned[Instance]) -> View:
        value = instance.value
        seen = self._store.get(keys.seen(value.provider, value.uuid), Seen)
        return View(instance, None if seen is None else seen.value)

    def all(self, namespace: str | None) -> Iterator[View]:
        """Yield the instances of ``namespace``, or of all, by name."""
        if namespace is None:
            instances = self._store.list(keys.INSTANCES, Instance).items
        else:
            names, _ = self._store.keys(keys.names(namespace, INSTANCE))
            instances = self._store.get_many([keys.instance(keys.last(name)) for name in names], Instance).items
        for start in range(0, len(instances), PAGE):
            page = instances[start : start + PAGE]
            reports = self._store.get_many([keys.seen(i.value.provider, i.value.uuid) for i in page], Seen)
            seen = {item.value.uuid: item.value for item in reports.items}
            yield from (View(instance, seen.get(instance.value.uuid)) for instance in page)

    def events(self, uuid: str) -> list[Event]:
        return read(self._store, INSTANCE, uuid)

    def follow_events(self, uuid: str) -> Iterator[Event]:
        """Yield the events there are, and then each as it comes, until the instance is gone."""
        woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        watcher = self._store.watcher()
        try:
            for key, kind in ((keys.events(INSTANCE, uuid), Event), (keys.instance(uuid), Instance)):
                watcher.follow(key, kind, lambda change: woken.put(None))
            shown: set[tuple[str, int]] = set()
            while True:
                is_gone = self._store.get(keys.instance(uuid), Instance) is None
                for event in self.events(uuid):
                    if (event.writer, event.n) not in shown:
                        shown.add((event.writer, event.n))
                        yield event
                if is_gone:
                    return
                woken.get()
        finally:
            watcher.close()

    def destroy(self, instance: Versioned[Instance]) -> None:
        """Mark ``instance`` deleting and its assignment absent. Its host does the rest.

        Idempotent; raises nothing when somebody else was first.
        """
        while True:
            value = instance.value
            if value.state is not State.DELETING:
                assignment = self._store.get(keys.assignment(value.provider, value.uuid), Assignment)
                marked = structs.replace(
                    value, state=states.check(value.state, State.DELETING), generation=value.generation + 1
                )
                compares = [unchanged(instance)]
                operations = [
                    Put(instance.key, marked),
                    self._cloud.events.record(
                        INSTANCE, value.uuid, "destroy.requested", "its host is asked to remove it"
                    ),
                ]
                if assignment is not None:
                    compares.append(unchanged(assignment))
                    absent = structs.replace(assignment.value, role=Role.ABSENT, generation=marked.generation)
                    operations.append(Put(assignment.key, absent))
                try:
                    self._store.commit(compares, operations)
                except CompareFailed:
                    again = self._store.get(instance.key, Instance)
                    if again is None:
                        return
                    instance = again
                    continue
            return

    def finish(self, uuid: str) -> None:
        """Do for ``uuid`` what its host's report allows: release its claim, remove its keys."""
        Finisher(self._store, self._cloud.placement, self._cloud.events).finish(uuid)

    def is_host_alive(self, provider: str) -> bool:
        return self._store.get(keys.alive(provider), Alive) is not None

    def wait(
        self,
        instance: Versioned[Instance],
        *,
        until: frozenset[State],
        timeout_s: float,
        on_view: Callable[[State, str], None] = lambda state, doing: None,
    ) -> View | None:
        """Wait until the instance is in one of the states ``until``; return it then.

        Returns ``None`` once its keys are gone. ``finish`` is run when the host's report allows it.

        Args:
            on_view: called with the state and the last event whenever something changes, and once a
                second in between.

        Raises:
            DeadlineExceeded: it took longer than ``timeout_s``; the instance goes on by itself.
        """
        value = instance.value
        deadline = time.monotonic() + timeout_s
        woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        watcher = self._store.watcher()
        try:
            for key, kind in (
                (instance.key, Instance),
                (keys.seen(value.provider, value.uuid), Seen),
                (keys.events(INSTANCE, value.uuid), Event),
            ):
                watcher.follow(key, kind, lambda change: woken.put(None))
            while True:
                current = self._store.get(instance.key, Instance)
                if current is None:
                    return None
                view = self.view(current)
                events = self.events(value.uuid)
                on_view(view.state, events[-1].message if events else "")
                if view.seen is not None and view.seen.is_gone:
                    self.finish(value.uuid)
                if view.state in until:
                    return view
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DeadlineExceeded(
                        f"{value.uuid} is still {view.state} after {timeout_s:.0f} s",
                        hint=f"it goes on by itself; see `eschedule doctor {value.uuid}`",
                    )
                try:
                    woken.get(timeout=min(1.0, left))
                    while True:
                        woken.get_nowait()
                except queue.Empty:
                    pass
        finally:
            watcher.close()

    def diagnose(self, ref: str, namespace: str) -> Diagnosis:
        """Return all that is known of ``ref``, found or not, and what it waits for."""
        uuid = full_uuid(ref)
        if uuid is None:
            uuid = self.find(ref, namespace).value.uuid
        found = self._store.get(keys.instance(uuid), Instance)
        instance = None if found is None else found.value
        intent = self._store.get(keys.intent(uuid), Intent)
        claim = self._cloud.placement.allocations(uuid)
        provider = instance.provider if instance is not None else next(iter(claim.allocations), None)
        assignment = seen = node = None
        is_alive = False
        if provider is not None:
            assignment = self._store.get(keys.assignment(provider, uuid), Assignment)
            seen = self._store.get(keys.seen(provider, uuid), Seen)
            node = self._store.get(keys.node(provider), Node)
            is_alive = self.is_host_alive(provider)
        if instance is None and intent is None and not claim.allocations and seen is None:
            raise NotFound(f"nothing is known of {uuid}", hint="see `eschedule list`")
        diagnosis = Diagnosis(
            uuid=uuid,
            intent=None if intent is None else intent.value,
            instance=instance,
            claim=claim,
            assignment=None if assignment is None else assignment.value,
            seen=None if seen is None else seen.value,
            host=None if node is None else node.value,
            is_host_alive=is_alive,
            waits_for="",
        )
        return dataclasses.replace(diagnosis, waits_for=waits_for(diagnosis))

    def booted(self, uuid: str) -> Booted | None:
        found = self._store.get(keys.booted(uuid), Booted)
        return None if found is None else found.value

    def _named(self, ref: str, namespace: str) -> set[str]:
        listing, _ = self._store.keys(keys.names(namespace, INSTANCE))
        by_name = {keys.last(key) for key in listing if keys.parts(key)[3] == ref}
        return by_name or {uuid for key in listing if (uuid := keys.last(key)).startswith(ref.lower()) and ref}


def waits_for(diagnosis: Diagnosis) -> str:
    """Return, in words, which step comes next and who has to take it. Pure."""
    instance, seen = diagnosis.instance, diagnosis.seen
    host = diagnosis.host.name if diagnosis.host is not None else "its host"
    if instance is None:
        if diagnosis.intent is not None:
            return "its scheduler, to claim and request it; after 60 s without a change the lead's audit gives it up"
        if diagnosis.claim.allocations:
            return "the lead's audit, to release a claim that belongs to no instance"
        return f"an operator: {host} has a guest that nobody asked for (was etcd emptied or put back?)"
    if diagnosis.host is not None and diagnosis.host.hold is not None:
        return f"an operator: {host} is on hold, because {diagnosis.host.hold}"
    reached = seen is not None and seen.epoch == instance.epoch and seen.generation >= instance.generation
    if not reached and not diagnosis.is_host_alive:
        return f"the daemon on {host}, which does not answer: start `ecompute run` there"
    if not reached:
        return f"{host}, to take up what was asked"
    assert seen is not None
    if seen.is_gone and instance.state is not State.ERROR:
        return "the lead, to release its claim and remove its keys"
    if instance.state is State.ERROR or seen.state is State.ERROR:
        return f"you: it failed ({instance.error or seen.error}); `eschedule destroy {diagnosis.uuid}` removes it"
    if seen.state is State.CREATED:
        return "nothing"
    return f"{host}, which is at work on it"


def full_uuid(text: str) -> str | None:
    """Return ``text`` as a uuid in its usual form, or ``None`` if it is not a whole one."""
    try:
        uuid = UUID(text)
    except ValueError:
        return None
    return str(uuid) if len(text) == 36 else None
