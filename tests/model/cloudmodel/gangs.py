"""Those who launch gangs.

As in `cloudmodel.asking`: what stands between two yields happens at once, and never more than one
message does. The order of the messages is the product's.
"""

from __future__ import annotations

from msgspec import structs

from cloudmodel.asking import ADDRESSES
from cloudmodel.etcd import Compare, Delete, Entry, Put, unchanged
from cloudmodel.placement import RefusedError
from cloudmodel.upkeep import release
from cloudmodel.world import HOSTS, Steps, Unanswered, World, spec
from ecompute.cluster import keys
from ecompute.cluster.documents import (
    AddressLock,
    Assignment,
    Gang,
    GangState,
    Instance,
    Intent,
    Node,
    Role,
    State,
)
from ecompute.cluster.errors import CompareFailed

TRIES = 3


def schedule_gang(world: World, gang: str, uuids: tuple[str, ...], prefer: int) -> Steps:
    """``record and intents → one claim of all → requests → commit``."""
    etcd = world.etcd
    incarnation = etcd.get(keys.INCARNATION)
    if incarnation is None:
        return
    yield "has read the incarnation"
    launch = _Launch(world, gang, uuids, unchanged(keys.INCARNATION, incarnation))
    yield from launch.intend()
    if launch.is_over:
        return
    places = yield from launch.claim(prefer)
    if launch.is_over:
        return
    for uuid in uuids:
        if not places or launch.is_void or launch.is_over:
            break
        yield from launch.request(uuid, places[uuid])
    if launch.is_over:
        return
    if places and not launch.is_void:
        yield from launch.commit()
    if not launch.is_over:
        yield from launch.cancel()


