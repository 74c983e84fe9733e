"""Providers, their inventories and traits, against a real placement."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from ecompute.cluster.errors import Conflict, InvalidInput, NotFound, Refused
from ecompute.cluster.placement import Inventory, Placement

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
