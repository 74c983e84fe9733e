"""A host registers with a real placement: once, the same each time, and what is others' stays."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from ecompute.cluster.closing import DISABLED
from ecompute.cluster.config import Config, InventorySettings
from ecompute.cluster.errors import ClaimRefused, Conflict
from ecompute.cluster.given import Said
from ecompute.cluster.placement import Inventory, Placement
from ecompute.cluster.shards import aggregates_of
from ecompute.inventory import Measured
from ecompute.registrar import Registrar
from ecompute.standing import Door

MACHINE = Measured(vcpus=8, memory_mb=16000, disk_gb=100)
TRAITS = frozenset({"HW_CPU_X86_AVX", "CUSTOM_VIRT_KVM"})


def new_uuid() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def provider() -> str:
    return new_uuid()


@pytest.fixture
def registrar(client: Placement, provider: str) -> Registrar:
    return Registrar(client, Config(), provider, f"host-{provider}")


def claim(client: Placement, provider: str) -> str:
    consumer = new_uuid()
    allocations = {provider: {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}}
    client.claim(consumer, allocations, {"": [provider]}, project_id="system", user_id="system")
    return consumer


def generation(client: Placement, provider: str) -> int:
    found = client.provider(provider)
    assert found is not None
    return found.generation


def test_a_new_host_has_its_inventory_and_traits(client: Placement, provider: str, registrar: Registrar) -> None:
    assert registrar.register(MACHINE, TRAITS)
    found = client.provider(provider)
    assert found is not None
    assert found.name == f"host-{provider}"
    assert client.traits(provider) == TRAITS
    assert client.aggregates(provider) == aggregates_of(provider)
    assert client.inventories(provider).is_same(
        {
            "CUSTOM_HYPERVISOR": Inventory(total=1, max_unit=1),
            "VCPU": Inventory(total=8, max_unit=8),
            "MEMORY_MB": Inventory(total=16000, reserved=512, max_unit=16000),
            "DISK_GB": Inventory(total=100, max_unit=100),
        }
    )
    claim(client, provider)


def test_nothing_is_written_that_is_already_so(client: Placement, provider: str, registrar: Registrar) -> None:
    assert registrar.register(MACHINE, TRAITS)
    before = generation(client, provider)
    assert not registrar.register(MACHINE, TRAITS)
    assert not registrar.register(MACHINE, TRAITS)
    assert generation(client, provider) == before


def test_a_provider_that_nobody_has_written_is_looked_at_with_one_request(
    faulty: Placement, proxy: Any, provider: str
) -> None:
    registrar = Registrar(faulty, Config(), provider, f"host-{provider}")
    registrar.register(MACHINE, TRAITS)
    registrar.register(MACHINE, TRAITS)
    proxy.seen.clear()
    registrar.register(MACHINE, TRAITS)
    assert proxy.seen == [("GET", f"/resource_providers/{provider}")]
    faulty.set_traits(provider, set())
    assert registrar.register(MACHINE, TRAITS)
    assert faulty.traits(provider) == TRAITS


def test_a_changed_machine_and_share_are_put_right(client: Placement, provider: str, registrar: Registrar) -> None:
    registrar.register(MACHINE, TRAITS)
    larger = Measured(vcpus=16, memory_mb=32000, disk_gb=100)
    config = Config(inventory=InventorySettings(memory_mb=20000))
    again = Registrar(client, config, provider, f"host-{provider}")
    assert again.register(larger, frozenset({"CUSTOM_VIRT_QEMU"}))
    found = client.inventories(provider).inventories
    assert (found["VCPU"].total, found["MEMORY_MB"].total) == (16, 20000)
    assert client.traits(provider) == {"CUSTOM_VIRT_QEMU"}


def test_a_closed_host_is_in_no_answer_refuses_claims_and_keeps_what_it_has(
    client: Placement, provider: str, registrar: Registrar
) -> None:
    registrar.register(MACHINE, TRAITS)
    guest = claim(client, provider)
    assert registrar.close()
    assert not registrar.close()
    inventories = client.inventories(provider).inventories
    for name in ("VCPU", "MEMORY_MB", "DISK_GB"):
        assert inventories[name].reserved == inventories[name].total
    assert inventories["CUSTOM_HYPERVISOR"].capacity == 1
    assert client.traits(provider) == TRAITS | {DISABLED}
    with pytest.raises(ClaimRefused):
        claim(client, provider)
    assert client.allocations(guest)
    assert client.release(guest)


def test_the_next_start_opens_a_closed_host(client: Placement, provider: str, registrar: Registrar) -> None:
    registrar.register(MACHINE, TRAITS)
    registrar.close()
    assert Registrar(client, Config(), provider, f"host-{provider}").register(MACHINE, TRAITS)
    assert client.traits(provider) == TRAITS
    claim(client, provider)


def test_a_host_can_register_closed_and_open_later(client: Placement, provider: str, registrar: Registrar) -> None:
    registrar.register(MACHINE, TRAITS, door=Door.CLOSED)
    assert client.hosts()[provider].resources["VCPU"].capacity == 0
    with pytest.raises(ClaimRefused):
        claim(client, provider)
    assert registrar.register(MACHINE, TRAITS)
    claim(client, provider)


def test_claims_come_back_to_a_hidden_host_which_is_in_no_answer(
    client: Placement, provider: str, registrar: Registrar
) -> None:
    registrar.register(MACHINE, TRAITS, door=Door.HIDDEN)
    query = f"resources=VCPU:1&in_tree={provider}"
    assert client.candidates(query, limit=1)
    assert not client.candidates(f"{query}&required=!{DISABLED}", limit=1)
    assert registrar.claimants() == set()
    guest = claim(client, provider)
    assert registrar.claimants() == {guest}


def test_a_host_that_was_never_registered_is_closed_without_a_word(registrar: Registrar) -> None:
    assert not registrar.close()
    assert not registrar.exists()
    assert registrar.claimants() == set()


def test_what_operators_give_and_take_is_theirs_and_the_rest_stays(
    client: Placement, provider: str, registrar: Registrar
) -> None:
    registrar.register(MACHINE, TRAITS)
    with_curl = new_uuid()
    client.set_traits(provider, TRAITS | {"CUSTOM_CURL"})
    client.change_aggregates(provider, lambda found: found | {with_curl})
    north, south = new_uuid(), new_uuid()
    zones = frozenset({north, south})
    registrar.register(MACHINE, TRAITS, said=Said(traits=frozenset({"CUSTOM_GOLD"}), zone=north, zones=zones))
    assert client.traits(provider) == TRAITS | {"CUSTOM_CURL", "CUSTOM_GOLD"}
    assert client.aggregates(provider) == aggregates_of(provider) | {with_curl, north}
    assert not registrar.register(MACHINE, TRAITS)  # what operators say is not known: it stays
    registrar.register(MACHINE, TRAITS, said=Said(former_traits=frozenset({"CUSTOM_GOLD"}), zone=south, zones=zones))
    assert client.traits(provider) == TRAITS | {"CUSTOM_CURL"}
    assert client.aggregates(provider) == aggregates_of(provider) | {with_curl, south}
    registrar.register(MACHINE, TRAITS, said=Said(zones=zones))
    assert client.aggregates(provider) == aggregates_of(provider) | {with_curl}


def test_what_operators_set_on_the_provider_stays(client: Placement, provider: str, registrar: Registrar) -> None:
    registrar.register(MACHINE, TRAITS)
    client.set_traits(provider, TRAITS | {"CUSTOM_RACK_7"})
    gpus = {"CUSTOM_GPU": Inventory(total=2, max_unit=2)}
    client.set_inventories(provider, client.inventories(provider).inventories | gpus)
    registrar.close()
    registrar.register(MACHINE, frozenset({"CUSTOM_VIRT_QEMU"}))
    assert client.traits(provider) == {"CUSTOM_VIRT_QEMU", "CUSTOM_RACK_7"}
    assert client.inventories(provider).inventories["CUSTOM_GPU"].total == 2


def test_a_trait_that_this_placement_does_not_know_is_left_out(
    client: Placement, provider: str, registrar: Registrar
) -> None:
    registrar.register(MACHINE, TRAITS | {"HW_CPU_X86_OF_NEXT_YEAR"})
    assert client.traits(provider) == TRAITS


def test_a_renamed_host_keeps_its_provider(client: Placement, provider: str, registrar: Registrar) -> None:
    registrar.register(MACHINE, TRAITS)
    guest = claim(client, provider)
    Registrar(client, Config(), provider, f"renamed-{provider}").register(MACHINE, TRAITS)
    found = client.provider(provider)
    assert found is not None
    assert found.name == f"renamed-{provider}"
    assert client.allocations(guest)


def test_orphaned_providers_an_earlier_life_of_the_host_is_named_and_what_to_do(
    client: Placement, provider: str, registrar: Registrar
) -> None:
    registrar.register(MACHINE, TRAITS)
    lost_its_state = Registrar(client, Config(), new_uuid(), f"host-{provider}")
    with pytest.raises(Conflict) as raised:
        lost_its_state.register(MACHINE, TRAITS)
    assert "an orphan of an earlier life of this host" in str(raised.value)
    assert f"set `uuid: {provider}` in compute.yaml" in str(raised.value)
    assert len(client.providers(name=f"host-{provider}")) == 1
