from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from ecompute.cluster.errors import NetworkError
from ecompute.network import names, terms
from ecompute.network.fake import FakeFilter, FakeLinks
from ecompute.network.filter import FilterState
from ecompute.network.reconcile import NetworkReconciler
from ecompute.network.terms import FoundBridge, FoundNetwork, FoundPort, Part, Physical, Tap, WantedNetwork

VNI = 0x20
WANTED = WantedNetwork(
    uuid="n",
    vni=VNI,
    mtu=1450,
    local="192.0.2.1",
    peers=frozenset({"192.0.2.2", "192.0.2.3"}),
    entries=frozenset({("02:00:00:00:00:02", "192.0.2.2")}),
)


def taps(*names: str) -> frozenset[Tap]:
    return frozenset(Tap(name, "02:00:00:00:00:01", ("10.0.0.1",)) for name in names)


class Killed(Exception):
    pass


class Dying:
    """Everything that changes the host dies after the n-th change, and stays dead."""

    def __init__(self, alive: Any, budget: list[int]) -> None:
        self._alive = alive
        self._budget = budget

    def __getattr__(self, name: str) -> Any:
        if name == "apply_entries":  # a batch may be cut anywhere
            return lambda changes: [self.apply(change) for change in changes]
        attribute = getattr(self._alive, name)
        if name not in ("apply", "put", "drop"):
            return attribute

        def until_dead(*arguments: Any) -> Any:
            if self._budget[0] == 0:
                raise Killed
            self._budget[0] -= 1
            return attribute(*arguments)

        return until_dead


@pytest.fixture
def links() -> FakeLinks:
    return FakeLinks()


@pytest.fixture
def rules() -> FakeFilter:
    return FakeFilter()


@pytest.fixture
def reconciler(links: FakeLinks, rules: FakeFilter) -> NetworkReconciler:
    return NetworkReconciler(links, rules)


def test_ensured_twice_changes_nothing(reconciler: NetworkReconciler) -> None:
    assert len(reconciler.ensure(WANTED)) > 5
    assert reconciler.ensure(WANTED) == ()


def test_killed_after_any_change_of_joining_the_next_call_ends_in_the_same_place() -> None:
    whole = FakeLinks()
    count = len(NetworkReconciler(whole, FakeFilter()).ensure(WANTED))
    for survived in range(count):
        links, rules, budget = FakeLinks(), FakeFilter(), [survived]
        dying: Any = Dying(links, budget), Dying(rules, budget)
        with pytest.raises(Killed):
            NetworkReconciler(*dying).ensure(WANTED)
        reconciler = NetworkReconciler(links, rules)
        reconciler.ensure(WANTED)
        assert links.found(VNI) == whole.found(VNI)
        assert reconciler.ensure(WANTED) == ()


def test_killed_after_any_change_of_leaving_the_next_call_leaves_nothing() -> None:
    for survived in range(3):
        links, rules, budget = FakeLinks(), FakeFilter(), [survived]
        NetworkReconciler(links, rules).ensure(WANTED)
        dying: Any = Dying(links, budget), Dying(rules, budget)
        with pytest.raises(Killed):
            NetworkReconciler(*dying).remove(VNI)
        NetworkReconciler(links, rules).remove(VNI)
        assert links.ours() == frozenset()
        assert rules.state() is FilterState.ABSENT


def test_a_change_that_fails_on_a_new_network_leaves_nothing(links: FakeLinks, rules: FakeFilter) -> None:
    def fail(change: terms.Change) -> None:
        if isinstance(change, terms.AttachVxlan):
            raise NetworkError("no")

    with pytest.raises(NetworkError):
        NetworkReconciler(links, rules, on_change=fail).ensure(WANTED)
    assert links.ours() == frozenset()
    assert rules.state() is FilterState.ABSENT