class _Launch:
    """One gang under way, as its scheduler knows it."""

    def __init__(self, world: World, gang: str, uuids: tuple[str, ...], same_life: Compare) -> None:
        self.world = world
        self.gang = gang
        self.key = keys.gang(gang)
        self.uuids = uuids
        self.same_life = same_life
        self.intents: dict[str, Entry] = {}
        self.record: Entry | None = None
        self.nodes: dict[str, Entry] = {}
        """The hosts of its members as the requests compared them; the commit does so again."""
        self.is_void = False
        """It cannot be committed any more."""
        self.is_over = False
        """Nothing more is done here: it is committed, or left to the upkeep."""

    def _unchanged(self) -> list[Compare]:
        if not self.world.rules.gang_writes_compare_its_record:
            return [self.same_life]
        return [unchanged(self.key, self.record), self.same_life]

    def _write(self, compares: list[Compare], operations: list[Put | Delete]) -> None:
        """Write, and the record anew with it, so that no later write of ours can be mistaken for this one."""
        assert self.record is not None
        self.world.commit(
            [*self._unchanged(), *compares], [Put(self.key, structs.replace(self.record.value)), *operations]
        )
        self._note()

    def _note(self) -> None:
        for uuid in self.uuids:
            entry = self.world.etcd.get(keys.intent(uuid))
            if entry is not None:
                self.intents[uuid] = entry
        self.record = self.world.etcd.get(self.key)

    def intend(self) -> Steps:
        record = Gang(uuid=self.gang, namespace="system", members=self.uuids, writer="s", made_at="")
        for begin in range(0, len(self.uuids), 2):
            some = self.uuids[begin : begin + 2]
            puts: list[Put | Delete] = [
                Put(keys.intent(u), Intent(consumer=u, kind="create", namespace="system", writer="s", made_at=""))
                for u in some
            ]
            none = [Compare(key(u), mod_revision=0) for u in some for key in (keys.intent, keys.instance)]
            try:
                if self.record is None:
                    self.world.commit(
                        [Compare(self.key, mod_revision=0), self.same_life, *none], [Put(self.key, record), *puts]
                    )
                    self._note()
                else:
                    self._write(none, puts)
            except (CompareFailed, Unanswered):
                self.is_over = True
                return
            yield "intended"

    def claim(self, prefer: int) -> Steps:
        """Return where each is to be, or nothing: they do not fit."""
        world = self.world
        for _ in range(TRIES):
            free = {host: world.placement.capacity[host] - world.placement.used(host) for host in HOSTS}
            places: dict[str, str] = {}
            for uuid in self.uuids:
                hosts = [host for host in HOSTS[prefer:] + HOSTS[:prefer] if free[host] > 0]
                if not hosts:
                    return {}
                places[uuid] = hosts[0]
                free[hosts[0]] -= 1
            yield "packed"
            for _ in range(TRIES):
                try:
                    world.to_placement(lambda places=places: world.placement.claim_many(places))
                except RefusedError:
                    yield "was refused"
                    held = {u: a.provider for u, a in world.placement.allocations.items() if u in places}
                    if held == places:
                        return places
                    break
                except Unanswered:
                    yield "claim unanswered"
                else:
                    yield "claimed"
                    return places
            else:
                self.is_over = True  # nobody knows: the audit's
                return {}
        return {}

    def request(self, uuid: str, provider: str) -> Steps:
        etcd = self.world.etcd
        for _ in range(TRIES):
            node = etcd.get(keys.node(provider))
            if node is None or not isinstance(node.value, Node) or node.value.hold is not None:
                break
            taken = {keys.last(lock) for lock in etcd.below(keys.addresses("net"))}
            address = next(a for a in ADDRESSES if a not in taken)
            yield "has read the host"
            wanted = spec(uuid, f"{address}/24")
            instance = Instance(
                uuid=uuid,
                namespace="system",
                name=uuid,
                state=State.INITIAL,
                provider=provider,
                spec=wanted,
                created_at="",
                gang=self.gang,
            )
            assignment = Assignment(
                uuid=uuid,
                namespace="system",
                name=uuid,
                role=Role.RUN,
                generation=1,
                epoch=1,
                spec=wanted,
                gang=self.gang,
            )
            lock = keys.address("net", address)
            try:
                self._write(
                    [
                        unchanged(keys.intent(uuid), self.intents[uuid]),
                        unchanged(keys.node(provider), node),
                        Compare(keys.instance(uuid), mod_revision=0),
                        Compare(lock, mod_revision=0),
                    ],
                    [
                        Delete(keys.intent(uuid)),
                        Put(keys.instance(uuid), instance),
                        Put(keys.assignment(provider, uuid), assignment),
                        Put(lock, AddressLock(interface_uuid=f"if-{uuid}", instance_uuid=uuid)),
                    ],
                )
            except CompareFailed:
                yield "request refused"
                if etcd.get(self.key) != self.record or etcd.get(keys.intent(uuid)) != self.intents[uuid]:
                    break
            except Unanswered:
                is_there = yield from self._settle(uuid)
                if self.is_over or is_there:
                    self.nodes.setdefault(provider, node)
                    return
            else:
                self.nodes.setdefault(provider, node)
                yield "requested"
                return
        self.is_void = True

    def _settle(self, uuid: str) -> Steps:
        """After a request that went unanswered: return whether it was written; if not, it never will be."""
        yield "settles"
        before = self.record
        try:
            self._write([], [])
        except CompareFailed:
            yield "looks for its instance"
            record, instance = self.world.etcd.get(self.key), self.world.etcd.get(keys.instance(uuid))
            is_ours = instance is not None and record is not None and record.mod_revision == instance.mod_revision
            if not is_ours or record.value.state is not GangState.WRITING or record == before:
                self.is_over = True
                return False
            self.record = record
            return True
        except Unanswered:
            self.is_over = True
            return False
        return False

    def commit(self) -> Steps:
        """Ends with the gang over, or with a refusal that is certain."""
        world = self.world
        is_in_doubt = False
        for _ in range(TRIES):
            assert self.record is not None
            committed = structs.replace(self.record.value, state=GangState.COMMITTED)
            try:
                hosts = [unchanged(keys.node(host), node) for host, node in self.nodes.items()]
                world.commit([*self._unchanged(), *hosts], [Put(self.key, committed)])
            except CompareFailed:
                yield "commit refused"
                found = world.etcd.get(self.key)
                is_done = found is not None and found.value.state is GangState.COMMITTED
                self.is_over = is_done or (is_in_doubt and world.rules.gang_in_doubt_is_left_alone)
                return
            except Unanswered:
                is_in_doubt = True
                yield "commit unanswered"
            else:
                self.is_over = True
                return
        self.is_over = world.rules.gang_in_doubt_is_left_alone

    def cancel(self) -> Steps:
        """Of a gang of which it is certain that it was never committed: undo everything at once."""
        world, record = self.world, self.record
        assert record is not None
        yield "cancels"
        try:
            world.commit(
                [unchanged(self.key, record)], [Put(self.key, structs.replace(record.value, state=GangState.CANCELLED))]
            )
        except (CompareFailed, Unanswered):
            return
        yield "cancelled"
        for uuid in self.uuids:
            yield from self._withdraw(uuid)

    def _withdraw(self, uuid: str) -> Steps:
        world, etcd = self.world, self.world.etcd
        instance = etcd.get(keys.instance(uuid))
        yield "withdraws"
        if instance is None:
            try:
                world.commit([unchanged(keys.intent(uuid), self.intents[uuid])], [Delete(keys.intent(uuid))])
            except (CompareFailed, Unanswered):
                return
            yield "withdrew its intent"
            yield from release(world, uuid)
            return
        key = keys.assignment(instance.value.provider, uuid)
        assignment = etcd.get(key)
        yield "has read its assignment"
        yield from release(world, uuid)
        locks = [lock for lock, entry in etcd.below(keys.addresses("net")).items() if entry.value.instance_uuid == uuid]
        gone = [keys.instance(uuid), key, keys.seen(instance.value.provider, uuid), *locks]
        yield "withdrew its claim"
        try:
            world.commit(
                [unchanged(keys.instance(uuid), instance), unchanged(key, assignment)], [Delete(name) for name in gone]
            )
        except (CompareFailed, Unanswered):
            return
