"""What does not fit together on a host, in one look and in two."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.audit.compare import (
    GRACE_S,
    REPAIR,
    Assigned,
    OwnLook,
    Suspect,
    What,
    believed,
    lasting,
    suspects,
)
from ecompute.cluster.documents import Power, Role
from ecompute.network.names import bridge_name, vxlan_name
from ecompute.network.present import Device, Kind

UUID = "00000000-0000-0000-0000-000000000001"
OTHER = "00000000-0000-0000-0000-000000000002"
TAP = "ect00000000001"
RUNS = Assigned(Role.RUN, 7, frozenset({5}), frozenset({TAP}))
NETWORK = frozenset({Device(bridge_name(5), Kind.BRIDGE, 5), Device(vxlan_name(5), Kind.VXLAN, 5)})
WHOLE = OwnLook(
    assigned={UUID: RUNS},
    domains={UUID: Power.ON},
    disks=frozenset({UUID}),
    files=frozenset({UUID}),
    devices=NETWORK | {Device(TAP, Kind.TAP, 5)},
)


def kinds(look: OwnLook) -> set[tuple[What, str]]:
    return {(suspect.what, suspect.subject) for suspect in suspects(look)}


def test_a_guest_that_is_as_it_is_wanted_is_not_suspected() -> None:
    assert suspects(WHOLE) == frozenset()
    assert suspects(OwnLook()) == frozenset()


def test_a_guest_that_nobody_asks_for_is_suspected_alone_and_its_devices_with_it_are_not() -> None:
    assert kinds(replace(WHOLE, assigned={})) == {(What.GUEST, UUID)}
    assert kinds(replace(WHOLE, assigned={}, domains={})) == {(What.GUEST, UUID)}, "its disk may be all that is left"


def test_files_without_a_disk_and_names_that_are_no_instances_are_told_apart_from_guests() -> None:
    look = OwnLook(files=frozenset({UUID}), strays=frozenset({"lost+found"}))
    assert kinds(look) == {(What.FILES, UUID), (What.FILES, "lost+found")}


@pytest.mark.parametrize("gone", ["domains", "disks"])
def test_a_guest_of_which_domain_or_disk_is_gone_is_missing(gone: str) -> None:
    look = replace(WHOLE, **{gone: {} if gone == "domains" else frozenset()})
    assert suspects(look) == {Suspect(What.MISSING, UUID, 7)}


def test_what_waits_for_its_gang_or_its_image_is_not_missing() -> None:
    look = OwnLook(assigned={UUID: replace(RUNS, is_waiting=True)})
    assert suspects(look) == frozenset()


def test_a_running_guest_without_its_tap_or_its_network_is_cut_off() -> None:
    for devices in (NETWORK, {Device(TAP, Kind.TAP, None)}):
        assert kinds(replace(WHOLE, devices=frozenset(devices))) == {(What.NETWORK, UUID)}
    assert kinds(replace(WHOLE, domains={UUID: Power.OFF}, devices=frozenset())) == set(), "off, it needs none"


def test_what_is_to_be_removed_and_is_here_is_told() -> None:
    absent = replace(RUNS, role=Role.ABSENT)
    assert kinds(replace(WHOLE, assigned={UUID: absent})) == {(What.REMOVAL, UUID)}
    assert kinds(OwnLook(assigned={UUID: absent})) == set()


def test_an_assignment_that_cannot_be_read_is_told_and_its_guest_is_left_out() -> None:
    key = f"/hosts/p/{UUID}"
    assert kinds(replace(WHOLE, assigned={}, unreadable=frozenset({key}))) == {(What.UNREADABLE, key)}


def test_devices_that_no_assignment_names_are_told() -> None:
    tap = Device("ect00000000009", Kind.TAP, None)
    assert kinds(OwnLook(devices=NETWORK | {tap})) == {
        (What.DEVICE, name) for name in (bridge_name(5), vxlan_name(5), tap.name)
    }
    assert kinds(replace(WHOLE, devices=WHOLE.devices | {tap})) == {(What.DEVICE, tap.name)}


def test_what_a_gateway_without_guests_has_left_is_told_and_makes_no_network() -> None:
    pair, space = Device("ecg000005", Kind.VETH, 5), Device("ec-000005-01234567", Kind.NAMESPACE, 5)
    assert kinds(OwnLook(devices=frozenset({pair, space}))) == {
        (What.DEVICE, pair.name),
        (What.NAMESPACE, space.name),
    }
    assert kinds(replace(WHOLE, devices=WHOLE.devices | {pair, space})) == set()
    tap = Device(TAP, Kind.TAP, None)
    assert kinds(replace(WHOLE, devices=frozenset({tap, pair, space}))) == {(What.NETWORK, UUID)}


def test_where_a_guest_is_that_nobody_asks_for_no_device_in_use_is_told() -> None:
    unused = Device(bridge_name(6), Kind.BRIDGE, 6)
    look = OwnLook(domains={OTHER: Power.ON}, devices=WHOLE.devices | {unused})
    assert kinds(look) == {(What.GUEST, OTHER), (What.DEVICE, unused.name)}


def test_a_stuck_instance_is_told_and_nothing_else_of_it() -> None:
    assert kinds(OwnLook(assigned={UUID: RUNS}, stuck=frozenset({UUID}))) == {(What.STUCK, UUID)}


_uuids = st.sampled_from([UUID, OTHER])
_looks = st.builds(
    OwnLook,
    assigned=st.dictionaries(
        _uuids, st.builds(Assigned, st.sampled_from(Role), st.integers(1, 3), is_waiting=st.booleans())
    ),
    domains=st.dictionaries(_uuids, st.sampled_from(Power)),
    disks=st.frozensets(_uuids),
    files=st.frozensets(_uuids),
    at_work=st.frozensets(_uuids),
)


@given(_looks)
def test_what_a_lane_is_at_work_on_is_never_suspected_and_all_else_is_said_once(look: OwnLook) -> None:
    found = suspects(look)
    assert not {suspect.subject for suspect in found} & look.at_work
    assert len({suspect.subject for suspect in found}) == len(found)


@given(_looks, _looks, st.floats(0, 2 * GRACE_S))
def test_only_what_two_looks_far_enough_apart_suspect_is_believed(
    first: OwnLook, second: OwnLook, apart_s: float
) -> None:
    since = lasting({}, suspects(first), 0.0)
    assert believed(since, 0.0) == frozenset()
    found = believed(lasting(since, suspects(second), apart_s), apart_s)
    assert found == ((suspects(first) & suspects(second)) if apart_s >= GRACE_S else frozenset())


def test_what_was_well_in_between_is_suspected_anew() -> None:
    suspect = frozenset({Suspect(What.GUEST, UUID)})
    since = lasting({}, suspect, 0.0)
    since = lasting(since, frozenset(), GRACE_S)
    assert believed(lasting(since, suspect, 2 * GRACE_S), 2 * GRACE_S) == frozenset()


def test_every_kind_says_what_is_done_about_it() -> None:
    assert set(REPAIR) == set(What)
    assert UUID in Suspect(What.MISSING, UUID).repair