def test_a_change_that_fails_on_a_network_with_guests_takes_nothing_away(
    links: FakeLinks, rules: FakeFilter, reconciler: NetworkReconciler
) -> None:
    reconciler.ensure(WANTED)
    before = links.found(VNI)

    def fail(change: terms.Change) -> None:
        raise NetworkError("no")

    with pytest.raises(NetworkError):
        NetworkReconciler(links, rules, on_change=fail).ensure(replace(WANTED, peers=WANTED.peers | {"192.0.2.9"}))
    assert before.entries <= links.found(VNI).entries


def test_an_undo_that_fails_is_noted_on_the_error() -> None:
    budget = [3]
    dying: Any = Dying(FakeLinks(), budget), Dying(FakeFilter(), budget)
    with pytest.raises(Killed) as caught:
        NetworkReconciler(*dying).ensure(WANTED)
    assert any(f"undoing network {VNI}" in note for note in caught.value.__notes__)


def test_the_filter_stays_until_the_last_network_leaves(reconciler: NetworkReconciler, rules: FakeFilter) -> None:
    other = replace(WANTED, vni=VNI + 1)
    reconciler.ensure(WANTED)
    reconciler.ensure(other)
    assert reconciler.present() == {VNI, VNI + 1}
    assert terms.Unguard(VNI) in reconciler.remove(VNI)
    assert rules.state() is FilterState.WHOLE
    assert terms.Unguard(VNI + 1) in reconciler.remove(VNI + 1)
    assert rules.state() is FilterState.ABSENT
    assert reconciler.remove(VNI) == ()


def test_an_altered_filter_is_put_back(reconciler: NetworkReconciler, rules: FakeFilter) -> None:
    reconciler.ensure(WANTED)
    rules.is_altered = True
    assert reconciler.ensure(WANTED) == (terms.Guard(Part(VNI, members=WANTED.peers)),)


def test_a_network_with_a_guests_port_is_not_removed(reconciler: NetworkReconciler, links: FakeLinks) -> None:
    reconciler.ensure(WANTED)
    links.networks[VNI] = replace(links.found(VNI), ports=frozenset({FoundPort("ect1", True)}))
    before = links.found(VNI)
    with pytest.raises(NetworkError, match="ect1"):
        reconciler.remove(VNI)
    assert links.found(VNI) == before
    links.networks[VNI] = replace(before, ports=frozenset())
    assert reconciler.remove(VNI)
    assert not reconciler.remove(VNI)


def test_a_tap_that_is_not_hardened_is(reconciler: NetworkReconciler, links: FakeLinks) -> None:
    reconciler.ensure(WANTED)
    links.networks[VNI] = replace(links.found(VNI), ports=frozenset({FoundPort("ect1", False)}))
    assert reconciler.ensure(WANTED) == (terms.Harden("ect1"),)


def test_a_tap_whose_bridge_was_deleted_by_hand_is_put_on_the_new_one(
    reconciler: NetworkReconciler, links: FakeLinks
) -> None:
    wanted = replace(WANTED, taps=taps("ect1", "ect2"))
    links.taps["ect1"] = True
    assert terms.AttachTap(names.bridge_name(VNI), "ect1") in reconciler.ensure(wanted)
    links.apply(terms.DeleteBridge(VNI))
    reconciler.ensure(wanted)
    assert links.found(VNI).ports == {FoundPort("ect1", True)}
    assert reconciler.ensure(wanted) == ()


def test_a_foreign_device_with_our_name_is_not_touched(links: FakeLinks, rules: FakeFilter) -> None:
    links.networks[VNI] = FoundNetwork(VNI, bridge=FoundBridge("veth"))
    reconciler = NetworkReconciler(links, rules)
    for action in (lambda: reconciler.ensure(WANTED), lambda: reconciler.remove(VNI)):
        with pytest.raises(NetworkError, match="not our bridge"):
            action()
    assert links.applied == []
    assert rules.state() is FilterState.ABSENT


