"""Which interface an address is handed to: the one that is meant and can have it, or a reason."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ecompute.cluster.documents import Instance, Interface, Leaving, Network, NetworkKind, Port, Resources, Spec, State
from ecompute.cluster.errors import Ambiguous, CloudError, Conflict, InvalidInput, NotFound, Refused
from ecompute.cluster.store import Versioned
from eschedule.cloud.attaching import MAX_ROUTED, Place, check_outside, check_routed, choose
from eschedule.cloud.interface_views import SHORTEST, find

NAMES = ("front", "back")


def network(n: int, *, gateway: str | None = "10.0.0.1", kind: NetworkKind = NetworkKind.VIRTUAL) -> Network:
    return Network(
        uuid=f"n{n}",
        namespace="system",
        name=NAMES[n % 2],
        kind=kind,
        cidr="10.0.0.0/24",
        vni=n,
        mtu=1450,
        gateway=gateway,
        created_at="",
    )


def interface(uuid: str, on: str = "n0", addresses: tuple[str, ...] = ("10.0.0.5/24",)) -> Interface:
    return Interface(uuid=uuid, network_uuid=on, vni=1, mac="m", addresses=addresses, mtu=1450)


def place(n: int, on: Network, addresses: tuple[str, ...]) -> Place:
    port = Port(interface_uuid=f"i{n}", instance_uuid="u", provider="p", epoch=1, mac="m", addresses=addresses)
    return Place(interface(f"i{n}", on.uuid, addresses), on, Versioned("k", port, 1, 1, 0))


networks = st.builds(
    lambda n, has_gateway, kind: network(n, gateway="10.0.0.1" if has_gateway else None, kind=kind),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from(NetworkKind),
)
addresses = st.sampled_from([(), ("10.0.0.5/24",), ("fd00::5/64",), ("fd00::5/64", "10.0.0.5/24")])
several = st.lists(st.tuples(networks, addresses), max_size=4).map(
    lambda found: [place(n, on, own) for n, (on, own) in enumerate(found)]
)


@given(
    several,
    st.none() | st.sampled_from(["i0", "i1", "i9"]),
    st.none() | st.sampled_from([*NAMES, "n0", "n9"]),
    st.booleans(),
)
def test_the_only_one_that_is_meant_and_able_is_chosen(
    found: list[Place], meant: str | None, on: str | None, needs_gateway: bool
) -> None:
    named = [
        one for one in found if meant in (None, one.interface.uuid) and on in (None, one.network.uuid, one.network.name)
    ]
    able = [
        one
        for one in named
        if any("." in address for address in one.interface.addresses)
        and (not needs_gateway or (one.network.gateway is not None and one.network.kind is NetworkKind.VIRTUAL))
    ]
    try:
        chosen = choose("web-1", found, interface=meant, network=on, needs_gateway=needs_gateway)
    except CloudError as error:
        expected = NotFound if not named else Refused if not able else Ambiguous
        assert type(error) is expected and len(able) != 1
        assert str(error).isprintable()
        return
    assert [chosen] == able


def test_several_that_may_be_meant_are_named_and_the_rest_of_them_counted() -> None:
    found = [place(n, network(0), ("10.0.0.5/24",)) for n in range(6)]
    with pytest.raises(Ambiguous, match=r"6 interfaces for it: .* i3 on front and 2 more; say which"):
        choose("web-1", found, interface=None, network=None)
    with pytest.raises(NotFound, match="web-1 has no interface on network back;"):
        choose("web-1", found, interface=None, network="n9", network_name="back")


def test_an_interface_takes_so_many_routed_addresses_and_no_more() -> None:
    port = place(0, network(0), ("10.0.0.5/24",)).port.value
    routed = tuple(f"203.0.113.{n}" for n in range(MAX_ROUTED))
    for n in range(MAX_ROUTED):
        check_routed("web-1", Port(**_fields(port) | {"routed": routed[:n]}))
    with pytest.raises(Conflict, match=f"interface i0 of web-1 has {MAX_ROUTED} routed addresses"):
        check_routed("web-1", Port(**_fields(port) | {"routed": routed}))


@given(st.integers(0, 255), st.sampled_from(["10.0.0", "10.0.1"]))
def test_an_address_of_the_network_itself_is_none_of_the_outside(last: int, start: str) -> None:
    if start == "10.0.1":
        check_outside(f"{start}.{last}", network(0))
        return
    with pytest.raises(Refused, match=r"lies in the range of network front \(10\.0\.0\.0/24\)"):
        check_outside(f"{start}.{last}", network(0))


uuids = st.integers(0, 2**128 - 1).map(lambda n: str(UUID(int=n)))


@given(st.lists(uuids, min_size=1, max_size=8, unique=True), st.data())
def test_an_interface_is_found_by_any_beginning_that_is_its_own(own: list[str], data: st.DataObject) -> None:
    half = len(own) // 2
    spec = Spec(
        resources=Resources(vcpus=1, memory_mb=1, disk_gb=1), image="i", interfaces=tuple(map(interface, own[:half]))
    )
    leaving = tuple(Leaving(interface=interface(uuid), generation=2) for uuid in own[half:])
    instance = Instance(
        uuid="u",
        namespace="n",
        name="web-1",
        state=State.INITIAL,
        provider="p",
        spec=spec,
        leaving=leaving,
        created_at="",
    )
    meant = data.draw(st.sampled_from(own))
    ref = meant[: data.draw(st.integers(1, 36))]
    if len(ref) < SHORTEST:
        with pytest.raises(InvalidInput, match="too little of an interface's uuid; give its first 4"):
            find(instance, ref)
    elif sum(uuid.startswith(ref) for uuid in own) > 1:
        with pytest.raises(Ambiguous, match="may be any of"):
            find(instance, ref)
    else:
        assert find(instance, ref.upper()).uuid == meant
    for nothing in ("", "zz", meant + "0"):
        with pytest.raises(NotFound):
            find(instance, nothing)


def test_an_interface_is_found_by_an_address_or_its_mac_and_never_by_a_part_of_one() -> None:
    one, other = interface("a" * 36), interface("b" * 36)
    one = structs.replace(one, mac="02:00:00:00:00:01", addresses=("10.0.0.5/24", "fd00::5/64"))
    other = structs.replace(other, mac="02:00:00:00:00:02", addresses=("10.0.0.5/24",))
    instance = Instance(
        uuid="u",
        namespace="n",
        name="web-1",
        state=State.INITIAL,
        provider="p",
        spec=Spec(resources=Resources(vcpus=1, memory_mb=1, disk_gb=1), image="i", interfaces=(one, other)),
        created_at="",
    )
    for ref in ("fd00::5", "FD00::5", "02:00:00:00:00:01"):
        assert find(instance, ref).uuid == "a" * 36
    with pytest.raises(Ambiguous, match=r"10\.0\.0\.5"):
        find(instance, "10.0.0.5")  # on two networks of one range
    for nothing in ("10.0.0.50", "10.0.0", "fd00::", "02:00:00:00:00:03"):
        with pytest.raises(NotFound):
            find(instance, nothing)


def _fields(port: Port) -> dict[str, object]:
    return {name: getattr(port, name) for name in port.__struct_fields__}
