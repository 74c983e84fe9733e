"""Many users of one session to placement."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from ecompute.cluster.errors import PlacementUnavailable
from ecompute.cluster.placement import ClaimRequest, Inventory, Placement
from ecompute.cluster.placement.shared import SharedPlacement

WHO = {"project_id": "system", "user_id": "tester"}


def test_a_part_does_all_that_a_whole_does(client: Placement, make_provider: Callable[..., str]) -> None:
    user = SharedPlacement(client)
    host, other = make_provider(VCPU=4), str(uuid.uuid4())
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    vcpus = {"VCPU": Inventory(total=4)}
    row = {host: {"VCPU": 1}}
    does: dict[str, Callable[[], object]] = {
        "check": user.check,
        "ensure_provider": lambda: user.ensure_provider(other, f"host-{other}"),
        "provider": lambda: user.provider(other),
        "provider_by_name": lambda: user.provider_by_name(f"host-{other}"),
        "providers": lambda: user.providers(name=f"host-{other}"),
        "delete_provider": lambda: user.delete_provider(other),
        "inventories": lambda: user.inventories(host),
        "set_inventories": lambda: user.set_inventories(host, vcpus),
        "change_inventories": lambda: user.change_inventories(host, lambda found: found),
        "names": user.names,
        "classes": lambda: user.classes("CUSTOM_"),
        "delete_class": lambda: user.delete_class("CUSTOM_NOBODY_HAS_IT"),
        "known_traits": user.known_traits,
        "traits": lambda: user.traits(host),
        "set_traits": lambda: user.set_traits(host, {"HW_CPU_X86_AVX"}),
        "change_traits": lambda: user.change_traits(host, lambda found: found),
        "aggregates": lambda: user.aggregates(host),
        "set_aggregates": lambda: user.set_aggregates(host, {str(uuid.uuid4())}),
        "change_aggregates": lambda: user.change_aggregates(host, lambda found: found),
        "hosts": user.hosts,
        "trees": user.trees,
        "candidates": lambda: user.candidates(f"resources=VCPU:1&in_tree={host}", limit=1),
        "claim": lambda: user.claim(one, row, **WHO),
        "claim_many": lambda: user.claim_many([ClaimRequest(two, row, {}, *WHO.values())]),
        "allocations": lambda: user.allocations(one),
        "replace": lambda: user.replace(one, {host: {"VCPU": 2}}, user.allocations(one)),
        "usages": lambda: user.usages(host),
        "provider_allocations": lambda: user.provider_allocations(host),
        "release": lambda: user.release(one) and user.release(two),
        "close_host": lambda: user.close_host(host),
        "close": user.close,
    }
    assert set(does) == {name for name in dir(Placement) if not name.startswith("_")}
    for asked, do in does.items():
        do()
        if asked == "replace":
            assert client.usages(host) == {"VCPU": 3}
    assert client.usages(host) == {"VCPU": 0}


def test_a_closed_user_asks_nothing_more_and_the_others_go_on(client: Placement) -> None:
    gone, stays = SharedPlacement(client), SharedPlacement(client)
    gone.close()
    with pytest.raises(PlacementUnavailable, match="closed"):
        gone.check()
    stays.check()