def test_a_tap_that_is_being_started_is_left_to_libvirt(links: FakeLinks, reconciler: NetworkReconciler) -> None:
    """libvirt fails to start a guest whose tap somebody else was quicker to put on its bridge."""
    wanted = replace(WANTED, taps=taps("ect1", "ect2"))
    reconciler.ensure(wanted)
    links.taps |= {"ect1": False, "ect2": False}
    with reconciler.starting(["ect1"]):
        changes = reconciler.ensure(wanted)
        assert [change for change in changes if isinstance(change, terms.AttachTap)] == [
            terms.AttachTap(names.bridge_name(VNI), "ect2")
        ]
        assert "ect1" in links.taps
    assert terms.AttachTap(names.bridge_name(VNI), "ect1") in reconciler.ensure(wanted)


def test_a_tap_that_was_started_while_it_was_looked_at_is_not_touched(
    links: FakeLinks, reconciler: NetworkReconciler
) -> None:
    wanted = replace(WANTED, taps=taps("ect1"))
    reconciler.ensure(wanted)
    starting = reconciler.starting(["ect1"])
    look = links.found

    def found(vni: int, taps: Collection[str] = (), **where: Any) -> FoundNetwork:
        if "ect1" not in links.taps:
            starting.__enter__()
            links.taps["ect1"] = False
        return look(vni, taps, **where)

    links.found = found  # type: ignore[method-assign]
    assert reconciler.ensure(wanted) == ()
    starting.__exit__(None, None, None)


# --- arrivals elsewhere --------------------------------------------------------------------------


