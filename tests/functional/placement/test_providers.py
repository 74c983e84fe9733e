"""Providers, their inventories and traits, against a real placement."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ecompute.cluster import closing, shards
from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.errors import Conflict, InvalidInput, NotFound, Refused
from ecompute.cluster.placement import Inventory, Placement
from ecompute.dev.placement import start_placement

MakeProvider = Callable[..., str]


def test_check_passes_on_the_real_service(client: Placement) -> None:
    client.check()


def test_a_provider_is_found_again_by_uuid_and_by_name(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider()
    found = client.provider(host)
    assert found is not None
    assert found == client.provider_by_name(found.name) == client.ensure_provider(host, found.name)
    assert client.provider(str(uuid.uuid4())) is None
    assert client.provider_by_name("nobody") is None


def test_a_provider_whose_host_was_renamed_keeps_its_uuid_and_inventory(
    client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=3)
    renamed = client.ensure_provider(host, f"another-{host}")
    assert (renamed.uuid, renamed.name) == (host, f"another-{host}")
    assert client.inventories(host).inventories["VCPU"].total == 3


def test_a_child_that_is_renamed_stays_a_child(client: Placement, make_provider: MakeProvider) -> None:
    parent, child = make_provider(), str(uuid.uuid4())
    document = {"uuid": child, "name": f"child-{child}", "parent_provider_uuid": parent}
    assert client._transport.ask("POST", "/resource_providers", (), document).status == 200
    assert client.ensure_provider(child, f"renamed-{child}").parent_provider_uuid == parent
    client.delete_provider(child)


def test_the_name_of_another_provider_is_refused(client: Placement, make_provider: MakeProvider) -> None:
    first, second = make_provider(), make_provider()
    with pytest.raises(Conflict, match="already has a provider named"):
        client.ensure_provider(str(uuid.uuid4()), f"host-{first}")
    with pytest.raises(Conflict, match="already has a provider named"):
        client.ensure_provider(second, f"host-{first}")


def test_inventories_are_written_only_when_they_differ(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider()
    wanted = {
        "VCPU": Inventory(total=8, allocation_ratio=1.1, max_unit=4),
        "MEMORY_MB": Inventory(total=4096, reserved=512, step_size=64),
        "CUSTOM_FPGA": Inventory(total=1),
    }
    assert client.set_inventories(host, wanted) is True
    written = client.inventories(host)
    assert written.is_same(wanted)
    assert client.set_inventories(host, wanted) is False
    assert client.inventories(host).generation == written.generation
    assert client.set_inventories(host, {}) is True
    assert client.inventories(host).inventories == {}


def test_an_inventory_in_use_is_not_taken_away(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=1, DISK_GB=1)
    client.claim(str(uuid.uuid4()), {host: {"VCPU": 1}}, project_id="system", user_id="tester")
    with pytest.raises(Refused, match="in use"):
        client.set_inventories(host, {"DISK_GB": Inventory(total=1)})
    with pytest.raises(Refused, match="cannot be removed"):
        client.delete_provider(host)


def test_all_of_a_class_may_be_reserved(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=4)
    client.set_inventories(host, {"VCPU": Inventory(total=4, reserved=4)})
    with pytest.raises(InvalidInput):
        client.set_inventories(host, {"VCPU": Inventory(total=4, reserved=5)})


def test_traits_are_written_only_when_they_differ(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider()
    wanted = {"HW_CPU_X86_AVX", f"CUSTOM_T_{host[:8].upper()}"}
    assert client.set_traits(host, wanted) is True
    assert client.traits(host) == wanted
    assert client.set_traits(host, wanted) is False
    with pytest.raises(InvalidInput, match="NO_SUCH"):
        client.set_traits(host, {"NO_SUCH"})


def test_the_standard_traits_are_known_and_ours_are_not_among_them(client: Placement) -> None:
    known = client.known_traits()
    assert "HW_CPU_X86_AVX2" in known
    assert "COMPUTE_STATUS_DISABLED" in known
    assert not any(name.startswith("CUSTOM_") for name in known)


def test_providers_can_be_listed_by_what_they_have(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(CUSTOM_RARE=2)
    assert [provider.uuid for provider in client.providers(resources="CUSTOM_RARE:2")] == [host]
    assert client.providers(resources="CUSTOM_RARE:3") == []
    with pytest.raises(InvalidInput):
        client.providers(resources="nonsense")


def test_a_removed_provider_may_be_removed_again(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider()
    client.delete_provider(host)
    client.delete_provider(host)
    for read in (client.inventories, client.traits, client.usages, client.provider_allocations):
        with pytest.raises(NotFound):
            read(host)


def test_aggregates_are_written_only_when_they_differ(client: Placement, make_provider: MakeProvider) -> None:
    host, rack, zone = make_provider(), str(uuid.uuid4()), str(uuid.uuid4())
    assert client.aggregates(host) == frozenset()
    assert client.set_aggregates(host, {rack, zone}) is True
    assert client.aggregates(host) == {rack, zone}
    before = client.provider(host)
    assert client.set_aggregates(host, {zone, rack}) is False
    assert client.provider(host) == before
    assert [found.uuid for found in client.providers(member_of=rack)] == [host]
    assert client.set_aggregates(host, set()) is True
    assert client.aggregates(host) == frozenset()
    with pytest.raises(InvalidInput):
        client.set_aggregates(host, {"rack-7"})
    with pytest.raises(NotFound):
        client.aggregates(str(uuid.uuid4()))


def test_a_change_is_made_of_what_somebody_else_wrote_meanwhile(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=4)
    seen: list[frozenset[str]] = []

    def change(found: frozenset[str]) -> frozenset[str]:
        seen.append(found)
        if len(seen) == 1:
            client.set_traits(host, {"CUSTOM_OTHERS"})
        return found | {"CUSTOM_OURS"}

    assert client.change_traits(host, change)
    assert seen == [frozenset(), {"CUSTOM_OTHERS"}]
    assert client.traits(host) == {"CUSTOM_OTHERS", "CUSTOM_OURS"}

    def close(found: Mapping[str, Inventory]) -> dict[str, Inventory]:
        if found["VCPU"].total == 4:
            client.set_inventories(host, {"VCPU": Inventory(total=8)})
        return {"VCPU": Inventory(total=8, reserved=found["VCPU"].total)}

    assert client.change_inventories(host, close)
    assert client.inventories(host).inventories["VCPU"].reserved == 8


def test_all_hosts_are_read_at_once_full_and_closed_ones_too(client: Placement, make_provider: MakeProvider) -> None:
    rack = str(uuid.uuid4())
    empty, full, shut = (make_provider(VCPU=4, CUSTOM_HYPERVISOR=1) for _ in range(3))
    other = make_provider(VCPU=4)
    for host in (empty, full, other):
        client.set_aggregates(host, {rack})
    client.claim(str(uuid.uuid4()), {full: {"VCPU": 4}}, project_id="system", user_id="tester")
    client.set_inventories(shut, closing.closed({"VCPU": Inventory(total=4), "CUSTOM_HYPERVISOR": Inventory(total=1)}))
    client.set_traits(shut, {closing.DISABLED})
    found = client.hosts()
    assert {empty, full, shut} <= found.keys()
    assert other not in found
    assert (found[empty].resources["VCPU"].capacity, found[empty].resources["VCPU"].used) == (4, 0)
    assert (found[full].resources["VCPU"].capacity, found[full].resources["VCPU"].used) == (4, 4)
    assert found[shut].resources["VCPU"].capacity == 0
    assert closing.DISABLED in found[shut].traits
    assert client.hosts(member_of=rack).keys() == {empty, full}


def test_what_lies_below_a_host_is_in_its_tree_and_is_no_host(client: Placement, make_provider: MakeProvider) -> None:
    host, child = make_provider(VCPU=4, CUSTOM_HYPERVISOR=1), str(uuid.uuid4())
    document = {"uuid": child, "name": f"child-{child}", "parent_provider_uuid": host}
    assert client._transport.ask("POST", "/resource_providers", (), document).status == 200
    try:
        client.set_inventories(child, {"CUSTOM_GROUP": Inventory(total=1)})
        assert child not in client.hosts()
        assert client.trees()[child].parent_provider_uuid == host
    finally:
        client.delete_provider(child)


def test_many_hosts_are_read_shard_by_shard(client: Placement, make_provider: MakeProvider) -> None:
    hosts = {make_provider(VCPU=1, CUSTOM_HYPERVISOR=1) for _ in range(5)}
    for host in hosts:
        client.set_aggregates(host, shards.aggregates_of(host))
    assert hosts <= client.hosts(count=3000).keys()


def test_a_cloud_without_hosts_has_none(tmp_path: Path) -> None:
    with (
        start_placement(tmp_path) as process,
        Placement(PlacementSettings(endpoint=process.endpoint)) as client,
    ):
        assert client.hosts() == {}