class Counting(FakeLinks):
    """Counts what is read of the host and what is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def found(self, vni: int, taps: Collection[str] = (), **where: Any) -> FoundNetwork:
        self.calls.append("found")
        return super().found(vni, taps, **where)

    def glance(self, vni: int) -> FoundNetwork:
        self.calls.append("glance")
        return super().glance(vni)

    def apply(self, change: terms.LinkChange) -> None:
        self.calls.append(type(change).__name__)
        super().apply(change)


def of_size(guests: int) -> WantedNetwork:
    macs = [f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}" for n in range(guests)]
    return replace(
        WANTED,
        entries=frozenset((mac, "192.0.2.2") for mac in macs),
        neighbours=frozenset((f"10.0.{n >> 8}.{n & 255}", mac) for n, mac in enumerate(macs)),
    )


def test_a_guest_that_arrives_elsewhere_costs_the_same_in_a_network_of_any_size() -> None:
    costs = []
    for size in (1, 2000):
        links = Counting()
        reconciler = NetworkReconciler(links, FakeFilter())
        reconciler.follow(of_size(size))
        links.calls.clear()
        reconciler.follow(of_size(size + 1))
        costs.append(list(links.calls))
        assert links.found(VNI).neighbours == of_size(size + 1).neighbours
    assert costs[0] == costs[1] == ["glance", "PutEntry", "PutNeighbour", "glance"]


@pytest.mark.parametrize(
    "harm", [terms.DeleteVxlan(VNI), terms.DeleteBridge(VNI), terms.SetMtu(names.vxlan_name(VNI), 1300)]
)
def test_a_network_whose_devices_are_not_as_they_were_left_is_read_whole(
    links: FakeLinks, reconciler: NetworkReconciler, harm: terms.LinkChange
) -> None:
    wanted = replace(of_size(2), taps=taps("ect1"))
    reconciler.ensure(wanted)
    links.plug("ect1", names.bridge_name(VNI))
    reconciler.ensure(wanted)
    whole = links.found(VNI)
    links.apply(harm)
    reconciler.follow(wanted)
    assert links.found(VNI) == whole


def test_a_device_that_was_made_anew_as_it_was_has_lost_its_entries_and_gets_them(
    links: FakeLinks, reconciler: NetworkReconciler
) -> None:
    reconciler.ensure(of_size(2))
    before = links.found(VNI)
    links.apply(terms.DeleteVxlan(VNI))
    again = NetworkReconciler(links, FakeFilter())
    again.ensure(of_size(0))
    reconciler.follow(of_size(2))
    assert links.found(VNI) == before


def test_a_change_that_fails_when_it_is_followed_is_tried_on_what_is_there(
    links: FakeLinks, reconciler: NetworkReconciler
) -> None:
    reconciler.ensure(of_size(1))
    apply, failures = links.apply, [NetworkError("no")]

    def fail(change: terms.LinkChange) -> None:
        if failures:
            raise failures.pop()
        apply(change)

    links.apply = fail  # type: ignore[method-assign]
    reconciler.follow(of_size(2))
    assert links.found(VNI).entries == of_size(2).forwarding()


def test_what_others_did_to_the_entries_is_found_by_the_next_look_at_all(
    links: FakeLinks, reconciler: NetworkReconciler
) -> None:
    reconciler.ensure(of_size(2))
    links.apply(terms.DropNeighbour(VNI, "10.0.0.1"))
    assert reconciler.follow(of_size(2)) == ()
    assert reconciler.ensure(of_size(2)) == (terms.PutNeighbour(VNI, "10.0.0.1", "02:00:00:00:00:01"),)


def test_a_foreign_entry_that_a_port_took_over_is_not_taken_for_one_later(
    links: FakeLinks, reconciler: NetworkReconciler
) -> None:
    mac = "02:00:00:00:00:00"
    reconciler.ensure(of_size(0))
    links.networks[VNI] = replace(links.found(VNI), foreign_entries=frozenset({(mac, "192.0.2.3")}))
    reconciler.ensure(of_size(1))
    moved = replace(of_size(1), entries=frozenset({(mac, "192.0.2.3")}))
    assert reconciler.follow(moved) == (terms.PutEntry(VNI, mac, "192.0.2.3"),)


# --- physical networks, and taps of none ---------------------------------------------------------

UNTAGGED = WantedNetwork("n", VNI, 1500, None, Physical("br0"), taps=taps("ect1"))
TAGGED = replace(UNTAGGED, physical=Physical("br0", 5))


@pytest.mark.parametrize("wanted", [UNTAGGED, TAGGED])
def test_a_physical_network_comes_and_goes_and_the_operators_bridge_stays(
    links: FakeLinks, rules: FakeFilter, reconciler: NetworkReconciler, wanted: WantedNetwork
) -> None:
    with pytest.raises(NetworkError, match="br0, which this host does not have"):
        reconciler.ensure(wanted)
    assert (reconciler.present(), rules.state()) == (frozenset(), FilterState.ABSENT)
    links.bridges = {"br0"}
    reconciler.ensure(wanted)
    assert reconciler.ensure(wanted) == reconciler.follow(wanted) == ()
    assert reconciler.present() == {VNI}
    links.plug("ect1", wanted.tap_bridge)
    reconciler.ensure(wanted)
    assert reconciler.guests(VNI) == {"ect1"}
    with pytest.raises(NetworkError, match="still has ports: ect1"):
        reconciler.remove(VNI)
    links.unplug("ect1")
    reconciler.remove(VNI)
    assert (reconciler.present(), rules.state(), links.bridges) == (frozenset(), FilterState.ABSENT, {"br0"})


def test_a_tap_of_no_network_is_let_through_and_keeps_its_rules_until_it_is_gone(
    links: FakeLinks, rules: FakeFilter, reconciler: NetworkReconciler
) -> None:
    links.bridges = {"br0"}
    reconciler.admit(taps("ect1", "ect2"))
    links.plug("ect1", "br0")
    assert rules.taps(names.NO_NETWORK) == {"ect1", "ect2"}
    assert reconciler.present() == frozenset()
    again = NetworkReconciler(links, rules)
    again.admit(frozenset())
    assert rules.taps(names.NO_NETWORK) == {"ect1"}
    links.unplug("ect1")
    again.admit(frozenset())
    assert rules.state() is FilterState.ABSENT


def test_a_tap_on_the_operators_bridge_is_hardened_although_the_daemon_died_after_the_guests_start(
    links: FakeLinks, rules: FakeFilter
) -> None:
    links.bridges |= {"br0"}
    reconciler = NetworkReconciler(links, rules)
    reconciler.admit(taps("ect1"))
    links.plug("ect1", "br0")
    NetworkReconciler(links, rules).admit(taps("ect1"))
    assert links.taps == {"ect1": True}
